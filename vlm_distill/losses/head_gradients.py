"""The gradients of the student's hidden states, weight and bias, collected over chunks of rows.

Accumulating the gradient of the weight is bound by memory, not by arithmetic: it reads and writes the whole
of it once per chunk, which pays from about 100 rows.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlm_distill.losses.rows import BLOCK_LOGITS, Rows


class HeadGradients:
    """Gradients of the student's tensors, summed over chunks in float32 at least; None if not needed.

    Make it with gradients enabled where they are wanted, and fill it without.
    """

    def __init__(self, student: Rows, *, num_chunks: int) -> None:
        self.student = student
        head = student.head
        self._part = student.compared.part
        # The product of a single chunk is the sum. Not float16, which needs its scale till the end.
        self._is_sum = num_chunks <= 1 and head.weight.dtype != torch.float16
        self._wants_weight = _wants(head.weight)
        self.weight: Tensor | None = None
        self.hidden = _zeros(student.hidden) if _wants(student.hidden) else None
        self.bias = _zeros(head.bias) if head.bias is not None and _wants(head.bias) else None

    @property
    def wanted(self) -> bool:
        return self._wants_weight or self.hidden is not None or self.bias is not None

    def add_bias(self, gradient: Float[Tensor, "block projected"]) -> None:
        """Add what a block contributes to the bias, before the gradient is rounded."""
        if self.bias is not None:
            self._part(self.bias).add_(gradient.sum(dim=0, dtype=self.bias.dtype))

    def add(self, gradient: Float[Tensor, "chunk projected"], chunk: slice, *, weight: Tensor) -> None:
        """Add what a chunk contributes to hidden states and weight; may overwrite `gradient`.

        `weight` is the output layer in the precision of the products.
        """
        if self.hidden is None and not self._wants_weight:
            return
        precision = weight.dtype
        scale = _fitting_scale(gradient) if precision == torch.float16 else None
        gradient = (gradient if scale is None else gradient.mul_(scale)).to(precision)
        if self.hidden is not None:
            product = gradient @ self._part(weight)
            self.hidden[chunk] = product if scale is None else product.to(self.hidden.dtype) / scale
        if self._wants_weight:
            hidden = self.student.hidden[chunk].to(gradient.device, gradient.dtype)
            self._add_weight(gradient, hidden, scale=scale)

    def _add_weight(self, gradient: Tensor, hidden: Tensor, *, scale: Tensor | None) -> None:
        """Add gradient.T @ hidden / scale. The sum is made here, where the teacher's logits are gone."""
        if self.weight is None:
            weight = self.student.head.weight
            dtype = weight.dtype if self._is_sum else _least_float32(weight.dtype)
            self.weight = torch.zeros_like(weight, dtype=dtype)
        _add_product(self._part(self.weight), gradient, hidden, scale=scale)

    def attach(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Return `loss` with the collected gradients behind it; they belong to it from then on."""
        head = self.student.head
        if self.weight is None and self._wants_weight:
            self.weight = torch.zeros_like(head.weight, requires_grad=False)
        pairs = [(self.student.hidden, self.hidden), (head.weight, self.weight), (head.bias, self.bias)]
        known = [(tensor, buffer) for tensor, buffer in pairs if buffer is not None]
        if not known:
            return loss
        tensors, buffers = zip(*known, strict=True)
        attached: Tensor = _KnownGradients.apply(loss, *tensors, *buffers)
        return attached


def _wants(tensor: Tensor) -> bool:
    return torch.is_grad_enabled() and tensor.requires_grad


def _zeros(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor, dtype=_least_float32(tensor.dtype), requires_grad=False)


def _least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _fitting_scale(gradient: Float[Tensor, "chunk projected"]) -> Float[Tensor, ""]:
    """Return the power of two that fits a gradient into float16, found without waiting for the device.

    Scaled, the largest sum of magnitudes in any row or column is in [32, 64): far above what float16 rounds
    to zero, and low enough for the products, which are at most that sum times the largest factor.
    """
    rows, columns = (torch.linalg.vector_norm(gradient, 1, dim=dim).amax() for dim in (1, 0))
    exponent = torch.frexp(torch.maximum(rows, columns)).exponent
    return torch.ldexp(torch.ones_like(rows), (6 - exponent).clamp(-100, 100))


def _add_product(total: Tensor, gradient: Tensor, hidden: Tensor, *, scale: Tensor | None) -> None:
    """Add gradient.T @ hidden / scale to `total`.

    Where the precisions agree, no second tensor of that size is made, else one of some columns at a time.
    """
    if scale is None and total.dtype == gradient.dtype == hidden.dtype:
        total.addmm_(gradient.T, hidden)
        return
    size = max(1, BLOCK_LOGITS // hidden.shape[1])
    for part, columns in zip(total.split(size), gradient.split(size, dim=1), strict=True):
        product = columns.T @ hidden
        # Computed in the precision of `total`.
        part += product if scale is None else product.to(total.dtype).div_(scale)


class _KnownGradients(torch.autograd.Function):
    """A scalar whose gradients for some tensors are known: apply(scalar, *tensors, *gradients)."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *tensors_and_gradients: Tensor) -> Tensor:
        count = len(tensors_and_gradients) // 2
        ctx.dtypes = [tensor.dtype for tensor in tensors_and_gradients[:count]]
        ctx.save_for_backward(*tensors_and_gradients[count:])
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # With retain_graph the same gradients are read again. Without, they are handed over as they are: the
        # head's is the largest tensor of a step, and the engine takes it as the parameter's without a copy.
        is_last = not torch._C._autograd._get_current_graph_task_keep_graph()
        # A number on the CPU can be read without waiting.
        is_one = upstream.device.type == "cpu" and upstream.item() == 1.0
        scaled = []
        for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True):
            if not is_last:
                gradient = gradient * upstream
            elif not is_one:
                gradient.mul_(upstream)
            scaled.append(gradient.to(dtype))
        return None, *scaled, *(None for _ in scaled)
