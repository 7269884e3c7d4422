"""What the student is pulled to: where p comes from. How far q is from it is the divergence's part."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

from vlm_distill.losses.log_space import LogProbs
from vlm_distill.losses.schedules import Clock, Schedule


@runtime_checkable
class RowTarget(Protocol):
    """What terms and linear.py ask of a target; the answers here are those of the teacher itself."""

    __slots__ = ()
    needs_teacher: ClassVar[bool] = True
    # Only a teacher whose logits are all known can be mixed with the student.
    mixes_logits: ClassVar[bool] = False

    @property
    def schedules(self) -> Mapping[str, Schedule]:
        """What changes during training, by the name of its metric."""
        return {}

    def at(self, clock: Clock) -> "RowTarget":
        """Return the target of the step at `clock`."""
        return self

    def log_probs(self, log_q: LogProbs, log_p: LogProbs) -> LogProbs:
        """Return the target, a constant for the gradient, given student and teacher in the same columns."""
        return log_p


@dataclass(frozen=True, kw_only=True, slots=True)
class Teacher(RowTarget):
    """The teacher's distribution at the same response token."""

    kind: Literal["teacher"] = "teacher"


@dataclass(frozen=True, kw_only=True, slots=True)
class Interpolated(RowTarget):
    """softmax((1 - t) z_s + t z_t), a constant for the gradient. TAID, arXiv:2501.16937, Eq. 3.

    `t` is the teacher's share, in (0, 1].
    """

    mixes_logits: ClassVar[bool] = True
    t: float | Schedule
    kind: Literal["interpolated"] = "interpolated"

    @property
    def schedules(self) -> Mapping[str, Schedule]:
        return {} if isinstance(self.t, float) else {"t": self.t}

    def at(self, clock: Clock) -> "Interpolated":
        return self if isinstance(self.t, float) else replace(self, t=float(self.t.value(clock)))

    def log_probs(self, log_q: LogProbs, log_p: LogProbs) -> LogProbs:
        assert isinstance(self.t, float), "the t of a step, from `at`"
        if self.t == 1.0:
            return log_p
        # Log-probabilities are logits: their constants cancel in the softmax. Not lerp, which subtracts: a
        # token that both lack would become NaN.
        return (log_q * (1 - self.t)).add_(log_p, alpha=self.t).log_softmax(dim=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class OneHot(RowTarget):
    """The response token itself: no teacher is run."""

    needs_teacher: ClassVar[bool] = False
    kind: Literal["one_hot"] = "one_hot"


Target: TypeAlias = Teacher | Interpolated | OneHot
