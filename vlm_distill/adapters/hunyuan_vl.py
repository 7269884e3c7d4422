"""HunYuan-VL: positions on axes of which the last one numbers pictures.

Its model numbers the pictures of a whole batch in one go, so that a row's positions would depend on others.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor, nn

from vlm_distill.adapters.adapter import Adapter
from vlm_distill.adapters.positions import own_positions


def positions_alone(
    model: nn.Module,
    input_ids: Int[Tensor, "b t"],
    attention_mask: Int[Tensor, "b t"],
    extras: Mapping[str, Tensor],
) -> Int[Tensor, "axis b t"]:
    """Return the positions that the model gives each row without the others."""
    types = extras["mm_token_type_ids"]
    # A picture is a run of ones behind the mark that begins it.
    counts = (types.diff(dim=1) == 1).sum(dim=1).tolist()
    grids = extras.get("image_grid_thw", types.new_zeros((0, 3))).split(counts)
    rows = [
        own_positions(model, ids, mask, {"mm_token_type_ids": of_row, "image_grid_thw": grid})
        for ids, mask, of_row, grid in zip(
            input_ids.split(1), attention_mask.split(1), types.split(1), grids, strict=True
        )
    ]
    return torch.cat(rows, dim=1)


HUNYUAN_VL = Adapter(name="hunyuan_vl", model_types=("hunyuan_vl",), position_ids=positions_alone)
