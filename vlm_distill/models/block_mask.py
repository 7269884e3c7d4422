"""Attention masks that say for every query which keys it sees: which models read them, and in which form."""

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn

from vlm_distill.adapters.body import dtype_of
from vlm_distill.models.layers import decoder_of


def takes_block_mask(model: nn.Module) -> bool:
    """Return whether the language model takes a mask of queries by keys instead of one of tokens.

    Fused kernels other than PyTorch's do not, models that make biases out of the mask of tokens neither,
    layers with a window or chunks would look beyond them, and recurrent ones read no mask at all.
    """
    decoder = decoder_of(model)
    config = decoder.config
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    return (
        getattr(decoder, "_supports_attention_backend", False)
        and not getattr(decoder, "_is_stateful", False)
        and config._attn_implementation in ("eager", "sdpa")
        and set(layers) == {"full_attention"}
        and getattr(config, "sliding_window", None) is None
        # A class that makes masks of its own reads prompts or pictures both ways.
        and not hasattr(model, "create_masks_for_generate")
    )


def block_mask(model: nn.Module, allowed: Bool[Tensor, "b query key"]) -> Shaped[Tensor, "b 1 query key"]:
    """Return the mask as the model's attention reads it: eager attention adds it to its scores."""
    mask = allowed.unsqueeze(1)  # [b, 1, query, key]: the same for every head
    if decoder_of(model).config._attn_implementation != "eager":
        return mask
    dtype = dtype_of(model)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
