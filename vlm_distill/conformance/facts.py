"""What a model can do, measured on a copy of it: a family's record may only forbid it.

The adapter that comes out is what all checks are made with, and what a run uses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch

from vlm_distill.adapters.adapter import Adapter, LoadedModel
from vlm_distill.adapters.head import plain_head
from vlm_distill.conformance.checks import CHECKS, find
from vlm_distill.conformance.findings import Finding, compare_values
from vlm_distill.conformance.logits import own_head
from vlm_distill.conformance.probes import Probe, probe_of

HeadKind: TypeAlias = Literal["adapter", "plain"]
ONE = ((0, 2), (0, 3))
"""The responses on which it is measured whether they can share their prompt: two of one."""
TWO = (*ONE, (1, 2))
"""Those on which padding is measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Which output layer gives the model's own logits, where padding may stand, and how prompts are shared.

    `head` is that of the adapter, or the layer without the scale and soft cap of the config. `prefix_sharing`
    is by a cache, `one_sequence` by a mask of queries by keys. `left_padding` says that padding before a
    prompt changes nothing. `lines` say how it was found out.
    """

    head: HeadKind
    prefix_sharing: bool
    one_sequence: bool
    left_padding: bool
    lines: Mapping[str, str]

    def settled(self, adapter: Adapter) -> Adapter:
        """Return the adapter of the family as it is for this model."""
        return replace(
            adapter,
            head=adapter.head if self.head == "adapter" else plain_head,
            supports_prefix_sharing=adapter.supports_prefix_sharing and self.prefix_sharing,
            supports_one_sequence=adapter.supports_one_sequence and self.one_sequence,
            supports_left_padding=adapter.supports_left_padding and self.left_padding,
        )


def measure(loaded: LoadedModel) -> Facts:
    """Return the facts of a model, which is small or a copy (random_copy.py)."""
    kind = fitting_head(loaded)
    fitted = replace(loaded, adapter=replace(loaded.adapter, head=plain_head)) if kind == "plain" else loaded
    padded = find(CHECKS["padding"], _short(fitted, TWO)).outcome == "passed"
    if not padded:
        fitted = replace(fitted, adapter=replace(fitted.adapter, supports_left_padding=False))
    probe = _short(fitted, ONE)
    cache, sequence = (find(CHECKS[name], probe) for name in ("prefix_shared", "one_sequence"))
    lines = {
        "output layer": "measured, as the config says"
        if kind == "adapter"
        else "measured, without the scale and soft cap of the config, which this class does not apply",
        "padding": "measured, exact on the left"
        if padded
        else "measured, not exact on the left: rows are padded on the right, prompts answered one at a time",
        "prefix sharing": _said(cache, allowed=loaded.adapter.supports_prefix_sharing),
        "one sequence": _said(sequence, allowed=loaded.adapter.supports_one_sequence),
    }
    return Facts(
        head=kind,
        prefix_sharing=cache.outcome == "passed",
        one_sequence=sequence.outcome == "passed",
        left_padding=padded,
        lines=lines,
    )


def _short(loaded: LoadedModel, lengths: Sequence[tuple[int, int]]) -> Probe:
    """Return a probe of the first prompts, those that have responses."""
    probe = probe_of(loaded, lengths=lengths)
    return replace(probe, examples=probe.examples[: 1 + max(prompt for prompt, _ in lengths)])


@torch.no_grad()
def fitting_head(loaded: LoadedModel) -> HeadKind:
    """Return the output layer that gives the model's own logits; that of the adapter where none does."""
    try:
        hidden, expected = own_head(probe_of(loaded))
        found = compare_values("without scale", plain_head(loaded.model).logits(hidden), expected)
        ours = compare_values("with scale", loaded.head.logits(hidden), expected)
    # Whatever the family's code raises is found again by the checks, and said there.
    except Exception:
        return "adapter"
    return "plain" if ours.outcome == "failed" and found.outcome == "passed" else "adapter"


def _said(finding: Finding, *, allowed: bool) -> str:
    if finding.outcome == "passed":
        return "measured, exact"
    if not allowed:
        return "forbidden by the family's record: separate forwards are used"
    if finding.outcome == "does not apply":
        return f"{finding.line}: separate forwards are used"
    return f"measured, not exact: separate forwards are used ({finding.line})"
