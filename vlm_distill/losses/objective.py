"""An objective: terms added up, the clock and the state of their schedules, and where responses come from.

The trainer sums `counts` over the micro-batches and ranks of an optimiser step before its first forward, so
that `loss` is already divided when it is computed. Named methods are compositions of terms, in
compositions.py.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_distill.batches import ResponseBatch
from vlm_distill.errors import DataError
from vlm_distill.losses.linear import linear_divergence
from vlm_distill.losses.pairs import PairBatch, PairTerm
from vlm_distill.losses.response_sources import ResponseSource, Stored
from vlm_distill.losses.row_blocks import TeacherRows
from vlm_distill.losses.rows import Result, Rows
from vlm_distill.losses.schedules import Clock, Schedule, SkewCurriculum
from vlm_distill.losses.terms import Term, TermBatch
from vlm_distill.records import Author

logger = logging.getLogger(__name__)


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
    on to the next round in a new process, the other way round. `source` says where the responses of each step
    come from. A step on responses of one author leaves the terms of the others at 0.
    """

    def __init__(self, terms: Sequence[Term | PairTerm], source: ResponseSource | None = None) -> None:
        assert len({term.name for term in terms}) == len(terms), "terms need distinct names"
        self.terms = tuple(terms)
        self.source: ResponseSource = Stored() if source is None else source
        self.clock = Clock()

    @property
    def authors(self) -> frozenset[Author]:
        """Whose responses are trained on."""
        return frozenset().union(*(term.authors for term in self.terms))

    @property
    def stored_authors(self) -> frozenset[Author]:
        """Whose responses must exist before a stage: without a stored source not the student's."""
        return self.authors - {"student"} if self.source.samples else self.authors

    @property
    def titles(self) -> dict[str, str]:
        """What the terms are called in the report, by the names of their metrics, where they say so."""
        return {term.name: term.title for term in self.terms if term.title}

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss reads teacher rows."""
        return any(term.needs_teacher for term in self.terms)

    @property
    def needs_reference_model(self) -> bool:
        """Whether the loss reads `ResponseBatch.reference_log_probs`: those of the student at the start."""
        return any(term.needs_reference_model for term in self.terms)

    def start_round(self, round: int, *, num_rounds: int | None = None) -> None:
        """Begin a round, counted from 1; `num_rounds` only serves the log."""
        self.clock = Clock(round=round)
        if num_rounds == 1 and any(isinstance(term, Term) and term.skew for term in self.terms):
            logger.info(
                "one round only: the alpha curriculum starts in round 2, alpha stays at its initial value"
            )

    def counts(self, responses: ResponseBatch) -> Float[Tensor, " term"]:
        """Return, per term, the number of tokens, non-empty responses or pairs that it averages over."""
        return torch.stack([term.count(responses) for term in self.terms]).float()

    def loss(
        self,
        student: Rows,
        teacher: TeacherRows | None,
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
        batches = [term.batch(responses, dtype) for term in self.terms]
        # A denominator of 0 divides nothing: without responses in the whole step there are no rows here.
        factors = [
            term.weight_at(self.clock) / denominator.to(dtype)
            for term, denominator in zip(self.terms, denominators, strict=True)
        ]
        groups = [batch.group(factor, self.clock) for batch, factor in zip(batches, factors, strict=True)]
        result = linear_divergence(
            student, teacher, groups=groups, labels=responses.labels, byte_budget=byte_budget
        )
        loss = result.loss
        for batch, factor in zip(batches, factors, strict=True):
            if isinstance(batch, PairBatch):
                loss = loss + batch.value(result, factor)
        metrics = self._metrics(batches, result, responses, denominators)
        return ObjectiveLoss(loss=loss, metrics={"loss_sum": loss.detach()} | metrics)

    def _metrics(
        self,
        batches: Sequence[TermBatch | PairBatch],
        result: Result,
        responses: ResponseBatch,
        denominators: Float[Tensor, " term"],
    ) -> dict[str, Float[Tensor, ""]]:
        counts = self.counts(responses)
        # The micro-batches of a step, over all ranks, count as 1: the logged loss is a mean over steps.
        metrics = {"loss_count": counts.sum() / denominators.sum().clamp_min(1)}
        for index, batch in enumerate(batches):
            metrics |= batch.metrics(result, result.row_values[index], counts[index], self.clock)
        for term in self.terms:
            if isinstance(term, Term) and term.log_weight_as is not None:
                name, weight = term.log_weight_as, term.weight_at(self.clock)
                metrics |= {f"{name}_sum": counts.new_full((), weight), f"{name}_count": counts.new_ones(())}
        return metrics

    def update(self, metrics: Mapping[str, float], *, fraction: float) -> None:
        """Advance the clock and the schedules after an optimiser step with the step's summed metrics.

        `fraction` is the part of the round's budget that is used now, before the next step.
        """
        for schedule in self._schedules().values():
            schedule.update(metrics, self.clock)
        self.clock = replace(self.clock, step=self.clock.step + 1, fraction=fraction)

    def metrics_view(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the means of metrics summed over one or more steps; a mean of nothing is left out."""
        view = {}
        for name, count in metrics.items():
            stem = name.removesuffix("_count")
            if stem != name and count > 0:
                view[stem] = metrics[f"{stem}_sum"] / count
        return view

    def state_dict(self) -> dict[str, Any]:
        """Return the clock and the state of the schedules and of the source as plain values."""
        schedules = {name: schedule.state_dict() for name, schedule in self._schedules().items()}
        source = {"kind": self.source.kind, "state": self.source.state_dict()}
        return {"clock": asdict(self.clock), "schedules": schedules, "source": source}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved clock and state.

        Raises:
            DataError: the state was saved by an objective with other schedules or another source.
        """
        schedules, source = self._schedules(), state["source"]
        expected = f"the schedules {sorted(schedules)} and the source {self.source.kind}"
        got = f"{sorted(state['schedules'])} and {source['kind']}"
        if set(state["schedules"]) != set(schedules) or source["kind"] != self.source.kind:
            raise DataError(f"objective state: expected {expected}, got {got}; was the objective changed?")
        for name, schedule in schedules.items():
            schedule.load_state_dict(state["schedules"][name])
        self.source.load_state_dict(source["state"])
        self.clock = Clock(**state["clock"])

    def _schedules(self) -> dict[str, Schedule | SkewCurriculum]:
        return {name: schedule for term in self.terms for name, schedule in term.schedules.items()}
