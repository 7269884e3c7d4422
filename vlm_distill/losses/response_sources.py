"""Where the responses of an optimiser step come from, as a choice by numbers: store, live student or replay.

What the choice leads to, sampling and the replay buffer itself, is the trainer's.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

from vlm_distill.errors import ConfigError
from vlm_distill.losses.schedules import Clock, State

Choice: TypeAlias = Literal["off_policy", "on_policy", "replay"]
"""Responses made before the stage, sampled from the live student now, or from the replay buffer."""


@runtime_checkable
class ResponseSource(Protocol):
    """A choice per step that depends on one uniform draw, the clock and perhaps on validation losses."""

    @property
    def kind(self) -> str: ...

    @property
    def samples(self) -> bool:
        """Whether the student may be sampled during the stage, so that not all responses exist before it."""

    @property
    def capacity(self) -> int:
        """How many of the latest on-policy responses the replay buffer holds; 0 is none."""

    @property
    def needs_validation(self) -> bool:
        """Whether the choice depends on `observe_validation`, so that a stage must validate."""

    def draw(self, uniform: float, clock: Clock, *, buffered: int) -> Choice:
        """Return the choice for the step at `clock`: `uniform` in [0, 1), `buffered` responses at hand."""

    def observe_validation(self, loss: float) -> None: ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """Always the responses that were made before the stage."""

    kind: Literal["stored"] = "stored"
    samples: ClassVar[bool] = False
    capacity: ClassVar[int] = 0
    needs_validation: ClassVar[bool] = False

    def draw(self, uniform: float, clock: Clock, *, buffered: int) -> Choice:
        return "off_policy"

    def observe_validation(self, loss: float) -> None:
        pass

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        pass


@dataclass(frozen=True, kw_only=True, slots=True)
class OnPolicy:
    """On-policy responses with probability `share`, else stored ones. GKD, arXiv:2306.13649."""

    share: float
    kind: Literal["on_policy"] = "on_policy"
    samples: ClassVar[bool] = True
    capacity: ClassVar[int] = 0
    needs_validation: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"on-policy share: expected 0 to 1, got {self.share}")

    def draw(self, uniform: float, clock: Clock, *, buffered: int) -> Choice:
        return "on_policy" if uniform < self.share else "off_policy"

    def observe_validation(self, loss: float) -> None:
        pass

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        pass


class AdaptiveOffPolicy:
    """The adaptive off-policy scheme of DistiLLM with its replay buffer. arXiv:2402.03898, Sec. 3.2.

    The student's responses are used with probability phi. It starts at 0 and rises by `threshold_step`, up to
    1, whenever a validation loss is at least `margin` above that of the last rise (at first: of the first
    validation). Of these steps, all sample until the buffer is full, then only a share that falls linearly to
    0 over the round; the others replay.
    """

    kind = "adaptive_off_policy"
    samples = True
    needs_validation = True

    def __init__(self, *, capacity: int = 1000, threshold_step: float = 0.1, margin: float = 0.1) -> None:
        if not (capacity >= 1 and 0 < threshold_step <= 1):
            got = f"got {capacity} and {threshold_step}"
            raise ConfigError(f"replay buffer: expected capacity >= 1 and 0 < threshold_step <= 1, {got}")
        if not math.isfinite(margin):
            raise ConfigError(f"replay buffer: expected a finite margin, got {margin}")
        self.capacity, self.threshold_step, self.margin = capacity, threshold_step, margin
        self.num_rises = 0
        self.previous_loss: float | None = None

    @property
    def threshold(self) -> float:
        """Phi; a product instead of a sum, so that ten rises by 0.1 make exactly 1."""
        return min(1.0, self.num_rises * self.threshold_step)

    def draw(self, uniform: float, clock: Clock, *, buffered: int) -> Choice:
        if uniform >= self.threshold:
            return "off_policy"
        is_full = buffered >= self.capacity
        return "replay" if is_full and uniform >= self.threshold * (1 - clock.fraction) else "on_policy"

    def observe_validation(self, loss: float) -> None:
        if self.previous_loss is None:
            self.previous_loss = loss
        elif loss >= self.previous_loss + self.margin:
            self.num_rises += 1
            self.previous_loss = loss

    def state_dict(self) -> State:
        state: State = {"num_rises": float(self.num_rises)}
        return state if self.previous_loss is None else state | {"previous_loss": self.previous_loss}

    def load_state_dict(self, state: State) -> None:
        self.num_rises = int(state["num_rises"])
        self.previous_loss = state.get("previous_loss")
