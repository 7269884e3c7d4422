"""Scorers: what one prediction is worth, given the references. Means and intervals are in statistics.py.

A metric that needs the whole set at once (F1, CIDEr) will be a second union beside this one.
"""

from typing import Annotated, Protocol, TypeAlias, get_args, runtime_checkable

from vlm_distill.config import Kinds
from vlm_distill.evaluation.scorers.exact_match import ExactMatch
from vlm_distill.evaluation.scorers.vqa_accuracy import VqaAccuracy


@runtime_checkable
class ScorerConfig(Protocol):
    """What a task asks of a scorer: a frozen record, whose fields are its settings."""

    @property
    def kind(self) -> str: ...

    @property
    def name(self) -> str:
        """What the metric is called in results; `kind` unless a task has several of them."""

    @property
    def min_references(self) -> int:
        """How many references every example must have."""

    def __call__(self, prediction: str, references: tuple[str, ...]) -> float | None:
        """Return the score of one sample, 0 to 1.

        None where the answer could not be parsed: that counts as 0 and is reported as unparsed, never
        guessed.
        """


KnownScorer: TypeAlias = ExactMatch | VqaAccuracy
Scorer: TypeAlias = Annotated[ScorerConfig, Kinds("vlm_distill.scorers", get_args(KnownScorer))]

__all__ = ["ExactMatch", "KnownScorer", "Scorer", "ScorerConfig", "VqaAccuracy"]
