"""Attention masks that say for every query which keys it sees: which models read them, and in which form."""

from typing import Any

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn


def takes_block_mask(model: nn.Module) -> bool:
    """Return whether the language model takes a mask of queries by keys instead of one of tokens.

    Fused kernels other than PyTorch's do not, models that make biases out of the mask of tokens neither,
    layers with a window or chunks would look beyond them, and recurrent ones read no mask at all.
    """
    loaded: Any = model
    decoder = loaded.get_decoder() if hasattr(loaded, "get_decoder") else loaded.base_model
    config = decoder.config
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    return (
        getattr(decoder, "_supports_attention_backend", False)
        and not getattr(decoder, "_is_stateful", False)
        and config._attn_implementation in ("eager", "sdpa")
        and set(layers) == {"full_attention"}
        and getattr(config, "sliding_window", None) is None
    )


def block_mask(model: nn.Module, allowed: Bool[Tensor, "b query key"]) -> Shaped[Tensor, "b 1 query key"]:
    """Return the mask as the model's attention reads it: eager attention adds it to its scores."""
    loaded: Any = model
    decoder = loaded.get_decoder() if hasattr(loaded, "get_decoder") else loaded.base_model
    mask = allowed.unsqueeze(1)
    if decoder.config._attn_implementation != "eager":
        return mask
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
