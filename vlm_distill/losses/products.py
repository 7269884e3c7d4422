"""The product of hidden states and an output layer: factors in the model's precision, sums in float32.

Logits rounded to bfloat16 are wrong by up to .03, and the gradients of a divergence then by 1 %.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

WEIGHTS_PER_TILE = 2**20
"""Weights turned into float32 at a time, where the device cannot write the product in float32."""


def precision_of(weight: Tensor) -> torch.dtype:
    """Return the precision of a product's factors: that of autocast, where it is on."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


@torch.no_grad()
def float32_product(
    hidden: Float[Tensor, "row width"], weight: Float[Tensor, "column width"]
) -> Float[Tensor, "row column"]:
    """Return hidden @ weight.T in float32 at least, without gradient, on the device of the weight."""
    precision = precision_of(weight)
    hidden = hidden.to(weight.device, precision)
    with torch.autocast(weight.device.type, enabled=False):
        if precision.itemsize >= torch.float32.itemsize:
            return linear(hidden, weight.to(precision))
        if weight.is_cuda:
            return torch.mm(hidden, weight.to(precision).T, out_dtype=torch.float32)
        product = hidden.new_empty(len(hidden), len(weight), dtype=torch.float32)
        size, hidden = max(1, WEIGHTS_PER_TILE // weight.shape[1]), hidden.float()
        for tile, columns in zip(weight.split(size), product.split(size, dim=1), strict=True):
            torch.mm(hidden, tile.to(precision).float().T, out=columns)
    return product
