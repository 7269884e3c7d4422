"""What the student is pulled to: where p comes from. How far q is from it is the divergence's part."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from vlm_distill.losses.schedules import Schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class Teacher:
    """The teacher's distribution at the same response token."""

    kind: Literal["teacher"] = "teacher"


@dataclass(frozen=True, kw_only=True, slots=True)
class Interpolated:
    """softmax((1 - t) z_s + t z_t), a constant for the gradient. TAID, arXiv:2501.16937, Eq. 3.

    `t` is the teacher's share, in (0, 1].
    """

    t: Schedule
    kind: Literal["interpolated"] = "interpolated"


@dataclass(frozen=True, kw_only=True, slots=True)
class OneHot:
    """The response token itself: no teacher is run."""

    kind: Literal["one_hot"] = "one_hot"


Target: TypeAlias = Teacher | Interpolated | OneHot
