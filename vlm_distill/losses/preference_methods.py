"""Methods that prefer the teacher's response to the student's, as compositions of one pair term."""

from dataclasses import dataclass
from typing import Literal

from vlm_distill.losses.objective import Objective
from vlm_distill.losses.pairs import PairTerm
from vlm_distill.losses.preferences import DirectPreference, InversePerplexity


@dataclass(frozen=True, kw_only=True, slots=True)
class SimPER:
    """Raises the inverse perplexity of teacher responses, lowers that of student ones. arXiv:2502.00883."""

    kind: Literal["simper"] = "simper"

    def build(self) -> Objective:
        return Objective([PairTerm(name="simper", function=InversePerplexity())])


@dataclass(frozen=True, kw_only=True, slots=True)
class DPO:
    """Teacher responses over student ones, relative to a reference model. arXiv:2305.18290.

    The reference is the student before the stage, or with "teacher" the teacher: DPKD on whole responses
    (arXiv:2406.19774), which `length_normalised` takes per token.
    """

    kind: Literal["dpo"] = "dpo"
    beta: float = 0.1
    reference: Literal["start", "teacher"] = "start"
    length_normalised: bool = False

    def __post_init__(self) -> None:
        self._function()

    def _function(self) -> DirectPreference:
        return DirectPreference(
            beta=self.beta, reference=self.reference, length_normalised=self.length_normalised
        )

    def build(self) -> Objective:
        return Objective([PairTerm(name="dpo", function=self._function())])
