"""Divergences between two models from their final hidden states, never with the logits of all rows at once.

`linear_divergence` walks over chunks of rows. Both output layers, the divergences and the gradients of the
student's hidden states, weight and bias are computed in the forward pass, and only the gradients stay. A
chunk may cut a response, so whatever depends on a whole response is a function in its `RowGroup`, computed
after a first pass without gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlm_distill.losses.rows import MemberLogits, Result, RowGroup, Rows, label_log_probs, row_chunks


def linear_divergence(
    student: Rows,
    teacher: Rows | None,
    *,
    groups: Sequence[RowGroup],
    labels: Int[Tensor, " row"],
    byte_budget: int,
) -> Result:
    """Return the weighted sum of the groups' divergences over rows of hidden states.

    Gradients flow to the student's hidden states, weight and bias where they require them, never to the
    teacher, whose logits move to the student's device. `labels` are token ids of the student. `byte_budget`
    bounds the memory in bytes that grows with rows times vocabulary; a chunk has at least one row. Without
    rows the loss is 0 and keeps its gradient path. The loss can be differentiated once.
    """
    columns = student.columns(labels)
    chunks = row_chunks(student, byte_budget)
    if not all(group.is_resolved for group in groups):
        student_log_probs = _label_pass(student, columns=columns, chunks=chunks)
        teacher_log_probs = None if teacher is None else _label_pass(teacher, columns=columns, chunks=chunks)
        groups = [group.resolve(student_log_probs, teacher_log_probs) for group in groups]
    gradients = _Gradients(student)
    pieces = []
    for chunk, members in zip(chunks, _members(groups, chunks), strict=True):
        with torch.no_grad():
            projected = student.project(chunk)
            precision = projected.dtype
            # The leaf is in float32: a float16 leaf would lose small gradients before they can be scaled.
            projected = projected.to(torch.promote_types(precision, torch.float32))
        with torch.set_grad_enabled(gradients.wanted):
            piece = _run_chunk(
                student.logits(projected.requires_grad_(gradients.wanted)),
                _teacher_logits(teacher, chunk, projected.device),
                groups=groups,
                members=members,
                chunk=chunk,
                columns=columns[chunk],
            )
        gradients.add(projected, piece.loss, chunk=chunk, precision=precision)
        pieces.append(piece)
    return _assemble(pieces, gradients, num_groups=len(groups), has_teacher=teacher is not None)


def _members(groups: Sequence[RowGroup], chunks: Sequence[slice]) -> list[list[slice]]:
    """Return, per chunk and group, which of the group's rows lie in the chunk.

    One transfer to the host for all of them: boolean selection would wait for the device once per chunk and
    group.
    """
    if not groups or not chunks:
        return [[] for _ in chunks]
    edges = torch.tensor([chunk.start for chunk in chunks] + [chunks[-1].stop], device=groups[0].rows.device)
    positions = torch.stack([torch.searchsorted(group.rows, edges) for group in groups])
    disordered = torch.stack([(group.rows.diff() <= 0).sum() for group in groups])
    *bounds, disorder = torch.cat([positions, disordered[:, None]], dim=1).T.tolist()
    assert not any(disorder), "rows of a group must ascend without repetition"
    assert bounds[-1] == [len(group.rows) for group in groups], "a group has a row that does not exist"
    return [
        [slice(start, stop) for start, stop in zip(starts, stops, strict=True)]
        for starts, stops in pairwise(bounds)
    ]


@torch.no_grad()
def _teacher_logits(
    teacher: Rows | None, chunk: slice, device: torch.device
) -> Float[Tensor, "chunk column"] | None:
    return None if teacher is None else teacher.logits(teacher.project(chunk)).to(device)


@torch.no_grad()
def _label_pass(
    rows: Rows, *, columns: Int[Tensor, " row"], chunks: Sequence[slice]
) -> Float[Tensor, " row"]:
    """Return the label log-probabilities of one model for all rows."""
    pieces = [
        label_log_probs(rows.logits(rows.project(chunk)).to(columns.device), columns[chunk])
        for chunk in (slice(0, 0), *chunks)
    ]
    return torch.cat(pieces)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """A chunk's share of the result; only `loss` is still attached to the chunk's logits.

    `value` is `loss` without the groups that only count in the gradient.
    """

    loss: Float[Tensor, ""]
    value: Float[Tensor, ""]
    row_values: list[Tensor]
    student_log_probs: Float[Tensor, " chunk"]
    teacher_log_probs: Float[Tensor, " chunk"] | None


def _run_chunk(
    student_logits: Float[Tensor, "chunk column"],
    teacher_logits: Float[Tensor, "chunk column"] | None,
    *,
    groups: Sequence[RowGroup],
    members: Sequence[slice],
    chunk: slice,
    columns: Int[Tensor, " chunk"],
) -> _Piece:
    logits = MemberLogits(
        student=student_logits,
        student_label_log_probs=label_log_probs(student_logits, columns),
        teacher=teacher_logits,
        teacher_label_log_probs=None if teacher_logits is None else label_log_probs(teacher_logits, columns),
    )
    loss = value = student_logits.new_zeros(())
    row_values = []
    for group, member in zip(groups, members, strict=True):
        # A group that has every row of the chunk needs no copy of its logits.
        whole = member.stop - member.start == len(student_logits)
        values = group.values(
            member, logits.select(slice(None) if whole else group.rows[member] - chunk.start)
        )
        assert isinstance(group.weight, Tensor)
        weighted = (group.weight[member] * values).sum()
        loss = loss + weighted
        value = value if group.gradient_only else value + weighted.detach()
        row_values.append(values.detach())
    return _Piece(
        loss=loss,
        value=value,
        row_values=row_values,
        student_log_probs=logits.student_label_log_probs.detach(),
        teacher_log_probs=logits.teacher_label_log_probs,
    )


class _Gradients:
    """Gradients of the student's tensors, summed over chunks in float32 at least; None if not needed."""

    def __init__(self, student: Rows) -> None:
        self.student = student
        self.hidden = _buffer(student.hidden)
        self.weight = _buffer(student.head.weight)
        self.bias = None if student.head.bias is None else _buffer(student.head.bias)

    @property
    def wanted(self) -> bool:
        return any(buffer is not None for buffer in (self.hidden, self.weight, self.bias))

    @torch.no_grad()
    def add(
        self,
        projected: Float[Tensor, "chunk projected"],
        loss: Float[Tensor, ""],
        *,
        chunk: slice,
        precision: torch.dtype,
    ) -> None:
        """Add what the chunk's loss contributes and free the chunk's graph; products are in `precision`."""
        if not loss.requires_grad:
            return
        (gradient,) = torch.autograd.grad(loss, projected)
        vocabulary = self.student.vocabulary
        columns = vocabulary if isinstance(vocabulary, slice) else slice(None)
        if self.bias is not None:
            self.bias[columns] += gradient.sum(dim=0, dtype=self.bias.dtype)
        scale = _fitting_scale(gradient) if precision == torch.float16 else None
        gradient = (gradient if scale is None else gradient * scale).to(precision)
        if self.hidden is not None:
            product = gradient @ self.student.head.weight[columns]
            self.hidden[chunk] = product if scale is None else product.to(self.hidden.dtype) / scale
        if self.weight is not None:
            _add_product(self.weight[columns], gradient, self.student.hidden[chunk], scale=scale)

    def attach(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Return `loss` with the collected gradients behind it."""
        head = self.student.head
        pairs = [(self.student.hidden, self.hidden), (head.weight, self.weight), (head.bias, self.bias)]
        known = [(tensor, buffer) for tensor, buffer in pairs if buffer is not None]
        if not known:
            return loss
        tensors, buffers = zip(*known, strict=True)
        attached: Tensor = _KnownGradients.apply(loss, *tensors, *buffers)
        return attached


def _buffer(tensor: Tensor) -> Tensor | None:
    if not (torch.is_grad_enabled() and tensor.requires_grad):
        return None
    return torch.zeros_like(
        tensor, dtype=torch.promote_types(tensor.dtype, torch.float32), requires_grad=False
    )


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

    Where the precisions agree, no second tensor of that size is made.
    """
    if scale is not None:
        total.addcdiv_(gradient.T @ hidden, scale)  # computed in the precision of `total`
    elif total.dtype == gradient.dtype == hidden.dtype:
        total.addmm_(gradient.T, hidden)
    else:
        total += gradient.T @ hidden


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
        # Out of place: with retain_graph the same gradients are read again.
        scaled = [
            (gradient * upstream).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return None, *scaled, *(None for _ in scaled)


def _assemble(
    pieces: Sequence[_Piece], gradients: _Gradients, *, num_groups: int, has_teacher: bool
) -> Result:
    hidden = gradients.student.hidden
    empty = hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
    teacher_pieces = [piece.teacher_log_probs for piece in pieces if piece.teacher_log_probs is not None]
    return Result(
        loss=gradients.attach(torch.stack([empty.sum(), *(piece.value for piece in pieces)]).sum()),
        row_values=tuple(
            torch.cat([empty, *(piece.row_values[index] for piece in pieces)]) for index in range(num_groups)
        ),
        student_label_log_probs=torch.cat([empty, *(piece.student_log_probs for piece in pieces)]),
        teacher_label_log_probs=torch.cat([empty, *teacher_pieces]) if has_teacher else None,
    )
