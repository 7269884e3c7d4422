"""The table of a report: what was measured of each model, and the verdict in one sentence.

Rows come from summary.json; models that were evaluated since it was written, or before it exists, are read
from their own results.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_distill.evaluation.task import ALL
from vlm_distill.files import read_json
from vlm_distill.reporting.run_files import RunFiles, read_mapping, result_folders

TEACHER = "teacher"


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A mean with its 95 % interval, all three between 0 and 1; None for what could not be computed."""

    mean: float | None
    low: float | None
    high: float | None
    num_items: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One model. KLs are in nats per response token; agreement is None where it is not measured."""

    label: str
    scores: Mapping[str, Score]
    drops: Mapping[str, float | None]
    token_kl: float | None
    own_kl: float | None
    top1: float | None
    same_answer: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """All rows, the columns of scores with the primary one first, and the paired comparisons."""

    rows: Sequence[Row]
    columns: Sequence[str]
    tasks: Sequence[str]
    comparisons: Sequence[Mapping[str, Any]]

    @property
    def primary(self) -> str | None:
        return self.columns[0] if self.columns else None

    def row(self, label: str) -> Row | None:
        return next((row for row in self.rows if row.label == label), None)

    @property
    def last(self) -> Row | None:
        """The student that the run is about: of the last round, else the last one that was measured."""
        students = [row for row in self.rows if row.label != TEACHER]
        rounds = [row for row in students if row.label.startswith("round ")]
        return next(reversed(rounds or students), None)


def read_scores(run: RunFiles) -> Scores:
    """Return what is measured so far."""
    rows = [_from_summary(row) for row in run.summary.get("rows", [])]
    known = {row.label for row in rows}
    rows += [_from_results(run, label) for label in run.found_labels if label not in known]
    comparisons = run.summary.get("comparisons", [])
    columns = dict.fromkeys(column for row in rows for column in row.scores)
    whole = [f"{one['task']} {one['metric']}" for one in comparisons if one["subset"] == ALL]
    primary = [column for column in whole[:1] if column in columns]
    return Scores(
        rows=rows,
        columns=list(dict.fromkeys([*primary, *columns])),
        tasks=list(dict.fromkeys(task for row in rows for task in row.drops)),
        comparisons=comparisons,
    )


def _from_summary(row: Mapping[str, Any]) -> Row:
    return Row(
        label=row["model"],
        scores={
            name: Score(mean=one["mean"], low=one["low"], high=one["high"], num_items=one["n"])
            for name, one in row["scores"].items()
        },
        drops=row["image_shuffle_drop"],
        token_kl=row["token_kl"],
        own_kl=row.get("own_kl"),
        top1=row["top1"],
        same_answer=row["same_answer"],
    )


def _from_results(run: RunFiles, label: str) -> Row:
    """Return a row without the drops, which are paired differences that the end of the run computes."""
    folder = run.evaluation(label)
    scores = {}
    for result in result_folders(folder):
        values = read_json(result / "results.json")
        for number, (metric, subsets) in enumerate(values["metrics"].items()):
            for subset, one in subsets.items():
                # As in the summary: every metric on the whole set, the subsets of the first metric.
                if subset == ALL or number == 0:
                    name = f"{values['task']} {metric if subset == ALL else subset}"
                    low, high = one["low"], one["high"]
                    scores[name] = Score(mean=one["mean"], low=low, high=high, num_items=one["num_items"])
    agreement = read_mapping(folder / "agreement.json").get("values", {})
    return Row(
        label=label,
        scores=scores,
        drops={},
        token_kl=agreement.get("token_kl"),
        own_kl=agreement.get("own_kl"),
        top1=agreement.get("top1"),
        same_answer=agreement.get("answers"),
    )
