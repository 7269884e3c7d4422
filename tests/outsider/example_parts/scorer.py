"""A score of one answer."""

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstLetter:
    """1 if the answer begins like a reference, else 0; an empty answer is none."""

    kind: Literal["first_letter"] = "first_letter"
    name: str = "first_letter"
    min_references: ClassVar[int] = 1

    def __call__(self, prediction: str, references: tuple[str, ...]) -> float | None:
        text = prediction.strip()
        return float(any(one.startswith(text[0]) for one in references)) if text else None
