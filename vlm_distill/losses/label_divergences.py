"""Divergences that read the log-probabilities of the labels alone: no distribution of a teacher is needed."""

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from vlm_distill.losses.log_space import Gradient, Values
from vlm_distill.losses.row_blocks import RowBlock, RowDivergence
from vlm_distill.losses.targets import RowTarget


@dataclass(frozen=True, kw_only=True, slots=True)
class NegativeLogLikelihood(RowDivergence):
    """-log q(label), the divergence from a one-hot target. It reads no teacher."""

    needs_teacher: ClassVar[bool] = False
    compares_distributions: ClassVar[bool] = False
    kind: Literal["negative_log_likelihood"] = "negative_log_likelihood"

    def __call__(self, label_log_probs: Values) -> Values:
        return -label_log_probs

    def of_rows(self, rows: RowBlock, target: RowTarget) -> tuple[Values, Gradient]:
        values = self(rows.student_labels)
        return values, _gradient(rows, values.new_full(values.shape, -1.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledReverseKL(RowDivergence):
    """log q - log p of the sampled token, whose mean over the student's own samples is KL(q || p).

    Its gradient is that of the policy-gradient loss -r A with the advantage A = log p - log q as a constant
    and r the ratio of the current to the sampling policy: 1 in value where the student samples now, so that
    the loss needs no second set of log-probabilities.
    """

    compares_distributions: ClassVar[bool] = False
    kind: Literal["sampled_reverse_kl"] = "sampled_reverse_kl"

    def __call__(self, student_log_probs: Values, teacher_log_probs: Values) -> Values:
        constant = student_log_probs.detach()
        return (student_log_probs - constant).exp() * (constant - teacher_log_probs)

    def of_rows(self, rows: RowBlock, target: RowTarget) -> tuple[Values, Gradient]:
        assert rows.teacher_labels is not None, f"{self.kind} needs teacher rows"
        values = self(rows.student_labels, rows.teacher_labels)
        # The ratio is the derivative of itself.
        return values, _gradient(rows, values)


def _gradient(rows: RowBlock, slope: Values) -> Gradient:
    """Return the gradient for the logits, given the derivative for the label's log-probability.

    A label that is not compared has none.
    """
    # [resp] to [resp, 1], a factor of every column: d log q(label) / d logit = [is label] - q.
    slope = slope.masked_fill(rows.columns < 0, 0.0)[:, None]
    gradient = rows.log_q.exp().mul_(-slope)
    return gradient.scatter_add_(1, rows.columns.clamp_min(0)[:, None], slope)


LabelDivergence: TypeAlias = NegativeLogLikelihood | SampledReverseKL
