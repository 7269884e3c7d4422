"""A term over pairs of responses to one prompt, for functions of whole-response log-probabilities.

Logits of all rows never exist here either: a first pass gives the label log-probabilities, and the derivative
of the pair function for each response's log-probability becomes the weight of its rows in a likelihood, whose
gradient is then that of the pair function, exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlm_distill.batches import ResponseBatch
from vlm_distill.losses.label_divergences import NegativeLogLikelihood
from vlm_distill.losses.preferences import Preference, Side
from vlm_distill.losses.rows import Result, RowGroup
from vlm_distill.losses.schedules import Clock, Schedule
from vlm_distill.records import Author


@dataclass(frozen=True, kw_only=True, slots=True)
class PairTerm:
    """One summand of an objective, over pairs of responses, by default the teacher's over the student's.

    Sample i of one author is paired with sample i of the other. A response without partner, or with an empty
    one, is not trained; `<name>_unpaired` is the share of such responses. The mean is over pairs.
    """

    compares_distributions: ClassVar[bool] = False
    mixes_logits: ClassVar[bool] = False
    name: str
    function: Preference
    chosen: Author = "teacher"
    rejected: Author = "student"
    weight: float = 1.0
    title: str = ""

    def __post_init__(self) -> None:
        assert self.chosen != self.rejected

    @property
    def authors(self) -> frozenset[Author]:
        return frozenset({self.chosen, self.rejected})

    @property
    def needs_teacher(self) -> bool:
        return self.function.reference == "teacher"

    @property
    def needs_reference_model(self) -> bool:
        return self.function.reference == "start"

    @property
    def schedules(self) -> Mapping[str, Schedule]:
        return {}

    def weight_at(self, clock: Clock) -> float:
        return self.weight

    def count(self, responses: ResponseBatch) -> Int[Tensor, ""]:
        """Return the number of pairs."""
        return self._partners(responses).sum()

    def batch(self, responses: ResponseBatch, dtype: torch.dtype) -> "PairBatch":
        """Return the term's part in a micro-batch."""
        # [response, response] to two lists of indices, [pair] each.
        chosen, rejected = self._partners(responses).nonzero().unbind(dim=1)
        num_tokens = responses.num_tokens
        is_paired = torch.zeros_like(num_tokens, dtype=torch.bool)
        is_paired[chosen] = is_paired[rejected] = True
        response_index = responses.response_index
        rows = is_paired[response_index].nonzero()[:, 0]
        candidates = responses.is_by(self.chosen) | responses.is_by(self.rejected)
        return PairBatch(
            term=self,
            rows=rows,
            response=response_index[rows],
            num_tokens=num_tokens,
            chosen=chosen,
            rejected=rejected,
            num_candidates=candidates.sum(),
            initial_log_probs=responses.reference_log_probs,
            dtype=dtype,
        )

    def _partners(self, responses: ResponseBatch) -> Bool[Tensor, "response response"]:
        """Return whether the row's response is chosen over the column's."""
        same_prompt = responses.prompt_index[:, None] == responses.prompt_index
        same_author = responses.author[:, None] == responses.author
        # The number of a response among those of its author to its prompt: how many such stand before it.
        sample = (same_prompt & same_author).tril(diagonal=-1).sum(dim=1)
        present = responses.num_tokens > 0
        chosen, rejected = responses.is_by(self.chosen) & present, responses.is_by(self.rejected) & present
        return same_prompt & (sample[:, None] == sample) & chosen[:, None] & rejected


@dataclass(frozen=True, kw_only=True, slots=True)
class PairBatch:
    """A term's pairs in a micro-batch.

    `chosen` and `rejected` are indices of responses, `rows` and `response` belong to responses with a
    partner, `num_candidates` counts all responses of the two authors.
    """

    term: PairTerm
    rows: Int[Tensor, " group"]
    response: Int[Tensor, " group"]
    num_tokens: Int[Tensor, " response"]
    chosen: Int[Tensor, " pair"]
    rejected: Int[Tensor, " pair"]
    num_candidates: Int[Tensor, ""]
    initial_log_probs: Float[Tensor, " response"] | None
    dtype: torch.dtype

    def group(self, factor: Float[Tensor, ""], clock: Clock) -> RowGroup:
        """Return the rows whose weighted likelihood has the gradient of `factor` times the summed values."""

        def weight(student: Tensor, teacher: Tensor | None) -> Tensor:
            with torch.enable_grad():
                log_probs = self._sums(student).requires_grad_()
                values = self.term.function(*self._sides(log_probs, teacher))
                (gradient,) = torch.autograd.grad(values.sum(), log_probs)
            # [response] to [group]: a response's log-probability is the sum of its rows'.
            return -factor * gradient[self.response]

        return RowGroup(divergence=NegativeLogLikelihood(), rows=self.rows, weight=weight, gradient_only=True)

    def value(self, result: Result, factor: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Return `factor` times the summed values; the gradient is in the result's loss."""
        return (self.term.function(*self._result_sides(result)) * factor).sum()

    def metrics(
        self, result: Result, values: Float[Tensor, " group"], count: Float[Tensor, ""], clock: Clock
    ) -> dict[str, Float[Tensor, ""]]:
        """Return sums and counts; `count` is the number of pairs in this batch."""
        name, sides = self.term.name, self._result_sides(result)
        per_pair = {
            name: self.term.function(*sides),
            f"{name}_log_prob_{self.term.chosen}": sides[0].mean_log_prob,
            f"{name}_log_prob_{self.term.rejected}": sides[1].mean_log_prob,
        } | {f"{name}_{key}": value for key, value in self.term.function.metrics(*sides).items()}
        metrics: dict[str, Float[Tensor, ""]] = {}
        for key, value in per_pair.items():
            metrics |= {f"{key}_sum": value.sum(), f"{key}_count": count}
        candidates = self.num_candidates.to(count.dtype)
        return metrics | {
            f"{name}_unpaired_sum": candidates - 2 * count,
            f"{name}_unpaired_count": candidates,
        }

    def _result_sides(self, result: Result) -> tuple[Side, Side]:
        teacher = result.teacher_label_log_probs
        log_probs = self._sums(result.student_label_log_probs[self.rows])
        return self._sides(log_probs, None if teacher is None else teacher[self.rows])

    def _sides(
        self, log_probs: Float[Tensor, " response"], teacher_label_log_probs: Float[Tensor, " group"] | None
    ) -> tuple[Side, Side]:
        """Return both sides, given whole-response log-probabilities and the teacher's of the group's rows."""
        reference = self._reference(teacher_label_log_probs)
        sides = [
            Side(
                log_prob=log_probs[index],
                num_tokens=self.num_tokens[index],
                reference_log_prob=None if reference is None else reference[index],
            )
            for index in (self.chosen, self.rejected)
        ]
        return sides[0], sides[1]

    def _reference(
        self, teacher_label_log_probs: Float[Tensor, " group"] | None
    ) -> Float[Tensor, " response"] | None:
        if self.term.needs_teacher:
            assert teacher_label_log_probs is not None, f"{self.term.name} needs teacher rows"
            return self._sums(teacher_label_log_probs)
        if self.term.needs_reference_model:
            assert self.initial_log_probs is not None, f"{self.term.name} needs reference_log_probs"
            return self.initial_log_probs.to(self.dtype)
        return None

    def _sums(self, label_log_probs: Float[Tensor, " group"]) -> Float[Tensor, " response"]:
        zeros = label_log_probs.new_zeros(len(self.num_tokens))
        return zeros.index_add(0, self.response, label_log_probs)
