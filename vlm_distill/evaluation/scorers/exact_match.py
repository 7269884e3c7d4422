"""Equality of texts after a stated normalisation."""

import string
from typing import ClassVar, Literal

from vlm_distill.config import Record

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


class ExactMatch(Record):
    """1 if the prediction equals any reference, else 0. Articles and inner spaces are kept.

    `ignore_punctuation` deletes all ASCII punctuation, so that 't-shirt' equals 'tshirt' (the rule of lm-eval
    and lmms-eval); `strip` drops white space at both ends after that. `name` tells several exact matches of
    one task apart.
    """

    kind: Literal["exact_match"] = "exact_match"
    name: str = "exact_match"
    ignore_case: bool = True
    ignore_punctuation: bool = False
    strip: bool = True

    min_references: ClassVar[int] = 1

    def __call__(self, prediction: str, references: tuple[str, ...]) -> float | None:
        wanted = self.normalise(prediction)
        return float(any(self.normalise(reference) == wanted for reference in references))

    def normalise(self, text: str) -> str:
        text = text.lower() if self.ignore_case else text
        text = text.translate(_WITHOUT_PUNCTUATION) if self.ignore_punctuation else text
        return text.strip() if self.strip else text
