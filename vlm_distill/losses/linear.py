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

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_distill.losses.head_gradients import HeadGradients
from vlm_distill.losses.row_blocks import RowBlock, TeacherChunk, TeacherRows
from vlm_distill.losses.rows import Result, RowGroup, Rows, WholeChunk, group_members, row_blocks, row_chunks


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
    known in part (teacher_rows.py) serves what its part shows.
    """
    chunks = row_chunks(student, byte_budget)
    gradients = HeadGradients(student, num_chunks=len(chunks))
    with torch.no_grad():
        columns = student.columns(labels)
        # Once, not per chunk: autocast would keep no cast of a part of a weight.
        student = student.in_precision()
        teacher = None if teacher is None else teacher.in_precision()
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
    own = torch.cat([empty, *(_labels(student.chunk(p.chunk), p, models) for p in plan)])
    others = None
    if teacher is not None:
        others = torch.cat([empty, *(_labels(teacher.chunk(p.chunk), p, models) for p in plan)])
    return [group.resolve(own, others) for group in groups]


def _labels(chunk: TeacherChunk, part: _Part, models: _Models) -> Float[Tensor, " chunk"]:
    """Return the label log-probabilities of one model, teacher or student, for a chunk."""
    like = _no_values(models.student.hidden)
    # Each block's distribution is gone before the next one is made.
    pieces = [chunk.block(part.within(block)).labels(models.columns[block]) for block in part.blocks]
    return torch.cat(pieces).to(like)


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
    student = models.student.chunk(part.chunk)
    teacher = None if models.teacher is None else models.teacher.chunk(part.chunk)
    projected = student.projected
    if not all(group.is_resolved for group in groups):
        own_labels = _labels(student, part, models)
        other_labels = None if teacher is None else _labels(teacher, part, models)
        groups = [group.resolve(own_labels, other_labels) for group in groups]
    for block, members in zip(part.blocks, part.members, strict=True):
        within = part.within(block)
        rows = _read_block(student, teacher, within, columns=models.columns[block])
        outputs.student_log_probs[block] = rows.student_labels
        if outputs.teacher_log_probs is not None and rows.teacher_labels is not None:
            outputs.teacher_log_probs[block] = rows.teacher_labels
        total = _run_block(rows, groups, members, start=block.start, outputs=outputs)
        if gradients.wanted:
            total = models.student.projected_gradient(total, projected[within])
            gradients.add_bias(total)
            projected[within] = total
        del rows, total  # before the next block takes their memory
    outputs.add_loss(groups, part)
    del teacher  # before the gradient of the weight takes its memory
    gradients.add(projected, part.chunk, weight=models.student.head.weight)


def _read_block(
    student: WholeChunk, teacher: TeacherChunk | None, rows: slice, *, columns: Int[Tensor, " block"]
) -> RowBlock:
    known = None if teacher is None else teacher.block(rows, student.projected.device)
    own = student.block(rows)
    return RowBlock(
        log_q=own.log_probs,
        columns=columns,
        student_labels=own.labels(columns),
        teacher=known,
        teacher_labels=None if known is None else known.labels(columns).to(own.log_probs),
    )


def _run_block(
    rows: RowBlock, groups: Sequence[RowGroup], members: Sequence[slice], *, start: int, outputs: _Outputs
) -> Float[Tensor, "block column"]:
    """Fill in the groups' values and return the gradient of their weighted sum for the student's logits.

    `members` are the positions, within each group, of its rows in this block, which begins at row `start`.
    """
    log_q, total = rows.log_q, None
    for group, member, row_values in zip(groups, members, outputs.row_values, strict=True):
        if member.start == member.stop:
            continue
        # A group that has every row of the block needs no copy of it.
        whole = member.stop - member.start == len(log_q)
        selection = slice(None) if whole else group.rows[member] - start
        values, gradient = group.divergence_of(member).of_rows(rows.select(selection), group.target)
        assert isinstance(group.weight, Tensor)
        weight = group.weight[member].to(gradient.dtype)
        # [member] to [member, 1]: each row's weight multiplies its whole gradient.
        gradient.mul_(weight[:, None])
        row_values[member] = values
        if total is None and whole:
            total = gradient
        else:
            total = torch.zeros_like(log_q) if total is None else total
            total[selection] += gradient
    return torch.zeros_like(log_q) if total is None else total


def _no_values(hidden: Tensor) -> Float[Tensor, " 0"]:
    return hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
