"""Numbers that change during training: weights of terms, the skew alpha of DistiLLM-2 and the t of TAID.

A schedule reads a `Clock` and, after every optimiser step, metrics summed over micro-batches and ranks. What
it learns from them is its state, plain values that go into the checkpoint; most schedules have none. The
clock itself is saved by objective.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_distill.errors import ConfigError

State: TypeAlias = dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """Where training is: `round` counts from 1, `step` counts optimiser steps of this round from 0.

    `fraction`, in [0, 1), is the part of the round's budget in steps or tokens that was used before this
    step.
    """

    round: int = 1
    step: int = 0
    fraction: float = 0.0


@runtime_checkable
class Schedule(Protocol):
    """A number that depends on the clock and perhaps on past metrics."""

    def value(self, clock: Clock) -> float: ...

    def update(self, metrics: Mapping[str, float], clock: Clock) -> None:
        """Learn from the optimiser step at `clock`, which has just ended."""

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    """The same value at every step."""

    constant: float
    kind: Literal["constant"] = "constant"

    def value(self, clock: Clock) -> float:
        return self.constant

    def update(self, metrics: Mapping[str, float], clock: Clock) -> None:
        pass

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """From `start` to `end` over the first `fraction` of a round, then `end`.

    It restarts every round, or with `restart` False stays at `end` after the first one.
    """

    start: float
    end: float
    fraction: float = 1.0
    restart: bool = True
    kind: Literal["linear"] = "linear"

    def value(self, clock: Clock) -> float:
        if clock.round > 1 and not self.restart:
            return self.end
        progress = min(1.0, clock.fraction / self.fraction)
        return self.start + (self.end - self.start) * progress

    def update(self, metrics: Mapping[str, float], clock: Clock) -> None:
        pass

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        pass


class SkewCurriculum:
    """The alpha curriculum of DistiLLM-2 for one side (arXiv:2503.07067).

    The gap D of a response is how much likelier its own author finds it, in mean token probability. With m
    the mean of D over all responses trained in round 1, alpha = clip(1 - (1 - initial) m / (D + 1e-5), LOW,
    HIGH). We deviate where the formula breaks: D <= 0, where the fraction changes sign, gives LOW; m <= 0
    keeps the initial alpha, as round 1 does.
    """

    LOW = 0.01
    HIGH = 0.1

    def __init__(self, author: Literal["teacher", "student"], *, initial: float) -> None:
        self.author = author
        self.initial = initial
        self.gap_sum = 0.0
        self.gap_count = 0.0

    @property
    def mean_gap(self) -> float:
        """m, 0 before anything was trained."""
        return self.gap_sum / self.gap_count if self.gap_count else 0.0

    def adapts(self, clock: Clock) -> bool:
        """Return whether alpha depends on the response at `clock`."""
        return clock.round > 1 and self.mean_gap > 0

    def gaps(
        self, student_means: Float[Tensor, " response"], teacher_means: Float[Tensor, " response"]
    ) -> Float[Tensor, " response"]:
        """Return D, given the mean label log-probabilities of each response under both models."""
        gaps = teacher_means.exp() - student_means.exp()
        return gaps if self.author == "teacher" else -gaps

    def alphas(self, gaps: Float[Tensor, " response"], clock: Clock) -> Float[Tensor, " response"]:
        if not self.adapts(clock):
            return torch.full_like(gaps, self.initial)
        alphas = 1 - (1 - self.initial) * self.mean_gap / (gaps + 1e-5)
        return alphas.masked_fill(gaps <= 0, self.LOW).clamp(self.LOW, self.HIGH)

    def update(self, metrics: Mapping[str, float], clock: Clock) -> None:
        if clock.round == 1:
            self.gap_sum += metrics[f"gap_{self.author}_sum"]
            self.gap_count += metrics[f"gap_{self.author}_count"]

    def state_dict(self) -> State:
        return {"gap_sum": self.gap_sum, "gap_count": self.gap_count}

    def load_state_dict(self, state: State) -> None:
        self.gap_sum, self.gap_count = state["gap_sum"], state["gap_count"]


class AdaptiveInterpolation:
    """The t of TAID: the teacher's share in the target of the term named `term`. arXiv:2501.16937.

    With l the term's mean loss in a step, d = (l_previous - l) / (l_previous + 1e-15), m <- beta m +
    (1 - beta) d, t <- min(t_end, max(t_start + (t_end - t_start) fraction, t + alpha sigmoid(m) (1 - t))).
    The first step only sets l_previous, a step without responses of the term changes nothing, and later
    rounds go on from the t that was reached.
    """

    def __init__(self, term: str, *, t_start: float, t_end: float, alpha: float, beta: float) -> None:
        if not 0 < t_start <= t_end <= 1:
            raise ConfigError(f"{term}: expected 0 < t_start <= t_end <= 1, got {t_start} and {t_end}")
        if not (0 <= alpha < math.inf and 0 <= beta < 1):
            raise ConfigError(
                f"{term}: expected a finite alpha >= 0 and 0 <= beta < 1, got {alpha} and {beta}"
            )
        self.term, self.t_start, self.t_end, self.alpha, self.beta = term, t_start, t_end, alpha, beta
        self.t = t_start
        self.momentum = 0.0
        self.previous_loss: float | None = None

    def value(self, clock: Clock) -> float:
        return self.t

    def update(self, metrics: Mapping[str, float], clock: Clock) -> None:
        if not metrics[f"{self.term}_count"]:
            return
        loss = metrics[f"{self.term}_sum"] / metrics[f"{self.term}_count"]
        if self.previous_loss is not None:
            change = (self.previous_loss - loss) / (self.previous_loss + 1e-15)
            self.momentum = self.beta * self.momentum + (1 - self.beta) * change
            floor = self.t_start + (self.t_end - self.t_start) * clock.fraction
            # After a loss of nearly 0 the change is beyond what exp takes; the share is 0 long before.
            raised = self.t + self.alpha * (1 - self.t) / (1 + math.exp(min(-self.momentum, 700.0)))
            self.t = min(self.t_end, max(floor, raised))
        self.previous_loss = loss

    def state_dict(self) -> State:
        state = {"t": self.t, "momentum": self.momentum}
        return state if self.previous_loss is None else state | {"previous_loss": self.previous_loss}

    def load_state_dict(self, state: State) -> None:
        self.t, self.momentum = state["t"], state["momentum"]
        self.previous_loss = state.get("previous_loss")
