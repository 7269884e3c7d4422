"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images of any size, and rotary positions on three axes (M-RoPE).

Prompts and images go the generic way of chat.py: a picture gives as many rows of `pixel_values` as its size
asks for, and one row of `image_grid_thw`. Only positions differ. They are computed here for every forward, so
the `rope_deltas` that these models keep between calls of their own are neither read nor written. Videos are
no part of an example.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from vlm_distill.adapters.adapter import Adapter


def multi_axis_positions(
    model: nn.Module,
    input_ids: Int[Tensor, "b t"],
    attention_mask: Int[Tensor, "b t"],
    extras: Mapping[str, Tensor],
) -> Int[Tensor, "axis b t"]:
    """Return time, height and width of every attended token (Qwen2-VL, arXiv:2409.12191, Sec. 2.1).

    The three are equal on text. An image moves the text behind it by the larger of its height and width.
    """
    loaded: Any = model
    base = loaded.base_model
    # The model's own function reads every row and grid as Python numbers: on the CPU, one copy each.
    input_ids_on_cpu = input_ids.cpu()
    grids = extras.get("image_grid_thw")
    positions: Tensor = base.get_rope_index(
        input_ids_on_cpu,
        # 1 is an image, as processors write it.
        mm_token_type_ids=(input_ids_on_cpu == base.config.image_token_id).int(),
        image_grid_thw=None if grids is None else grids.cpu(),
        attention_mask=attention_mask.cpu(),
    )[0]  # [axis, b, t]
    return positions.to(input_ids.device)


QWEN_VL = Adapter(
    name="qwen_vl",
    model_types=("qwen2_vl", "qwen2_5_vl"),
    position_ids=multi_axis_positions,
    # The projector lies inside the tower.
    parts={
        "vision": ("model.visual.",),
        "projector": ("model.visual.merger.",),
        "language": ("model.language_model.", "lm_head."),
    },
)
QWEN3_VL = replace(
    QWEN_VL,
    name="qwen3_vl",
    model_types=("qwen3_vl",),
    parts={
        **QWEN_VL.parts,
        "projector": ("model.visual.merger.", "model.visual.deepstack_merger_list."),
    },
)
