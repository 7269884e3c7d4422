"""The check of the teacher cache: what a tier keeps of a teacher says what the teacher says live."""

import torch

from vlm_distill.conformance.batching import worst
from vlm_distill.conformance.findings import Finding, compare_values
from vlm_distill.conformance.logits import separate_hidden
from vlm_distill.conformance.oracle import judged
from vlm_distill.conformance.probes import Probe, response_batch
from vlm_distill.forward import response_hidden
from vlm_distill.losses import Rows
from vlm_distill.teacher_cache.tiers import TIERS, CacheConfig, tier_of


@torch.no_grad()
def cached_rows(probe: Probe) -> Finding:
    """Log-probabilities from every tier of the cache, in nats, are those of a live teacher."""
    loaded, responses = probe.loaded, response_batch(probe, probe.pairs)
    labels = responses.labels
    live = Rows(hidden=separate_hidden(probe), head=loaded.head)
    log_probs = live.head.logits(live.hidden).float().log_softmax(dim=1)
    expected = log_probs.gather(1, labels[:, None].to(log_probs.device))[:, 0].to(labels.device)
    # A cache is filled with all responses to a prompt together.
    stored = Rows(hidden=response_hidden(loaded, probe.prompts, responses), head=loaded.head)
    findings = []
    for name in TIERS:
        tier = tier_of(CacheConfig(tier=name))
        kept = {key: value.to(labels.device) for key, value in tier.keep(stored, labels).items()}
        rows = tier.rows(kept, loaded.head, live.compared)
        found = rows.chunk(slice(0, len(labels))).block(slice(0, len(labels))).labels(labels).float()
        what = f"cached rows of tier {name} against live ones"
        findings.append(compare_values(what, found, expected, slack=judged(probe).slack))
    return worst(findings)
