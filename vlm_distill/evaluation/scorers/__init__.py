"""Scorers: what one prediction is worth, given the references. Means and intervals are in statistics.py.

A scorer is a frozen record whose fields are its config. `scorer(prediction, references)` returns the score of
one sample, or None where the answer could not be parsed: that counts as 0 and is reported as unparsed, never
guessed. A metric that needs the whole set at once (F1, CIDEr) will be a second union beside this one.
"""

from typing import Annotated

from pydantic import Field

from vlm_distill.evaluation.scorers.exact_match import ExactMatch
from vlm_distill.evaluation.scorers.vqa_accuracy import VqaAccuracy

Scorer = Annotated[ExactMatch | VqaAccuracy, Field(discriminator="kind")]

__all__ = ["ExactMatch", "Scorer", "VqaAccuracy"]
