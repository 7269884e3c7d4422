"""A term: the responses of one author, compared token by token, averaged and weighted.

Terms over pairs of responses are in pairs.py; objective.py adds terms up.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_distill.batches import ResponseBatch
from vlm_distill.losses.row_blocks import RowDivergence
from vlm_distill.losses.rows import Result, RowFunction, RowGroup
from vlm_distill.losses.schedules import Clock, Schedule, SkewCurriculum
from vlm_distill.losses.targets import RowTarget, Teacher
from vlm_distill.records import Author

Reduction: TypeAlias = Literal["token", "sequence"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One summand of an objective, over the responses of one author.

    `reduction` "token" is the mean over all their tokens, "sequence" the mean over each response and then
    over responses. `name` prefixes the metrics and the saved state. `log_weight_as` is the metric under which
    the weight is logged, if any. In the report a term is drawn under its `title` beside others that have one,
    else in a chart of its own. The t of an interpolated target is logged as `<name>_t`.
    """

    name: str
    divergence: RowDivergence
    author: Author
    target: RowTarget = field(default_factory=Teacher)
    weight: float | Schedule = 1.0
    reduction: Reduction = "sequence"
    skew: SkewCurriculum | None = None
    log_weight_as: str | None = None
    title: str = ""

    def __post_init__(self) -> None:
        assert self.target.needs_teacher == self.divergence.needs_teacher
        assert self.skew is None or self.skew.author == self.author

    @property
    def authors(self) -> frozenset[Author]:
        return frozenset({self.author})

    @property
    def needs_teacher(self) -> bool:
        return self.target.needs_teacher

    @property
    def needs_reference_model(self) -> bool:
        return False

    @property
    def compares_distributions(self) -> bool:
        """Whether the teacher must be known beyond the labels."""
        return self.divergence.compares_distributions

    @property
    def mixes_logits(self) -> bool:
        """Whether all logits of the teacher must be known."""
        return self.target.mixes_logits

    @property
    def schedules(self) -> Mapping[str, Schedule | SkewCurriculum]:
        """What the term learns during training, by its name in the saved state."""
        weight = None if isinstance(self.weight, float) else self.weight
        found = {"weight": weight, "skew": self.skew, **self.target.schedules}
        return {f"{self.name}.{key}": schedule for key, schedule in found.items() if schedule is not None}

    def weight_at(self, clock: Clock) -> float:
        return self.weight if isinstance(self.weight, float) else self.weight.value(clock)

    def count(self, responses: ResponseBatch) -> Int[Tensor, ""]:
        """Return the tokens or the non-empty responses of the author, by the reduction."""
        num_tokens = responses.num_tokens * responses.is_by(self.author)
        return num_tokens.sum() if self.reduction == "token" else (num_tokens > 0).sum()

    def batch(self, responses: ResponseBatch, dtype: torch.dtype) -> "TermBatch":
        """Return the term's part in a micro-batch."""
        response_index = responses.response_index
        by_author = responses.is_by(self.author)
        rows = by_author[response_index].nonzero()[:, 0]
        num_tokens = responses.num_tokens * by_author
        return TermBatch(
            term=self, rows=rows, response=response_index[rows], num_tokens=num_tokens, dtype=dtype
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TermBatch:
    """A term's rows in a micro-batch; `num_tokens` is 0 for the responses of other authors."""

    term: Term
    rows: Int[Tensor, " group"]
    response: Int[Tensor, " group"]
    num_tokens: Int[Tensor, " response"]
    dtype: torch.dtype

    @property
    def scale(self) -> Float[Tensor, " group"]:
        """What each row counts before the division by the denominator."""
        if self.term.reduction == "token":
            return torch.ones_like(self.rows, dtype=self.dtype)
        return self.num_tokens[self.response].to(self.dtype).reciprocal()

    def group(self, factor: Float[Tensor, ""], clock: Clock) -> RowGroup:
        """Return the rows to compare; `factor` is the term's weight over its denominator."""
        skew = self.term.skew
        parameter: RowFunction | None = None
        if skew is not None and skew.adapts(clock):

            def parameter(student: Tensor, teacher: Tensor | None) -> Tensor:
                # [response] to [group]: every row has the alpha of its response.
                return skew.alphas(self.gaps(student, teacher), clock)[self.response]

        return RowGroup(
            divergence=self.term.divergence,
            rows=self.rows,
            weight=self.scale * factor,
            parameter=parameter,
            target=self.term.target.at(clock),
        )

    def gaps(
        self, student_log_probs: Float[Tensor, " group"], teacher_log_probs: Float[Tensor, " group"] | None
    ) -> Float[Tensor, " response"]:
        """Return the gap of each response, 0 for those without rows in this micro-batch."""
        assert self.term.skew is not None
        assert teacher_log_probs is not None
        num_tokens = self.num_tokens.clamp_min(1)
        zeros = student_log_probs.new_zeros(len(num_tokens))
        # [group] to [response]: label log-probabilities are summed over the rows of each response.
        means = [
            zeros.index_add(0, self.response, log_probs) / num_tokens
            for log_probs in (student_log_probs, teacher_log_probs)
        ]
        return self.term.skew.gaps(means[0], means[1])

    def metrics(
        self, result: Result, values: Float[Tensor, " group"], count: Float[Tensor, ""], clock: Clock
    ) -> dict[str, Float[Tensor, ""]]:
        """Return sums and counts; `values` are the group's row values, `count` the term's in this batch."""
        name = self.term.name
        metrics = {f"{name}_sum": (values * self.scale).sum(), f"{name}_count": count}
        for key, schedule in self.term.target.schedules.items():
            value = count.new_full((), schedule.value(clock))
            metrics |= {f"{name}_{key}_sum": value, f"{name}_{key}_count": count.new_ones(())}
        return metrics | self._skew_metrics(result, clock)

    def _skew_metrics(self, result: Result, clock: Clock) -> dict[str, Float[Tensor, ""]]:
        """Return gap and alpha of the responses, nothing for a term without a curriculum."""
        skew = self.term.skew
        if skew is None:
            return {}
        assert result.teacher_label_log_probs is not None
        present = self.num_tokens > 0
        gaps = self.gaps(result.student_label_log_probs[self.rows], result.teacher_label_log_probs[self.rows])
        count = present.sum().to(gaps.dtype)
        return {
            f"gap_{skew.author}_sum": (gaps * present).sum(),
            f"gap_{skew.author}_count": count,
            f"alpha_{skew.author}_sum": (skew.alphas(gaps, clock) * present).sum(),
            f"alpha_{skew.author}_count": count,
        }
