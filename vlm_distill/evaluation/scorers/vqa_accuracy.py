"""Soft accuracy against several human answers: VQA v2, OK-VQA, TextVQA, VizWiz."""

from typing import Literal

from pydantic import Field

from vlm_distill.config import Record
from vlm_distill.evaluation.scorers.vqa_text import M4C_COMMA, clean_whitespace, normalise_m4c, normalise_vqa

Profile = Literal["official", "lmms", "llava"]


class VqaAccuracy(Record):
    """The mean over annotators of min(1, matches among the other annotators / 3).

    With m matches of ten answers: 0, 0.3, 0.6, 0.9, and 1 from four on. Profiles differ in the normalisation
    only: `official` is VQA v2 (vqaEval.py), which normalises only where the answers are not all equal; `lmms`
    is lmms-eval's VQA v2, which always does; `llava` is the M4C evaluator of TextVQA, which LLaVA and
    lmms-eval share. Where a data set has one answer a question, `single_reference_votes: 10` lets it stand
    for ten annotators of one mind; without that such a question could never be right.
    """

    kind: Literal["vqa_accuracy"] = "vqa_accuracy"
    name: str = "vqa_accuracy"
    profile: Profile = "official"
    single_reference_votes: int = Field(default=1, ge=1)

    @property
    def min_references(self) -> int:
        """Below four answers no prediction reaches 1, and below two every one gets 0."""
        return 1 if self.single_reference_votes >= 4 else 4

    def __call__(self, prediction: str, references: tuple[str, ...]) -> float | None:
        if len(references) == 1:
            references = references * self.single_reference_votes
        wanted, answers = self._normalise(prediction, references)
        matches = answers.count(wanted)
        among_others = [matches - (answer == wanted) for answer in answers]
        return sum(min(1.0, count / 3) for count in among_others) / len(answers)

    def _normalise(self, prediction: str, references: tuple[str, ...]) -> tuple[str, list[str]]:
        if self.profile == "llava":
            return normalise_m4c(prediction), [normalise_m4c(answer) for answer in references]
        wanted, answers = clean_whitespace(prediction), [clean_whitespace(answer) for answer in references]
        if self.profile == "lmms":
            return normalise_vqa(wanted, comma=M4C_COMMA), [
                normalise_vqa(answer, comma=M4C_COMMA) for answer in answers
            ]
        if len(set(answers)) == 1:
            return wanted, answers
        return normalise_vqa(wanted), [normalise_vqa(answer) for answer in answers]
