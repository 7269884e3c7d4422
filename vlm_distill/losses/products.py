"""The product of hidden states and an output layer: factors in the model's precision, sums in float32.

Logits rounded to bfloat16 are wrong by up to .03, and the gradients of a divergence then by 1 %.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

WEIGHTS_PER_TILE = 2**20
"""Weights turned into float32 at a time, where the device cannot write the product in float32."""


def precision_of(weight: Tensor) -> torch.dtype:
    """Return the precision of a product's factors: that of autocast, where it is on."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def float32_product(
    hidden: Float[Tensor, "row width"], weight: Float[Tensor, "column width"]
) -> Float[Tensor, "row column"]:
    """Return hidden @ weight.T in float32 at least, on the device of the weight."""
    product: Tensor = _Float32Product.apply(hidden.to(weight.device), weight, precision_of(weight))
    return product


class _Float32Product(torch.autograd.Function):
    """apply(hidden, weight, precision)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, precision: torch.dtype) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.precision = precision
        with torch.autocast(weight.device.type, enabled=False):
            return _product(hidden.to(precision), weight, precision)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        upstream = upstream.to(ctx.precision)
        for_hidden = for_weight = None
        if ctx.needs_input_grad[0]:
            for_hidden = (upstream @ weight.to(ctx.precision)).to(hidden.dtype)
        if ctx.needs_input_grad[1]:
            for_weight = (upstream.T @ hidden.to(ctx.precision)).to(weight.dtype)
        return for_hidden, for_weight, None


def _product(hidden: Tensor, weight: Tensor, precision: torch.dtype) -> Tensor:
    if precision.itemsize >= torch.float32.itemsize:
        return linear(hidden, weight.to(precision))
    if weight.is_cuda:
        return torch.mm(hidden, weight.to(precision).T, out_dtype=torch.float32)
    product = hidden.new_empty(len(hidden), len(weight), dtype=torch.float32)
    size, hidden = max(1, WEIGHTS_PER_TILE // weight.shape[1]), hidden.float()
    for tile, columns in zip(weight.split(size), product.split(size, dim=1), strict=True):
        torch.mm(hidden, tile.to(precision).float().T, out=columns)
    return product
