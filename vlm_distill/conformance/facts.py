"""What a model can do, measured on a copy of it: a family's record may only forbid it.

The adapter that comes out is what all checks are made with, and what a run uses.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch

from vlm_distill.adapters.adapter import Adapter, LoadedModel
from vlm_distill.adapters.foreign import blame
from vlm_distill.adapters.head import plain_head
from vlm_distill.conformance.checks import CHECKS, find
from vlm_distill.conformance.findings import Finding, compare_values, does_not_apply
from vlm_distill.conformance.logits import own_head
from vlm_distill.conformance.probes import Probe, probe_of

HeadKind: TypeAlias = Literal["adapter", "plain"]
WAYS = {"prefix_shared": "prefix sharing", "one_sequence": "one sequence"}
"""The checks of the ways in which responses share their prompt, and how these are called."""
TWO = ((0, 2), (0, 3), (1, 2))
"""The responses on which padding is measured: to the first two prompts."""


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
    return measured(loaded)[0]


def measured(loaded: LoadedModel) -> tuple[Facts, dict[str, Finding], Probe]:
    """Return the same, what the checks of the ways to share a prompt have found, and the probe they used.

    A way that is not exact is not used, which is no failure of the model.
    """
    kind = fitting_head(loaded)
    fitted = replace(loaded, adapter=replace(loaded.adapter, head=plain_head)) if kind == "plain" else loaded
    padded = find(CHECKS["padding"], _first_two(fitted)).outcome == "passed"
    if not padded:
        fitted = replace(fitted, adapter=replace(fitted.adapter, supports_left_padding=False))
    probe = probe_of(fitted)
    findings = {name: find(CHECKS[name], probe) for name in WAYS}
    adapter = loaded.adapter
    lines = {
        "output layer": "measured, as the config says"
        if kind == "adapter"
        else "measured, without the scale and soft cap of the config, which this class does not apply",
        "padding": "measured, exact on the left"
        if padded
        else "measured, not exact on the left: rows are padded on the right, prompts answered one at a time",
        "prefix sharing": _said(findings["prefix_shared"], allowed=adapter.supports_prefix_sharing),
        "one sequence": _said(findings["one_sequence"], allowed=adapter.supports_one_sequence),
    }
    facts = Facts(
        head=kind,
        prefix_sharing=findings["prefix_shared"].outcome == "passed",
        one_sequence=findings["one_sequence"].outcome == "passed",
        left_padding=padded,
        lines=lines,
    )
    failed = [name for name, one in findings.items() if one.outcome == "failed"]
    inexact = {name: does_not_apply(lines[WAYS[name]]) for name in failed}
    return facts, {**findings, **inexact}, probe


def _first_two(loaded: LoadedModel) -> Probe:
    """Return a probe of the first two prompts."""
    probe = probe_of(loaded, lengths=TWO)
    return replace(probe, examples=probe.examples[:2])


@torch.no_grad()
def fitting_head(loaded: LoadedModel) -> HeadKind:
    """Return the output layer that gives the model's own logits; that of the adapter where none does."""
    try:
        hidden, expected = own_head(probe_of(loaded))
        found = compare_values("without scale", plain_head(loaded.model).logits(hidden), expected)
        ours = compare_values("with scale", loaded.head.logits(hidden), expected)
    # Whatever the family's code raises is found again by the checks, and said there.
    except Exception as error:
        blame(error)
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
