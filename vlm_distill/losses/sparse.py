"""Divergences from a teacher that is known in part: its most probable tokens and the rest as one bucket.

The student's distribution is summed into the same buckets, so a divergence over k + 1 buckets is exact for
what they show and never larger than the one over all tokens (data processing inequality); nothing is
renormalised. A teacher that is known at the labels alone serves functions of whole responses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlm_distill.losses.divergences import NegativeLogLikelihood, SampledReverseKL, SkewKL, SkewReverseKL
from vlm_distill.losses.rows import Result, RowGroup, Rows, group_members, label_log_probs, row_chunks


@dataclass(frozen=True, kw_only=True, slots=True)
class TopRows:
    """The k most probable columns of each row; the last log-probability is that of all others together.

    Columns are those of the restricted vocabulary. `label_log_probs` are of the response tokens.
    """

    columns: Int[Tensor, "row k"]
    log_probs: Float[Tensor, "row bucket"]
    label_log_probs: Float[Tensor, " row"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelRows:
    """The log-probabilities of the response tokens, in nats, and nothing else of the distribution."""

    label_log_probs: Float[Tensor, " row"]


TeacherRows: TypeAlias = Rows | TopRows | LabelRows


def top_rows(logits: Float[Tensor, "row vocab"], label_columns: Int[Tensor, " row"], *, k: int) -> TopRows:
    """Return what is kept of a distribution; k is at most one less than the columns, so a rest remains."""
    log_probs = logits.log_softmax(dim=1)
    top, columns = log_probs.topk(min(k, logits.shape[1] - 1), dim=1)
    return TopRows(
        columns=columns,
        log_probs=torch.cat([top, _rest(log_probs, columns)], dim=1),
        label_log_probs=label_log_probs(log_probs, label_columns),
    )


def sparse_divergence(
    student: Rows,
    teacher: TopRows | LabelRows,
    *,
    groups: Sequence[RowGroup],
    labels: Int[Tensor, " row"],
    byte_budget: int,
) -> Result:
    """Return the weighted sum of the groups' divergences; arguments and result as in `linear_divergence`.

    A chunk's logits are computed a second time in the backward pass instead of being kept.
    """
    columns, chunks = student.columns(labels), row_chunks(student, byte_budget)
    dtype = torch.promote_types(student.hidden.dtype, torch.float32)
    teacher = replace(teacher, label_log_probs=teacher.label_log_probs.to(dtype))
    if not all(group.is_resolved for group in groups):
        log_probs = _label_pass(student, columns=columns, chunks=chunks)
        groups = [group.resolve(log_probs, teacher.label_log_probs) for group in groups]
    hidden, weight, bias = student.hidden, student.head.weight, student.head.bias
    empty = hidden.new_zeros(0, dtype=dtype)
    # Connected to the student even without rows.
    loss = sum((one[:0].sum(dtype=dtype) for one in (hidden, weight, bias) if one is not None), empty.sum())
    pieces: list[list[Tensor]] = [[empty] * (1 + len(groups))]
    for chunk, members in zip(chunks, group_members(groups, chunks), strict=True):
        # One chunk's closure may outlive the loop, so it gets its own values.
        part = _Chunk(
            student=student, teacher=teacher, groups=groups, members=members, chunk=chunk, columns=columns
        )
        value, *found = checkpoint(
            part, hidden[chunk], weight, bias, use_reentrant=False, preserve_rng_state=False
        )
        loss = loss + value
        pieces.append([one.detach() for one in found])
    log_probs, *row_values = (torch.cat(column) for column in zip(*pieces, strict=True))
    return Result(
        loss=loss,
        row_values=tuple(row_values),
        student_label_log_probs=log_probs,
        teacher_label_log_probs=teacher.label_log_probs,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chunk:
    """Some rows of a micro-batch: called with the student's tensors, it returns loss and values."""

    student: Rows
    teacher: TopRows | LabelRows
    groups: Sequence[RowGroup]
    members: Sequence[slice]
    chunk: slice
    columns: Int[Tensor, " row"]

    def __call__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Any, ...]:
        rows = replace(self.student, hidden=hidden, head=replace(self.student.head, weight=weight, bias=bias))
        log_probs = rows.logits(rows.project(slice(None))).log_softmax(dim=1)
        found = label_log_probs(log_probs, self.columns[self.chunk].to(log_probs.device))
        both = _buckets(log_probs, found, self.teacher, self.chunk)
        loss, values = found.new_zeros(()), []
        for group, member in zip(self.groups, self.members, strict=True):
            own = _values(group, member, both.select(group.rows[member] - self.chunk.start))
            assert isinstance(group.weight, Tensor)
            weighted = (group.weight[member] * own).sum()
            loss = loss + (weighted - weighted.detach() if group.gradient_only else weighted)
            values.append(own)
        return loss, found, *values


@dataclass(frozen=True, kw_only=True, slots=True)
class _Buckets:
    """Log-probabilities of some rows over the teacher's buckets, and of their labels."""

    student: Float[Tensor, "member bucket"]
    student_labels: Float[Tensor, " member"]
    teacher: Float[Tensor, "member bucket"] | None
    teacher_labels: Float[Tensor, " member"]

    def select(self, rows: Int[Tensor, " selected"]) -> "_Buckets":
        return _Buckets(
            student=self.student[rows],
            student_labels=self.student_labels[rows],
            teacher=None if self.teacher is None else self.teacher[rows],
            teacher_labels=self.teacher_labels[rows],
        )


def _values(group: RowGroup, members: slice, both: _Buckets) -> Float[Tensor, " member"]:
    """Return the divergence of the group's rows in `members`, which are given; TAID is refused before."""
    divergence, alpha = group.divergence, group.parameter
    if isinstance(divergence, NegativeLogLikelihood):
        return divergence(both.student_labels)
    if isinstance(divergence, SampledReverseKL):
        return divergence(both.student_labels, both.teacher_labels)
    assert both.teacher is not None, f"{divergence.kind} needs the teacher's distribution"
    assert group.teacher_share == 1.0
    if alpha is None:
        return divergence(both.student, both.teacher)
    assert isinstance(divergence, SkewKL | SkewReverseKL)
    assert isinstance(alpha, Tensor)
    return divergence(both.student, both.teacher, alpha=alpha[members])


def _buckets(
    log_probs: Float[Tensor, "chunk vocab"],
    found: Float[Tensor, " chunk"],
    teacher: TopRows | LabelRows,
    chunk: slice,
) -> _Buckets:
    """Return both models over the teacher's buckets; log-probabilities are logits that are normalised."""
    ours, theirs = log_probs, None
    if isinstance(teacher, TopRows):
        columns = teacher.columns[chunk].long()
        ours = torch.cat([log_probs.gather(1, columns), _rest(log_probs, columns)], dim=1)
        theirs = teacher.log_probs[chunk].to(ours.dtype)
    return _Buckets(
        student=ours,
        student_labels=found,
        teacher=theirs,
        teacher_labels=teacher.label_log_probs[chunk],
    )


def _rest(log_probs: Float[Tensor, "row vocab"], columns: Int[Tensor, "row k"]) -> Float[Tensor, "row 1"]:
    """Return the log-probability of all other columns; 1 minus the sum would lose a small one to rounding."""
    return log_probs.scatter(1, columns, -torch.inf).logsumexp(dim=1, keepdim=True)


@torch.no_grad()
def _label_pass(
    student: Rows, *, columns: Int[Tensor, " row"], chunks: Sequence[slice]
) -> Float[Tensor, " row"]:
    pieces = [
        label_log_probs(student.logits(student.project(chunk)).log_softmax(dim=1), columns[chunk])
        for chunk in (slice(0, 0), *chunks)
    ]
    return torch.cat(pieces)
