"""Checks of generation: what it chooses and the log-probabilities that it notes, against two other doors."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_distill.conformance.findings import Finding, compare_values, failed
from vlm_distill.conformance.oracle import all_forced_logits, all_plain_logits, judged
from vlm_distill.conformance.probes import Pairs, Probe, response_batch, vocabulary_size
from vlm_distill.forward import unshared_hidden
from vlm_distill.generation.decoding import own_suppressed_ids
from vlm_distill.generation.engine import Completion, Sampling
from vlm_distill.generation.transformers_engine import TransformersEngine

MAX_NEW_TOKENS = 5
GREEDY = Sampling(temperature=0, max_new_tokens=MAX_NEW_TOKENS)
SAMPLED = Sampling(max_new_tokens=MAX_NEW_TOKENS, num_samples=2, seed=1)


@torch.no_grad()
def greedy(probe: Probe) -> Finding:
    """Each greedy token is the one that `generate` finds most likely behind the same tokens.

    A token may be as much below the most likely one as two computations of its logit may differ.
    """
    stopping = with_many_stops(probe)
    completions = complete(stopping, GREEDY)
    for one in completions:
        ended = bool(one.token_ids) and one.token_ids[-1] in stopping.loaded.stop_ids
        if one.finish != ("stop" if ended else "length") or (
            not ended and len(one.token_ids) < MAX_NEW_TOKENS
        ):
            return failed(f"greedy, prompt {one.example_id}: {one.finish} after the tokens {one.token_ids}")
    pairs = _pairs(completions)
    logits = _judged_logits(probe, pairs)
    never = torch.tensor(own_suppressed_ids(probe.loaded), dtype=torch.long, device=logits.device)
    # The place of an image may have an embedding and no logit.
    never = never[never < logits.shape[1]]
    allowed = logits.index_fill(1, never, torch.finfo(logits.dtype).min)
    what = "logits of greedy tokens against generate's largest"
    return compare_values(what, _at(logits, pairs), allowed.amax(dim=1), slack=judged(probe).slack)


@torch.no_grad()
def sampled(probe: Probe) -> Finding:
    """The noted log-probabilities of sampled tokens, in nats, are those of `generate` with these tokens."""
    completions = sampled_completions(probe)
    logits = _judged_logits(probe, _pairs(completions))
    expected = _at(logits.log_softmax(dim=-1), _pairs(completions))
    what = "noted log-probabilities against generate"
    return compare_values(what, _noted(completions, expected), expected, slack=judged(probe).slack)


@torch.no_grad()
def trained(probe: Probe) -> Finding:
    """The noted log-probabilities of sampled tokens, in nats, are those that training sees."""
    completions = sampled_completions(probe)
    pairs = tuple((row, tuple(ids)) for row, ids in _pairs(completions))
    hidden = unshared_hidden(probe.loaded, probe.prompts, response_batch(probe, pairs))
    expected = _at(probe.loaded.head.logits(hidden).float().log_softmax(dim=-1), pairs)
    what = "noted log-probabilities against the training forward"
    return compare_values(what, _noted(completions, expected), expected, slack=judged(probe).slack)


def sampled_completions(probe: Probe) -> list[Completion]:
    """Return sampled responses to all prompts, which end at different steps."""
    return probe.remembered("sampled", lambda: complete(with_many_stops(probe), SAMPLED))


def with_many_stops(probe: Probe) -> Probe:
    """Return the probe with every fourth id as a stop token, so that rows end at different steps."""
    loaded = probe.loaded
    more = range(0, vocabulary_size(loaded), 4)
    return replace(probe, loaded=replace(loaded, stop_ids=(*loaded.stop_ids, *more)))


def complete(probe: Probe, sampling: Sampling) -> list[Completion]:
    """Return the completions of all prompts in one batch."""
    engine = TransformersEngine(loaded=probe.loaded, load_images=probe.load_pictures, batch_size=64)
    return engine.generate(probe.examples, sampling)


def _judged_logits(probe: Probe, pairs: Pairs) -> Float[Tensor, "row vocab"]:
    """Return what `generate` says about responses, or the plain forward where it cannot be made to choose.

    A plain forward reads marks of images or sounds in a response as if they stood for some.
    """
    forced = all_forced_logits(probe, pairs)
    return all_plain_logits(probe, pairs) if forced is None else forced


def _pairs(completions: list[Completion]) -> Pairs:
    return [(int(one.example_id), one.token_ids) for one in completions]


def _at(values: Float[Tensor, "row vocab"], pairs: Pairs) -> Float[Tensor, " row"]:
    """Return the value of each response token."""
    labels: Int[Tensor, " row"] = torch.tensor([token for _, ids in pairs for token in ids])
    return values.gather(1, labels.to(values.device)[:, None])[:, 0]


def _noted(completions: list[Completion], like: Tensor) -> Float[Tensor, " row"]:
    values = [value for one in completions for value in one.token_log_probs or ()]
    return torch.tensor(values, dtype=like.dtype, device=like.device)
