"""What is measured of a model in a run: the names of its numbers, what they mean and how they are written.

The table of a run, its page, its model card and summary.json are made from these records.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from vlm_distill.evaluation.compare import compare
from vlm_distill.evaluation.results import TaskResult
from vlm_distill.evaluation.statistics import Estimate
from vlm_distill.evaluation.table import per_cent
from vlm_distill.evaluation.task import ALL

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A number that says how close a student is to its teacher, on prompts that nobody was trained on.

    `column` heads it in tables of text, `words` on a page; `meaning` says what it is, in `unit`.
    """

    column: str
    words: str
    meaning: str
    unit: str
    format: Callable[[float], str]
    better: Literal["lower", "higher"]

    @property
    def of_teacher(self) -> str:
        """What the teacher itself would have: no divergence, every answer its own."""
        return self.format(0.0 if self.better == "lower" else 1.0)


def _nats(value: float) -> str:
    return f"{value:.4f}"


# The keys name the numbers in agreement.json and summary.json.
MEASURES = {
    "token_kl": Measure(
        column="KL",
        words="KL to the teacher",
        meaning="KL(teacher || student) on the teacher's answers",
        unit="nats per token",
        format=_nats,
        better="lower",
    ),
    "own_kl": Measure(
        column="own KL",
        words="KL on own answers",
        meaning="KL(student || teacher) on the student's own answers",
        unit="nats per token",
        format=_nats,
        better="lower",
    ),
    "top1": Measure(
        column="top-1",
        words="same first choice",
        meaning="same first choice (top-1)",
        unit="per cent of tokens",
        format=per_cent,
        better="higher",
    ),
    "same_answer": Measure(
        column="same answer",
        words="same answer",
        meaning="same answer",
        unit="per cent of prompts",
        format=per_cent,
        better="higher",
    ),
}
SCORES_LEGEND = (
    "Scores in per cent with their 95 % interval or ± half of it, clustered by image. "
    "Drop: points lost when the images are permuted."
)
MEASURES_LEGEND = (
    "On held-out prompts: " + "; ".join(f"{one.meaning} in {one.unit}" for one in MEASURES.values()) + "."
)
LEGEND = f"{SCORES_LEGEND} {MEASURES_LEGEND}"


def score_column(task: str, metric: str, subset: str = ALL) -> str:
    """Return what the scores of a metric are called; those of a subset are always the first metric's."""
    return f"{task} {metric}" if subset == ALL else f"{task} {subset}"


def score_columns(task: str, metrics: Mapping[str, Mapping[str, T]]) -> Iterator[tuple[str, T]]:
    """Yield the column and value of what is shown: every metric on the whole set, subsets of the first."""
    for number, (metric, subsets) in enumerate(metrics.items()):
        for subset, value in subsets.items():
            if subset == ALL or number == 0:
                yield score_column(task, metric, subset), value


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was measured of one model.

    `track` is that of its step in the plan of a run, empty outside of one. `results` are those of the suite
    by task, `shuffled` those with permuted images. `values` are keyed as MEASURES; one that is missing or
    None could not be measured.
    """

    label: str
    track: str
    fingerprint: str
    results: Mapping[str, TaskResult]
    shuffled: Mapping[str, TaskResult]
    values: Mapping[str, float | None]

    @property
    def scores(self) -> dict[str, Estimate]:
        """The scores by column, between 0 and 1."""
        return {
            column: estimate
            for task, result in self.results.items()
            for column, estimate in score_columns(task, result.metrics)
        }

    @property
    def drops(self) -> dict[str, Estimate]:
        """By task, how much the first metric loses when the images are permuted."""
        return {
            task: compare(self.shuffled[task], result)[next(iter(result.metrics))][ALL].difference
            for task, result in self.results.items()
            if task in self.shuffled
        }
