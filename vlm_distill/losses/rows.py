"""What a linear divergence is computed on: rows of hidden states with a head, and groups of rows.

A row is one response token, in the order of `ResponseBatch.labels`. The arithmetic over chunks of rows is in
linear.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from vlm_distill.batches import Head
from vlm_distill.losses.divergences import (
    Divergence,
    NegativeLogLikelihood,
    SampledReverseKL,
    SkewKL,
    SkewReverseKL,
)

OUTSIDE = -1
BYTES_PER_LOGIT = 80
"""Peak memory of a chunk per row and column: float32 logits of both models and what a divergence keeps.

Measured: 46 for SkewKL or SkewReverseKL on all rows of a chunk, 57 for AdaptiveKL, 74 for two groups that
share the chunk, 4 more for a target between student and teacher; a row in several groups takes more.
"""

RowFunction: TypeAlias = Callable[
    [Float[Tensor, " group"], Float[Tensor, " group"] | None], Float[Tensor, " group"]
]
"""A number per row from the detached label log-probabilities of the group's rows: student, teacher if any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The final hidden states of one model at the positions that predict the response tokens.

    The output layer may be on another device than the hidden states, where a model is spread over several.
    `vocabulary` restricts the output layer before the softmax, to a contiguous slice or to ids. The c-th
    column of the student and the c-th column of the teacher must be the same token.
    """

    hidden: Float[Tensor, "row width"]
    head: Head
    vocabulary: slice | Int[Tensor, " shared"] = field(default_factory=lambda: slice(None))

    @property
    def num_columns(self) -> int:
        if isinstance(self.vocabulary, slice):
            return len(range(*self.vocabulary.indices(len(self.head.weight))))
        return len(self.vocabulary)

    def project(self, chunk: slice) -> Float[Tensor, "chunk projected"]:
        """Return hidden @ weight.T + bias in the precision of the model; ids narrow it later, in `logits`."""
        # A slice of the weight is a view, a selection by ids would copy the whole layer.
        columns = self.vocabulary if isinstance(self.vocabulary, slice) else slice(None)
        weight, bias = self.head.weight[columns], self.head.bias
        hidden = self.hidden[chunk].to(weight.device)
        return linear(hidden, weight, None if bias is None else bias[columns])

    def logits(self, projected: Float[Tensor, "chunk projected"]) -> Float[Tensor, "chunk column"]:
        """Return the logits over the restricted vocabulary, in float32 at least."""
        logits = projected.to(torch.promote_types(projected.dtype, torch.float32))
        if not isinstance(self.vocabulary, slice):
            logits = logits.index_select(1, self.vocabulary.to(logits.device))
        if self.head.scale != 1.0:
            logits = logits * self.head.scale
        if self.head.soft_cap is not None:
            logits = (logits / self.head.soft_cap).tanh() * self.head.soft_cap
        return logits

    def columns(self, labels: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
        """Return where token ids stand in the restricted vocabulary, OUTSIDE for those that it lacks."""
        if isinstance(self.vocabulary, slice):
            column = labels - self.vocabulary.indices(len(self.head.weight))[0]
            return column.masked_fill((column < 0) | (column >= self.num_columns), OUTSIDE)
        table = torch.full((len(self.head.weight),), OUTSIDE, dtype=labels.dtype, device=labels.device)
        table[self.vocabulary] = torch.arange(len(self.vocabulary), dtype=labels.dtype, device=labels.device)
        return table[labels]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowGroup:
    """Rows that share a divergence. A row may be in several groups.

    `rows` are indices in ascending order, without repetition. `weight` carries every factor, the denominator
    included. `parameter` is one skew alpha per row for SkewKL or SkewReverseKL; without it the divergence's
    own alpha holds. Either may be a function of label log-probabilities instead.

    `teacher_share` below 1 replaces the teacher by the interpolation of TAID: its logits count that share,
    the student's own, as constants, the rest. `gradient_only` keeps the group out of the value of the loss.
    """

    divergence: Divergence | NegativeLogLikelihood | SampledReverseKL
    rows: Int[Tensor, " group"]
    weight: Float[Tensor, " group"] | RowFunction
    parameter: Float[Tensor, " group"] | RowFunction | None = None
    teacher_share: float = 1.0
    gradient_only: bool = False

    @property
    def is_resolved(self) -> bool:
        return not (callable(self.weight) or callable(self.parameter))

    def resolve(
        self, student_log_probs: Float[Tensor, " row"], teacher_log_probs: Float[Tensor, " row"] | None
    ) -> "RowGroup":
        """Return the group with functions replaced by tensors, given label log-probabilities of all rows."""
        student = student_log_probs[self.rows]
        teacher = None if teacher_log_probs is None else teacher_log_probs[self.rows]
        return replace(
            self,
            weight=self.weight(student, teacher) if callable(self.weight) else self.weight,
            parameter=self.parameter(student, teacher) if callable(self.parameter) else self.parameter,
        )

    def values(self, members: slice, logits: "MemberLogits") -> Float[Tensor, " member"]:
        """Return the divergence of the group's rows in `members`, whose logits are given."""
        if isinstance(self.divergence, NegativeLogLikelihood):
            return self.divergence(logits.student_label_log_probs)
        assert logits.teacher is not None, f"{self.divergence.kind} needs teacher rows"
        if isinstance(self.divergence, SampledReverseKL):
            assert logits.teacher_label_log_probs is not None
            return self.divergence(logits.student_label_log_probs, logits.teacher_label_log_probs)
        target = _interpolate(logits.student, logits.teacher, share=self.teacher_share)
        if self.parameter is None:
            return self.divergence(logits.student, target)
        assert isinstance(self.divergence, SkewKL | SkewReverseKL)
        assert isinstance(self.parameter, Tensor)
        return self.divergence(logits.student, target, alpha=self.parameter[members])


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberLogits:
    """Logits of some rows of a chunk under both models and the log-probabilities of their labels."""

    student: Float[Tensor, "member column"]
    student_label_log_probs: Float[Tensor, " member"]
    teacher: Float[Tensor, "member column"] | None
    teacher_label_log_probs: Float[Tensor, " member"] | None

    def select(self, rows: slice | Int[Tensor, " selected"]) -> "MemberLogits":
        return MemberLogits(
            student=self.student[rows],
            student_label_log_probs=self.student_label_log_probs[rows],
            teacher=None if self.teacher is None else self.teacher[rows],
            teacher_label_log_probs=None
            if self.teacher_label_log_probs is None
            else self.teacher_label_log_probs[rows],
        )


def _interpolate(
    student_logits: Float[Tensor, "member column"],
    teacher_logits: Float[Tensor, "member column"],
    *,
    share: float,
) -> Float[Tensor, "member column"]:
    if share == 1.0:
        return teacher_logits
    # Not lerp, which subtracts: a token that both lack would become NaN.
    return (student_logits.detach() * (1 - share)).add_(teacher_logits, alpha=share)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The loss and, detached, what it was made of.

    `loss` is the sum over groups and their rows of weight times value; groups that are `gradient_only` are in
    its gradient alone. `row_values` holds the unweighted
    values in nats, one tensor per group in the order of its rows, because a row may be in several groups. The
    log-probabilities are those of the labels, for every row, -inf for a label outside the restricted
    vocabulary; without teacher rows the teacher's are None.
    """

    loss: Float[Tensor, ""]
    row_values: tuple[Float[Tensor, " _"], ...]
    student_label_log_probs: Float[Tensor, " row"]
    teacher_label_log_probs: Float[Tensor, " row"] | None


def row_chunks(rows: Rows, byte_budget: int) -> list[slice]:
    """Return consecutive slices over the rows, each of at least one row, whose logits fit the budget."""
    num_rows = len(rows.hidden)
    size = max(1, byte_budget // (BYTES_PER_LOGIT * rows.num_columns))
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def label_log_probs(
    logits: Float[Tensor, "chunk column"], columns: Int[Tensor, " chunk"]
) -> Float[Tensor, " chunk"]:
    """Return the log-probability of each row's label, -inf for a label OUTSIDE."""
    gathered = logits.gather(1, columns.clamp_min(0)[:, None])[:, 0]
    return (gathered - logits.logsumexp(dim=1)).masked_fill(columns == OUTSIDE, -torch.inf)
