"""A method: terms over responses of both authors."""

from dataclasses import dataclass, field
from typing import Literal

from vlm_distill.losses import JensenShannon, Objective, Term
from vlm_distill.losses.compositions import AnyDivergence


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoSided:
    """One divergence on the teacher's responses and, weighted by `own`, on the student's."""

    kind: Literal["two_sided"] = "two_sided"
    divergence: AnyDivergence = field(default_factory=JensenShannon)
    own: float = 0.5

    def build(self) -> Objective:
        theirs = Term(name="theirs", title="teacher's side", divergence=self.divergence, author="teacher")
        own = Term(
            name="own",
            title="student's side",
            divergence=self.divergence,
            author="student",
            weight=self.own,
        )
        return Objective([theirs, own])
