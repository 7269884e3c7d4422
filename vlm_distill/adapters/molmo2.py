"""Molmo 2: each token of a picture pools patches that are named by their number, counted over a prompt.

In a batch they are counted over all prompts.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import Cache

from vlm_distill.adapters.adapter import Adapter
from vlm_distill.adapters.body import hidden_states

POOLING = "image_token_pooling"


def pooling_states(
    model: nn.Module,
    tokens: Int[Tensor, "b t"] | Float[Tensor, "b t width"],
    attention_mask: Int[Tensor, "b seen"] | Shaped[Tensor, "b 1 t t"],
    position_ids: Int[Tensor, "*axes b t"],
    extras: Mapping[str, Tensor],
    cache: Cache | None,
) -> Float[Tensor, "b t width"]:
    """Return what `hidden_states` does, of patches that are counted over the batch."""
    # A selection of prompts without pictures still carries their empty tensors.
    if len(extras.get(POOLING, ())):
        extras = {**extras, POOLING: _counted_over_batch(extras)}
    return hidden_states(model, tokens, attention_mask, position_ids, extras, cache)


def _counted_over_batch(extras: Mapping[str, Tensor]) -> Int[Tensor, "token patch"]:
    """Return the patches that each token pools; -1, which is none, stays."""
    pooling, grids = extras[POOLING], extras["image_grids"]
    # A picture is seen small and in crops: rows and columns of tokens of both.
    num_tokens = grids[:, 0] * grids[:, 1] + grids[:, 2] * grids[:, 3]
    num_patches = extras["image_num_crops"] * extras["pixel_values"].shape[1]
    picture = torch.arange(len(grids), device=pooling.device).repeat_interleave(num_tokens)  # [token]
    none = pooling < 0
    last = torch.iinfo(pooling.dtype).max
    lowest = pooling.masked_fill(none, last).amin(dim=1)
    # Where a picture's patches begin in its prompt: the small view has them all, from the first on.
    first = lowest.new_full((len(grids),), last).scatter_reduce(0, picture, lowest, "amin")
    begin = num_patches.cumsum(dim=0) - num_patches
    return torch.where(none, pooling, pooling + (begin - first)[picture, None])


MOLMO2 = Adapter(name="molmo2", model_types=("molmo2",), backbone=pooling_states)
