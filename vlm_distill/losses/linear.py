"""Divergences between two models from their final hidden states, never with the logits of all rows at once.

`linear_divergence` walks over chunks of rows, as long as the budget allows because every chunk reads both
output layers, and inside a chunk over blocks of rows, short enough for the caches. Both output layers, the
divergences and the gradients of the student's hidden states, weight and bias are computed in the forward
pass, and only the gradients stay. A chunk may cut a response, so whatever depends on a whole response is a
function in its `RowGroup`, computed from the label log-probabilities of all rows: in a first pass, unless one
chunk has all rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_distill.losses.divergences import NegativeLogLikelihood, SampledReverseKL, SkewKL, SkewReverseKL
from vlm_distill.losses.gradients import label_value_and_gradient, value_and_gradient
from vlm_distill.losses.head_gradients import HeadGradients
from vlm_distill.losses.rows import (
    Result,
    RowGroup,
    Rows,
    group_members,
    label_log_probs,
    row_blocks,
    row_chunks,
)
from vlm_distill.losses.sparse import LabelRows, TeacherRows, TopRows, bucket_value_and_gradient


def linear_divergence(
    student: Rows,
    teacher: TeacherRows | None,
    *,
    groups: Sequence[RowGroup],
    labels: Int[Tensor, " row"],
    byte_budget: int,
) -> Result:
    """Return the weighted sum of the groups' divergences over rows of hidden states.

    Gradients flow to the student's hidden states, weight and bias where they require them, never to the
    teacher, whose logits move to the student's device. `labels` are token ids of the student. `byte_budget`
    bounds the memory in bytes that grows with rows times vocabulary; a chunk has at least one row. Without
    rows the loss is 0 and keeps its gradient path. The loss can be differentiated once. A teacher that is
    known in part (sparse.py) serves what its part shows.
    """
    chunks = row_chunks(student, byte_budget)
    gradients = HeadGradients(student, num_chunks=len(chunks))
    with torch.no_grad():
        columns = student.columns(labels)
        # Once, not per chunk: autocast would keep no cast of a part of a weight.
        student = student.in_precision()
        teacher = teacher.in_precision() if isinstance(teacher, Rows) else teacher
        models = _Models(student=student, teacher=teacher, columns=columns)
        plan = _plan(groups, chunks, [row_blocks(student, chunk, byte_budget) for chunk in chunks])
        if len(plan) != 1:
            groups = _resolve(groups, models, plan)
        outputs = _Outputs(student.hidden, groups, has_teacher=teacher is not None)
        for part in plan:
            _run_chunk(models, part, groups, outputs, gradients)
    return outputs.result(gradients.attach(outputs.loss))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Models:
    """Both models' rows and the labels' columns."""

    student: Rows
    teacher: TeacherRows | None
    columns: Int[Tensor, " row"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """A chunk, its blocks and, per block and group, which of the group's rows lie in the block."""

    chunk: slice
    blocks: list[slice]
    members: list[list[slice]]

    def within(self, block: slice) -> slice:
        return slice(block.start - self.chunk.start, block.stop - self.chunk.start)


def _plan(
    groups: Sequence[RowGroup], chunks: Sequence[slice], blocks_of_chunks: Sequence[list[slice]]
) -> list[_Part]:
    members = iter(group_members(groups, [block for blocks in blocks_of_chunks for block in blocks]))
    return [
        _Part(chunk=chunk, blocks=blocks, members=[next(members) for _ in blocks])
        for chunk, blocks in zip(chunks, blocks_of_chunks, strict=True)
    ]


def _resolve(groups: Sequence[RowGroup], models: _Models, plan: Sequence[_Part]) -> list[RowGroup]:
    """Return the groups with functions replaced by tensors, after a pass over all chunks if there are any."""
    if all(group.is_resolved for group in groups):
        return list(groups)
    student, teacher = models.student, models.teacher
    empty = _no_values(student.hidden)
    own = torch.cat([empty, *(_labels_of(student, student.project(p.chunk), p, models) for p in plan)])
    other = [_teacher_labels(models, _projected(teacher, p.chunk), p) for p in plan]
    others = None if teacher is None else torch.cat([empty, *(one for one in other if one is not None)])
    return [group.resolve(own, others) for group in groups]


def _projected(teacher: TeacherRows | None, chunk: slice) -> Float[Tensor, "chunk projected"] | None:
    return teacher.project(chunk) if isinstance(teacher, Rows) else None


def _teacher_labels(
    models: _Models, projected: Float[Tensor, "chunk projected"] | None, part: _Part
) -> Float[Tensor, " chunk"] | None:
    """Return the teacher's label log-probabilities for a chunk, `projected` if its rows are whole."""
    teacher = models.teacher
    if isinstance(teacher, TopRows | LabelRows):
        return teacher.label_log_probs[part.chunk].to(_no_values(models.student.hidden))
    return None if teacher is None or projected is None else _labels_of(teacher, projected, part, models)


def _labels_of(
    rows: Rows, projected: Float[Tensor, "chunk projected"], part: _Part, models: _Models
) -> Float[Tensor, " chunk"]:
    """Return the label log-probabilities of one model for a chunk."""
    pieces = []
    for block in part.blocks:
        log_probs = rows.logits(projected[part.within(block)]).log_softmax(dim=1)
        columns = models.columns[block].to(log_probs.device)
        pieces.append(label_log_probs(log_probs, columns).to(models.columns.device))
    return torch.cat(pieces)


class _Outputs:
    """The result while it is filled, block by block.

    Nothing small outlives a block: between the blocks' large tensors it would break up the memory.
    """

    def __init__(self, hidden: Tensor, groups: Sequence[RowGroup], *, has_teacher: bool) -> None:
        empty, num_rows = _no_values(hidden), len(hidden)
        self.loss = empty.new_zeros(())
        self.row_values = tuple(empty.new_zeros(len(group.rows)) for group in groups)
        self.student_log_probs = empty.new_zeros(num_rows)
        self.teacher_log_probs = empty.new_zeros(num_rows) if has_teacher else None

    def add_loss(self, groups: Sequence[RowGroup], part: "_Part") -> None:
        """Add what a chunk whose row values are filled in counts."""
        for index, (group, values) in enumerate(zip(groups, self.row_values, strict=True)):
            members = slice(part.members[0][index].start, part.members[-1][index].stop)
            assert isinstance(group.weight, Tensor)
            if not group.gradient_only:
                self.loss += (group.weight[members] * values[members]).sum()

    def result(self, loss: Float[Tensor, ""]) -> Result:
        return Result(
            loss=loss,
            row_values=self.row_values,
            student_label_log_probs=self.student_log_probs,
            teacher_label_log_probs=self.teacher_log_probs,
        )


def _run_chunk(
    models: _Models, part: _Part, groups: Sequence[RowGroup], outputs: _Outputs, gradients: HeadGradients
) -> None:
    """Fill in the results of a chunk and add its gradients, which replace the student's projection."""
    student = models.student
    projected = student.project(part.chunk)
    other = _projected(models.teacher, part.chunk)
    if not all(group.is_resolved for group in groups):
        own_labels = _labels_of(student, projected, part, models)
        other_labels = _teacher_labels(models, other, part)
        groups = [group.resolve(own_labels, other_labels) for group in groups]
    for block, members in zip(part.blocks, part.members, strict=True):
        rows = part.within(block)
        log_p = _known(models.teacher, other, rows=rows, block=block, device=projected.device)
        log_q = student.logits(projected[rows]).log_softmax(dim=1)
        labels = _Labels.read(log_q, log_p, models.columns[block])
        outputs.student_log_probs[block] = labels.student
        if outputs.teacher_log_probs is not None and labels.teacher is not None:
            outputs.teacher_log_probs[block] = labels.teacher
        total = _run_block(log_q, log_p, groups, members, block=block, labels=labels, outputs=outputs)
        if gradients.wanted:
            total = student.projected_gradient(total, projected[rows])
            gradients.add_bias(total)
            projected[rows] = total
    outputs.add_loss(groups, part)
    del other  # before the gradient of the weight takes its memory
    gradients.add(projected, part.chunk, weight=student.head.weight)


_Known: TypeAlias = Tensor | TopRows | LabelRows | None
"""What is known of the teacher in some rows: all log-probabilities [row, column], or a part of them."""


def _known(
    teacher: TeacherRows | None,
    projected: Float[Tensor, "chunk projected"] | None,
    *,
    rows: slice,
    block: slice,
    device: torch.device,
) -> _Known:
    if isinstance(teacher, Rows):
        assert projected is not None
        return teacher.logits(projected[rows].to(device)).log_softmax(dim=1)
    return None if teacher is None else teacher[block]


def _run_block(
    log_q: Float[Tensor, "block column"],
    log_p: _Known,
    groups: Sequence[RowGroup],
    members: Sequence[slice],
    *,
    block: slice,
    labels: "_Labels",
    outputs: _Outputs,
) -> Float[Tensor, "block column"]:
    """Fill in the groups' values and return the gradient of their weighted sum for the student's logits."""
    total = None
    for group, member, row_values in zip(groups, members, outputs.row_values, strict=True):
        if member.start == member.stop:
            continue
        # A group that has every row of the block needs no copy of it.
        whole = member.stop - member.start == len(log_q)
        rows = slice(None) if whole else group.rows[member] - block.start
        values, gradient = _group_gradient(
            group, member, log_q[rows], None if log_p is None else log_p[rows], labels.select(rows)
        )
        assert isinstance(group.weight, Tensor)
        weight = group.weight[member].to(gradient.dtype)
        gradient.mul_(weight[:, None])
        row_values[member] = values
        if total is None and whole:
            total = gradient
        else:
            total = torch.zeros_like(log_q) if total is None else total
            total[rows] += gradient
    return torch.zeros_like(log_q) if total is None else total


@dataclass(frozen=True, kw_only=True, slots=True)
class _Labels:
    """Where the labels of some rows stand in the vocabulary, and their log-probabilities."""

    columns: Int[Tensor, " member"]
    student: Float[Tensor, " member"]
    teacher: Float[Tensor, " member"] | None

    @staticmethod
    def read(
        log_q: Float[Tensor, "member column"],
        log_p: _Known,
        columns: Int[Tensor, " member"],
    ) -> "_Labels":
        teacher = label_log_probs(log_p, columns) if isinstance(log_p, Tensor) else None
        if isinstance(log_p, TopRows | LabelRows):
            teacher = log_p.label_log_probs.to(log_q)
        return _Labels(columns=columns, student=label_log_probs(log_q, columns), teacher=teacher)

    def select(self, rows: slice | Int[Tensor, " selected"]) -> "_Labels":
        return _Labels(
            columns=self.columns[rows],
            student=self.student[rows],
            teacher=None if self.teacher is None else self.teacher[rows],
        )


def _group_gradient(
    group: RowGroup,
    member: slice,
    log_q: Float[Tensor, "member column"],
    log_p: _Known,
    labels: _Labels,
) -> tuple[Float[Tensor, " member"], Float[Tensor, "member column"]]:
    """Return values and gradients, unweighted, of the group's rows in `member`, which are given."""
    divergence, alpha = group.divergence, group.parameter
    if isinstance(divergence, NegativeLogLikelihood | SampledReverseKL):
        return label_value_and_gradient(
            divergence,
            log_q,
            columns=labels.columns,
            student_log_probs=labels.student,
            teacher_log_probs=labels.teacher,
        )
    assert isinstance(log_p, Tensor | TopRows), f"{divergence.kind} needs the teacher's distribution"
    if alpha is not None:
        assert isinstance(divergence, SkewKL | SkewReverseKL)
        assert isinstance(alpha, Tensor)
        alpha = alpha[member]
    if isinstance(log_p, TopRows):
        assert group.teacher_share == 1.0, "TAID mixes whole distributions"
        return bucket_value_and_gradient(divergence, log_q, log_p, alpha=alpha)
    if group.teacher_share != 1.0:
        # Not lerp, which subtracts: a token that both lack would become NaN.
        share = group.teacher_share
        log_p = (log_q * (1 - share)).add_(log_p, alpha=share).log_softmax(dim=1)
    return value_and_gradient(divergence, log_q, log_p, alpha=alpha)


def _no_values(hidden: Tensor) -> Float[Tensor, " 0"]:
    return hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
