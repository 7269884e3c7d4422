"""An objective: which responses are compared with what, by which divergence, averaged and weighted how.

The trainer sums `counts` over the micro-batches and ranks of an optimiser step before its first forward, so
that `loss` is already divided when it is computed. Named methods are compositions of terms, in
compositions.py.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_distill.batches import ResponseBatch
from vlm_distill.errors import DataError
from vlm_distill.losses.divergences import Divergence, NegativeLogLikelihood
from vlm_distill.losses.linear import linear_divergence
from vlm_distill.losses.rows import Result, RowGroup, RowParameter, Rows
from vlm_distill.losses.schedules import Clock, Schedule, SkewCurriculum
from vlm_distill.losses.targets import OneHot, Target, Teacher
from vlm_distill.records import Author

logger = logging.getLogger(__name__)

Reduction: TypeAlias = Literal["token", "sequence"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One summand of an objective, over the responses of one author.

    `reduction` "token" is the mean over all their tokens, "sequence" the mean over each response and then
    over responses. `name` prefixes the metrics and the saved state. `log_weight_as` is the metric under which
    the weight is logged, if any.
    """

    name: str
    divergence: Divergence | NegativeLogLikelihood
    author: Author
    target: Target = field(default_factory=Teacher)
    weight: float | Schedule = 1.0
    reduction: Reduction = "sequence"
    skew: SkewCurriculum | None = None
    log_weight_as: str | None = None

    def __post_init__(self) -> None:
        assert isinstance(self.target, OneHot) == isinstance(self.divergence, NegativeLogLikelihood)
        assert self.skew is None or self.skew.author == self.author

    def weight_at(self, clock: Clock) -> float:
        return self.weight if isinstance(self.weight, float) else self.weight.value(clock)


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveLoss:
    """A micro-batch's share of the loss, divided by the denominators, and its metrics.

    Metrics are detached sums, `<name>_sum`, with the counts they are averaged by, `<name>_count`: additive
    over micro-batches and ranks, the same names in every call.
    """

    loss: Float[Tensor, ""]
    metrics: dict[str, Float[Tensor, ""]]


class Objective:
    """The terms of a method with the clock and the state of their schedules.

    Call `start_round` before each round; to resume inside a round, call it and then `load_state_dict`; to go
    on to the next round in a new process, the other way round.
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        assert len({term.name for term in terms}) == len(terms), "terms need distinct names"
        self.terms = tuple(terms)
        self.clock = Clock()

    @property
    def authors(self) -> frozenset[Author]:
        """Whose responses are trained on."""
        return frozenset(term.author for term in self.terms)

    @property
    def needs_teacher(self) -> bool:
        return any(isinstance(term.target, Teacher) for term in self.terms)

    def start_round(self, round: int, num_steps: int, *, num_rounds: int | None = None) -> None:
        """Begin a round, counted from 1, of `num_steps` optimiser steps; `num_rounds` only serves the log."""
        self.clock = Clock(round=round, num_steps=num_steps)
        if num_rounds == 1 and any(term.skew for term in self.terms):
            logger.info(
                "one round only: the alpha curriculum starts in round 2, alpha stays at its initial value"
            )

    def counts(self, responses: ResponseBatch) -> Float[Tensor, " term"]:
        """Return, per term, the tokens or the non-empty responses of its author, by its reduction."""
        counts = []
        for term in self.terms:
            num_tokens = responses.num_tokens * responses.is_by(term.author)
            counts.append(num_tokens.sum() if term.reduction == "token" else (num_tokens > 0).sum())
        return torch.stack(counts).float()

    def loss(
        self,
        student: Rows,
        teacher: Rows | None,
        responses: ResponseBatch,
        denominators: Float[Tensor, " term"],
        byte_budget: int,
    ) -> ObjectiveLoss:
        """Return the loss of a micro-batch; `denominators` are `counts` of the whole optimiser step.

        A term without responses contributes 0. A support mismatch under forward or reverse KL makes the loss
        inf, never NaN: `explain_non_finite` names the token once the trainer sees it, so that no step waits
        for a check.
        """
        dtype = torch.promote_types(student.hidden.dtype, torch.float32)
        shares = [_Share.of(term, responses, dtype) for term in self.terms]
        groups = [
            share.group(weight=share.term.weight_at(self.clock), denominator=denominator, clock=self.clock)
            for share, denominator in zip(shares, denominators, strict=True)
        ]
        labels = responses.labels
        result = linear_divergence(student, teacher, groups=groups, labels=labels, byte_budget=byte_budget)
        counts = self.counts(responses)
        # The micro-batches of a step, over all ranks, count as 1: the logged loss is a mean over steps.
        metrics = {
            "loss_sum": result.loss.detach(),
            "loss_count": counts.sum() / denominators.sum().clamp_min(1),
        }
        for index, share in enumerate(shares):
            metrics |= share.metrics(result.row_values[index], counts[index])
            metrics |= share.skew_metrics(result, self.clock)
            if share.term.log_weight_as is not None:
                name, weight = share.term.log_weight_as, share.term.weight_at(self.clock)
                metrics |= {f"{name}_sum": counts.new_full((), weight), f"{name}_count": counts.new_ones(())}
        return ObjectiveLoss(loss=result.loss, metrics=metrics)

    def update(self, metrics: Mapping[str, float]) -> None:
        """Advance the clock and the schedules after an optimiser step with the step's summed metrics."""
        for schedule in self._schedules().values():
            schedule.update(metrics, self.clock)
        self.clock = replace(self.clock, step=self.clock.step + 1)

    def metrics_view(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the means of metrics summed over one or more steps; a mean of nothing is left out."""
        view = {}
        for name, count in metrics.items():
            stem = name.removesuffix("_count")
            if stem != name and count > 0:
                view[stem] = metrics[f"{stem}_sum"] / count
        return view

    def state_dict(self) -> dict[str, Any]:
        """Return the clock and the schedules' state as plain values."""
        schedules = {name: schedule.state_dict() for name, schedule in self._schedules().items()}
        return {"clock": asdict(self.clock), "schedules": schedules}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved clock and state.

        Raises:
            DataError: the state was saved by an objective with other schedules.
        """
        schedules = self._schedules()
        if set(state["schedules"]) != set(schedules):
            expected, got = sorted(schedules), sorted(state["schedules"])
            raise DataError(
                f"objective state: expected the schedules {expected}, got {got}; was the objective changed?"
            )
        for name, schedule in schedules.items():
            schedule.load_state_dict(state["schedules"][name])
        self.clock = Clock(**state["clock"])

    def _schedules(self) -> dict[str, Schedule | SkewCurriculum]:
        schedules: dict[str, Schedule | SkewCurriculum] = {}
        for term in self.terms:
            if not isinstance(term.weight, float):
                schedules[f"{term.name}.weight"] = term.weight
            if term.skew is not None:
                schedules[f"{term.name}.skew"] = term.skew
        return schedules


@dataclass(frozen=True, kw_only=True, slots=True)
class _Share:
    """A term's rows in a micro-batch; `num_tokens` is 0 for the responses of other authors."""

    term: Term
    rows: Int[Tensor, " group"]
    response: Int[Tensor, " group"]
    num_tokens: Int[Tensor, " response"]
    dtype: torch.dtype

    @classmethod
    def of(cls, term: Term, responses: ResponseBatch, dtype: torch.dtype) -> "_Share":
        response_index = responses.response_index
        by_author = responses.is_by(term.author)
        rows = by_author[response_index].nonzero()[:, 0]
        num_tokens = responses.num_tokens * by_author
        return cls(term=term, rows=rows, response=response_index[rows], num_tokens=num_tokens, dtype=dtype)

    @property
    def scale(self) -> Float[Tensor, " group"]:
        """What each row counts before the division by the denominator."""
        if self.term.reduction == "token":
            return torch.ones_like(self.rows, dtype=self.dtype)
        return self.num_tokens[self.response].to(self.dtype).reciprocal()

    def group(self, *, weight: float, denominator: Float[Tensor, ""], clock: Clock) -> RowGroup:
        skew = self.term.skew
        parameter: RowParameter | None = None
        if skew is not None and skew.adapts(clock):

            def parameter(student: Tensor, teacher: Tensor) -> Tensor:
                return skew.alphas(self.gaps(student, teacher), clock)[self.response]

        # A denominator of 0 divides nothing: without responses in the whole step there are no rows here.
        factor = weight / denominator.to(self.dtype)
        return RowGroup(
            divergence=self.term.divergence, rows=self.rows, weight=self.scale * factor, parameter=parameter
        )

    def gaps(
        self, student_log_probs: Float[Tensor, " group"], teacher_log_probs: Float[Tensor, " group"]
    ) -> Float[Tensor, " response"]:
        """Return the gap of each response, 0 for those without rows in this share."""
        assert self.term.skew is not None
        num_tokens = self.num_tokens.clamp_min(1)
        zeros = student_log_probs.new_zeros(len(num_tokens))
        means = [
            zeros.index_add(0, self.response, log_probs) / num_tokens
            for log_probs in (student_log_probs, teacher_log_probs)
        ]
        return self.term.skew.gaps(means[0], means[1])

    def metrics(
        self, values: Float[Tensor, " group"], count: Float[Tensor, ""]
    ) -> dict[str, Float[Tensor, ""]]:
        return {f"{self.term.name}_sum": (values * self.scale).sum(), f"{self.term.name}_count": count}

    def skew_metrics(self, result: Result, clock: Clock) -> dict[str, Float[Tensor, ""]]:
        """Return gap and alpha of the share's responses, nothing for a term without a curriculum."""
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
