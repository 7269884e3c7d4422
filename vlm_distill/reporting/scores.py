"""The scores of a run: what was measured of each model, and how the last student compares with the others.

Rows come from summary.json; of a model that was evaluated since it was written, or before it exists, from the
results themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_distill.evaluation.measures import MEASURES, score_column, score_columns
from vlm_distill.evaluation.task import ALL
from vlm_distill.reporting.facts import Evaluation, Run
from vlm_distill.runs.plan import ROUNDS, TEACHER, Step


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """The mean of n answers with its 95 % interval, between 0 and 1; None for what could not be computed."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One model, by the step that measured it. `values` are keyed as MEASURES, None where not measured.

    `fingerprint` is empty where nothing but agreement with the teacher is known yet.
    """

    step: Step
    fingerprint: str
    scores: Mapping[str, Score]
    drops: Mapping[str, float | None]
    values: Mapping[str, float | None]

    @property
    def label(self) -> str:
        return self.step.label


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """All rows in the order of the plan, and the paired comparisons of the summary."""

    rows: Sequence[Row]
    comparisons: Sequence[Mapping[str, Any]]

    @property
    def columns(self) -> list[str]:
        """The columns of scores, the primary one first."""
        columns = dict.fromkeys(column for row in self.rows for column in row.scores)
        whole = [score_column(one["task"], one["metric"]) for one in self.comparisons if one["subset"] == ALL]
        return list(dict.fromkeys([*(column for column in whole[:1] if column in columns), *columns]))

    @property
    def tasks(self) -> list[str]:
        """The tasks that were also asked with permuted images."""
        return list(dict.fromkeys(task for row in self.rows for task in row.drops))

    @property
    def primary(self) -> str | None:
        return next(iter(self.columns), None)

    @property
    def students(self) -> list[Row]:
        return [row for row in self.rows if row.step.track != TEACHER]

    def of(self, track: str) -> Row | None:
        """Return the first row of a track: of the teacher, or of the student before any training."""
        return next((row for row in self.rows if row.step.track == track), None)

    @property
    def last(self) -> Row | None:
        """The student that the run is about: of the last round, else the last one that was measured."""
        planned = [row for row in self.students if row.step.is_planned]
        rounds = [row for row in planned if row.step.track == ROUNDS]
        return next(reversed(rounds or planned or self.students), None)


def read_scores(run: Run) -> Scores:
    """Return what is measured so far."""
    known = {row["model"]: row for row in run.summary.rows}
    rows = [
        _from_summary(one.step, known[one.label]) if one.label in known else _from_results(one)
        for one in run.evaluations
        if one.label in known or one.is_done
    ]
    return Scores(rows=rows, comparisons=run.summary.comparisons)


def _from_summary(step: Step, row: Mapping[str, Any]) -> Row:
    return Row(
        step=step,
        fingerprint=row["fingerprint"],
        scores={name: Score(**one) for name, one in row["scores"].items()},
        drops=row["image_shuffle_drop"],
        values={name: row[name] for name in MEASURES},
    )


def _from_results(evaluation: Evaluation) -> Row:
    """Return a row without the drops, which are paired differences that the end of the run computes."""
    scores = {
        column: Score(mean=one.mean, low=one.low, high=one.high, n=one.num_items)
        for result in evaluation.results
        for column, one in score_columns(result.task, result.metrics)
    }
    found = (result.provenance.model_fingerprint for result in evaluation.results)
    return Row(
        step=evaluation.step,
        fingerprint=next(found, ""),
        scores=scores,
        drops={},
        values=evaluation.values,
    )
