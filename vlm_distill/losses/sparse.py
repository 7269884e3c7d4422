"""A teacher that is known in part: its most probable tokens and the rest as one bucket, or the labels alone.

The student's distribution is summed into the same buckets, so a divergence over k + 1 buckets is exact for
what they show and never larger than the one over all tokens (data processing inequality); nothing is
renormalised. A teacher that is known at the labels alone serves functions of whole responses.
"""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_distill.losses.divergences import Divergence, Skew
from vlm_distill.losses.gradients import value_and_gradient
from vlm_distill.losses.rows import Rows, label_log_probs


@dataclass(frozen=True, kw_only=True, slots=True)
class TopRows:
    """The k most probable columns of each row; the last log-probability is that of all others together.

    Columns are those of the restricted vocabulary. `label_log_probs` are of the response tokens.
    """

    columns: Int[Tensor, "row k"]
    log_probs: Float[Tensor, "row bucket"]
    label_log_probs: Float[Tensor, " row"]

    def __getitem__(self, rows: slice | Int[Tensor, " selected"]) -> "TopRows":
        return TopRows(
            columns=self.columns[rows],
            log_probs=self.log_probs[rows],
            label_log_probs=self.label_log_probs[rows],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelRows:
    """The log-probabilities of the response tokens, in nats, and nothing else of the distribution."""

    label_log_probs: Float[Tensor, " row"]

    def __getitem__(self, rows: slice | Int[Tensor, " selected"]) -> "LabelRows":
        return LabelRows(label_log_probs=self.label_log_probs[rows])


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


@torch.no_grad()
def bucket_value_and_gradient(
    divergence: Divergence,
    log_q: Float[Tensor, "row column"],
    teacher: TopRows,
    *,
    alpha: Skew | None = None,
) -> tuple[Float[Tensor, " row"], Float[Tensor, "row column"]]:
    """Return a divergence over the teacher's buckets and its gradient for the student's logits.

    The gradient of a bucket is shared among its columns in proportion to their probabilities.
    """
    columns = teacher.columns.long()
    rest = _rest(log_q, columns)
    buckets = torch.cat([log_q.gather(1, columns), rest], dim=1)
    values, gradient = value_and_gradient(divergence, buckets, teacher.log_probs.to(log_q.dtype), alpha=alpha)
    # A rest without probability has columns without any: 0, and not -inf less -inf.
    spread = (log_q - rest.clamp_min(torch.finfo(rest.dtype).min)).exp_().mul_(gradient[:, -1:])
    return values, spread.scatter_(1, columns, gradient[:, :-1])


def _rest(log_probs: Float[Tensor, "row vocab"], columns: Int[Tensor, "row k"]) -> Float[Tensor, "row 1"]:
    """Return the log-probability of all other columns; 1 minus the sum would lose a small one to rounding."""
    return log_probs.scatter(1, columns, -torch.inf).logsumexp(dim=1, keepdim=True)
