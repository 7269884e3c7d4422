"""Positions of tokens: counted, or on several axes as the model's own function gives them."""

import inspect
from collections.abc import Mapping
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn


def own_positions(
    model: nn.Module,
    input_ids: Int[Tensor, "b t"],
    attention_mask: Int[Tensor, "b t"],
    extras: Mapping[str, Tensor],
) -> Int[Tensor, "*axes b t"]:
    """Return the positions of the model's own `get_rope_index`, of others `sequential_positions`.

    They are computed for every forward, so that what these models remember between calls of their own is
    neither read nor written.
    """
    base: Any = model.base_model
    if not hasattr(base, "get_rope_index"):
        return sequential_positions(model, input_ids, attention_mask, extras)
    named = inspect.signature(base.get_rope_index).parameters
    # The function reads every row and grid as Python numbers: on the CPU, one copy each.
    given = {**extras, "input_ids": input_ids, "attention_mask": attention_mask}
    known = {name: given[name].cpu() for name in named if name in given}
    if "mm_token_type_ids" in named and "mm_token_type_ids" not in known:
        # 1 is an image, as processors write it.
        known["mm_token_type_ids"] = (known["input_ids"] == base.config.image_token_id).int()
    positions: Tensor = base.get_rope_index(**known)[0]
    # [axis, b, t]; Qwen3-Omni gives whole numbers as floats.
    return positions.to(input_ids)


def sequential_positions(
    model: nn.Module,
    input_ids: Int[Tensor, "b t"],
    attention_mask: Int[Tensor, "b t"],
    extras: Mapping[str, Tensor],
) -> Int[Tensor, "b t"]:
    """Return positions that count the attended tokens of each row, whatever stands left of them."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
