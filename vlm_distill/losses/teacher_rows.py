"""A teacher that is known in part: its most probable tokens and the rest as one bucket, or the labels alone.

The student's distribution is summed into the same buckets, so a divergence over k + 1 buckets is exact for
what they show and never larger than the one over all tokens (data processing inequality); nothing is
renormalised. A teacher that is known at the labels alone serves functions of whole responses. One that is
known whole is `Rows` (rows.py).
"""

from dataclasses import dataclass
from typing import NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_distill.losses.row_blocks import Comparison, Selection
from vlm_distill.losses.rows import label_log_probs
from vlm_distill.losses.targets import RowTarget


@dataclass(frozen=True, kw_only=True, slots=True)
class TopRows:
    """The k most probable columns of each row; the last log-probability is that of all others together.

    Columns are those of the compared ids. `label_log_probs` are of the response tokens.
    """

    columns: Int[Tensor, "row k"]
    log_probs: Float[Tensor, "row bucket"]
    label_log_probs: Float[Tensor, " row"]

    def __getitem__(self, rows: Selection) -> "TopRows":
        return TopRows(
            columns=self.columns[rows],
            log_probs=self.log_probs[rows],
            label_log_probs=self.label_log_probs[rows],
        )

    def in_precision(self) -> "TopRows":
        return self

    def chunk(self, chunk: slice) -> "TopRows":
        return self[chunk]

    def block(self, rows: slice, device: torch.device | None = None) -> "TopRows":
        return self[rows]

    def logits(self) -> None:
        return None

    def labels(self, columns: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        return self.label_log_probs

    def compare(
        self, comparison: Comparison, log_q: Float[Tensor, "row column"], target: RowTarget
    ) -> tuple[Float[Tensor, " row"], Float[Tensor, "row column"]]:
        """Return the comparison over the buckets and its gradient for the student's logits.

        The gradient of a bucket is shared among its columns in proportion to their probabilities.
        """
        assert not target.mixes_logits, f"a target of kind {type(target).__name__} needs all logits"
        columns = self.columns.long()
        rest = _rest(log_q, columns)
        # [row, column] to [row, k + 1]: the student's share of each bucket.
        buckets = torch.cat([log_q.gather(1, columns), rest], dim=1)
        values, gradient = comparison(buckets, self.log_probs.to(log_q.dtype))
        # Back to [row, column]: the rest's gradient times q / q(rest), the k others in their places. A rest
        # without probability has columns without any: 0, and not -inf less -inf.
        spread = (log_q - rest.clamp_min(torch.finfo(rest.dtype).min)).exp_().mul_(gradient[:, -1:])
        return values, spread.scatter_(1, columns, gradient[:, :-1])


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelRows:
    """The log-probabilities of the response tokens, in nats, and nothing else of the distribution."""

    label_log_probs: Float[Tensor, " row"]

    def __getitem__(self, rows: Selection) -> "LabelRows":
        return LabelRows(label_log_probs=self.label_log_probs[rows])

    def in_precision(self) -> "LabelRows":
        return self

    def chunk(self, chunk: slice) -> "LabelRows":
        return self[chunk]

    def block(self, rows: slice, device: torch.device | None = None) -> "LabelRows":
        return self[rows]

    def logits(self) -> None:
        return None

    def labels(self, columns: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        return self.label_log_probs

    def compare(
        self, comparison: Comparison, log_q: Float[Tensor, "row column"], target: RowTarget
    ) -> NoReturn:
        raise AssertionError("a teacher that is known at the labels alone has no distribution to compare")


def top_rows(logits: Float[Tensor, "row vocab"], label_columns: Int[Tensor, " row"], *, k: int) -> TopRows:
    """Return what is kept of a distribution; k is at most one less than the columns, so a rest remains."""
    log_probs = logits.log_softmax(dim=1)
    top, columns = log_probs.topk(min(k, logits.shape[1] - 1), dim=1)
    return TopRows(
        columns=columns,
        log_probs=torch.cat([top, _rest(log_probs, columns)], dim=1),
        label_log_probs=label_log_probs(log_probs, label_columns),
    )


def _rest(log_probs: Float[Tensor, "row vocab"], columns: Int[Tensor, "row k"]) -> Float[Tensor, "row 1"]:
    """Return the log-probability of all other columns; 1 minus the sum would lose a small one to rounding."""
    return log_probs.scatter(1, columns, -torch.inf).logsumexp(dim=1, keepdim=True)
