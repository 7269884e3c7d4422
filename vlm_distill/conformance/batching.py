"""Checks of what must not change a response's logits: its neighbours, padding, and what comes behind it."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from vlm_distill.conformance.findings import Finding, compare_values, does_not_apply, failed, passed
from vlm_distill.conformance.logits import forward_logits, logits_of, separate, some_columns
from vlm_distill.conformance.oracle import judged, own_inputs, plain_logits
from vlm_distill.conformance.probes import Probe, long_example, recoloured, response_batch
from vlm_distill.forward import unshared_hidden

PLACES = (0, 3)
"""Where a token of a response is exchanged."""
MIXTURES = ((2, 0), (1,), (0, 1))
"""Prompts that are encoded together."""


@torch.no_grad()
def causal(probe: Probe) -> Finding:
    """Another token in a response changes no logit of it and of those before it, whatever the prompt."""
    base, errors = separate(probe), []
    other = probe.pairs[0][1][0]
    for place in PLACES:
        pairs = [
            (row, (*ids[:place], other if ids[place] != other else ids[0] + 1, *ids[place + 1 :]))
            if place < len(ids)
            else (row, ids)
            for row, ids in probe.pairs
        ]
        before = torch.tensor([token <= place for _, ids in pairs for token in range(len(ids))])
        found = forward_logits(unshared_hidden)(replace(probe, pairs=tuple(pairs)))
        errors.append(
            compare_values(
                f"logits before another token in place {place}",
                found[before],
                base[before],
                slack=judged(probe).slack,
            )
        )
    return worst(errors)


@torch.no_grad()
def boundary(probe: Probe) -> Finding:
    """The first token of a response is predicted as the model predicts it from the prompt alone."""
    firsts, place = [], 0
    for _, ids in probe.pairs:
        firsts.append(place)
        place += len(ids)
    expected = [plain_logits(probe.loaded, own_inputs(probe, row), ids[:1]) for row, ids in probe.pairs]
    return compare_values(
        "the first token against the model's forward of the prompt",
        separate(probe)[firsts],
        some_columns(probe, torch.cat(expected)),
        slack=judged(probe).slack,
    )


@torch.no_grad()
def padding(probe: Probe) -> Finding:
    """Wider padding, left of the prompts and right of the responses, changes no logit."""
    longest = long_example(probe)
    wide = replace(
        probe,
        examples=(*probe.examples, longest),
        pictures={**probe.pictures, longest.id: probe.pictures[probe.examples[0].id]},
    )
    responses = response_batch(probe, probe.pairs, wider=3)
    found = logits_of(probe, unshared_hidden(probe.loaded, wide.prompts, responses))
    return compare_values("wider padding", found, separate(probe), slack=judged(probe).slack)


@torch.no_grad()
def alone(probe: Probe) -> Finding:
    """Each response alone, to its prompt selected from the batch, has the logits that it has in the batch."""
    rows = []
    for prompt, ids in probe.pairs:
        selected = probe.prompts.select(torch.tensor([prompt], device=probe.loaded.device))
        rows.append(unshared_hidden(probe.loaded, selected, response_batch(probe, [(0, ids)])))
    found = logits_of(probe, torch.cat(rows))
    return compare_values("responses alone", found, separate(probe), slack=judged(probe).slack)


@torch.no_grad()
def mixed(probe: Probe) -> Finding:
    """Prompts with one picture, two and none, of unequal sizes, have the same logits in every mixture."""
    rows = separate(probe).split([len(ids) for _, ids in probe.pairs])
    errors = []
    for mixture in MIXTURES:
        some = [number for number, (row, _) in enumerate(probe.pairs) if row in mixture]
        pairs = tuple((mixture.index(probe.pairs[number][0]), probe.pairs[number][1]) for number in some)
        part = replace(probe, examples=tuple(probe.examples[row] for row in mixture), pairs=pairs)
        found = forward_logits(unshared_hidden)(part)
        expected = torch.cat([rows[number] for number in some])
        what = f"prompts {', '.join(map(str, mixture))} encoded together"
        errors.append(compare_values(what, found, expected, slack=judged(probe).slack))
    return worst(errors)


@torch.no_grad()
def pictures(probe: Probe) -> Finding:
    """Another picture of the same size changes the logits of its prompt, and those of no other prompt."""
    if "vision" not in probe.loaded.adapter.parts:
        return does_not_apply("the model reads text only")
    lengths = [len(ids) for _, ids in probe.pairs]
    seen = max(row for row, count in enumerate(probe.num_pictures) if count)
    base = separate(probe).split(lengths)
    other = forward_logits(unshared_hidden)(recoloured(probe, seen)).split(lengths)
    errors = [passed()]
    for (row, _), before, after in zip(probe.pairs, base, other, strict=True):
        if row != seen:
            what = f"prompt {row} beside another picture of prompt {seen}"
            errors.append(compare_values(what, after, before, slack=judged(probe).slack))
        elif torch.equal(after, before):
            return failed(f"prompt {row}: expected another picture to change its logits, got the same")
    return worst(errors)


def worst(findings: Sequence[Finding]) -> Finding:
    """Return the first finding that failed, else the one with the largest difference."""
    bad = [one for one in findings if one.outcome == "failed"]
    return bad[0] if bad else max(findings, key=lambda one: one.error or 0.0)
