"""What the student is pulled to: where p comes from. How far q is from it is the divergence's part."""

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, kw_only=True, slots=True)
class Teacher:
    """The teacher's distribution at the same response token."""

    kind: Literal["teacher"] = "teacher"


@dataclass(frozen=True, kw_only=True, slots=True)
class OneHot:
    """The response token itself: no teacher is run."""

    kind: Literal["one_hot"] = "one_hot"


Target: TypeAlias = Teacher | OneHot
