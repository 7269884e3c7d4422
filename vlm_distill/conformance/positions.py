"""The check of position ids, on every axis, against those that reach the decoder of the model alone."""

import inspect
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from vlm_distill.conformance.findings import Finding, failed, passed
from vlm_distill.conformance.oracle import continued, keeping, own_inputs
from vlm_distill.conformance.probes import Probe, response_batch
from vlm_distill.forward import unshared_hidden
from vlm_distill.models.layers import decoder_of


@torch.no_grad()
def positions(probe: Probe) -> Finding:
    """Positions behind padding are the model's own from the first token on, on every axis."""
    made: list[tuple[Tensor, Tensor]] = []
    adapter = probe.loaded.adapter

    def noted(model: nn.Module, tokens: Tensor, mask: Tensor, position_ids: Tensor, *rest: Any) -> Tensor:
        made.append((position_ids, mask))
        return adapter.backbone(model, tokens, mask, position_ids, *rest)

    noting = replace(probe.loaded, adapter=replace(adapter, backbone=noted))
    unshared_hidden(noting, probe.prompts, response_batch(probe, probe.pairs))
    [(found, mask)] = made
    for number, (row, ids) in enumerate(probe.pairs):
        ours = _from_zero(found[..., number, :][..., mask[number].bool()])
        theirs = _from_zero(own_positions(probe, row, ids)[..., : ours.shape[-1]])
        if not _equal(ours, theirs):
            return failed(
                f"positions, prompt {row}: expected those of the model's own forward, {_axes(theirs)}, the "
                f"last {theirs[..., -1].tolist()}; got {_axes(ours)}, the last {ours[..., -1].tolist()}"
            )
    return passed()


def own_positions(probe: Probe, row: int, ids: tuple[int, ...]) -> Int[Tensor, "*axes t"]:
    """Return the positions that reach the decoder; who is given none counts the tokens."""
    seen: list[Any] = []
    model: Any = probe.loaded.model
    decoder = decoder_of(model)
    names = list(inspect.signature(decoder.forward).parameters)

    def note(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append({**dict(zip(names, arguments, strict=False)), **named}.get("position_ids"))

    inputs = continued(probe.loaded, own_inputs(probe, row), ids)
    with decoder.register_forward_pre_hook(note, with_kwargs=True):
        model(**inputs, **keeping(model, 1))
    if not seen or seen[-1] is None:
        return torch.arange(inputs["input_ids"].shape[1], device=probe.loaded.device)
    positions: Tensor = seen[-1]
    # [*axes, 1, t]; Qwen3-Omni gives whole numbers as floats.
    return positions[..., 0, :].long()


def _from_zero(positions: Int[Tensor, "*axes t"]) -> Int[Tensor, "*axes t"]:
    """Return positions as distances from the first token: some families count from one."""
    return positions - positions[..., :1]


def _equal(found: Int[Tensor, "*axes t"], expected: Int[Tensor, "*other s"]) -> bool:
    """Compare positions; those of one axis are those of all, and more than three begin with the text's."""
    one, other = (value[-3:] if value.ndim > 1 else value[None] for value in (found, expected))
    return bool((one == other).all()) if one.shape[-1] == other.shape[-1] else False


def _axes(positions: Tensor) -> str:
    return f"{len(positions)} axes" if positions.ndim > 1 else "1 axis"
