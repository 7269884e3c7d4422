"""The table at the end of a run: one row a model, and the last round against every other student."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_distill.evaluation.compare import compare
from vlm_distill.evaluation.measures import LEGEND, MEASURES, Measured, score_column
from vlm_distill.evaluation.table import format_estimate, format_table, p_value, points
from vlm_distill.files import atomic_path
from vlm_distill.runs.plan import ROUNDS, TEACHER
from vlm_distill.state import find_state, write_state

SUMMARY = "summary.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The table in numbers: a row per model, and paired comparisons."""

    rows: Sequence[Mapping[str, Any]]
    comparisons: Sequence[Mapping[str, Any]]


def find_summary(folder: Path) -> Summary | None:
    """Return the summary of a run, None before its end; DataError for a damaged one."""
    path = folder / SUMMARY
    return find_state(Summary, path, remedy=f"delete {path}, and the run writes it again")


def summarise(measured: Sequence[Measured], *, folder: Path) -> str:
    """Return the summary as Markdown and write it to `summary.md` and `summary.json` in the folder."""
    if not measured:
        return "nothing was evaluated: the config has no `evaluate`"
    comparisons = list(_comparisons(measured))
    parts = [format_table([_cells(one) for one in measured]), LEGEND]
    if comparisons:
        parts.append(format_table([_comparison_cells(comparison) for comparison in comparisons]))
    text = "\n\n".join(parts)
    with atomic_path(folder / "summary.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    summary = Summary(rows=[_values(one) for one in measured], comparisons=comparisons)
    write_state(folder / SUMMARY, summary)
    return text


def _cells(one: Measured) -> dict[str, object]:
    row: dict[str, object] = {"model": one.label}
    row |= {column: format_estimate(estimate) for column, estimate in one.scores.items()}
    row |= {f"{task} drop": format_estimate(estimate) for task, estimate in one.drops.items()}
    for name, measure in MEASURES.items():
        value = one.values.get(name)
        row[measure.column] = "-" if value is None else measure.format(value)
    return row


def _values(one: Measured) -> dict[str, Any]:
    scores = {
        column: {"mean": score.mean, "low": score.low, "high": score.high, "n": score.num_items}
        for column, score in one.scores.items()
    }
    return {
        "model": one.label,
        "fingerprint": one.fingerprint,
        "accuracy": next(iter(scores.values()), {"mean": None})["mean"],
        "scores": scores,
        "image_shuffle_drop": {task: drop.mean for task, drop in one.drops.items()},
        **{name: one.values.get(name) for name in MEASURES},
        "counts": {task: dict(result.counts) for task, result in one.results.items()},
    }


def _comparisons(measured: Sequence[Measured]) -> Iterator[dict[str, Any]]:
    """Compare the last student of the rounds with every other model, by the first metric of each task.

    Without rounds the last student is compared. Questions are paired.
    """
    rounds = [one for one in measured if one.track == ROUNDS]
    last = (rounds or [one for one in measured if one.track != TEACHER] or measured)[-1]
    for other in (one for one in measured if one is not last):
        for task, result in last.results.items():
            metric, subsets = next(iter(compare(other.results[task], result).items()))
            for subset, pair in subsets.items():
                yield {
                    "better": last.label,
                    "than": other.label,
                    "task": task,
                    "metric": metric,
                    "subset": subset,
                    "difference": pair.difference.mean,
                    "low": pair.difference.low,
                    "high": pair.difference.high,
                    "p_value": pair.p_value,
                }


def _comparison_cells(comparison: dict[str, Any]) -> dict[str, object]:
    bounds = (comparison[name] for name in ("difference", "low", "high"))
    difference, low, high = ("?" if value is None else points(value) for value in bounds)
    return {
        "comparison": f"{comparison['better']} - {comparison['than']}",
        "score": score_column(comparison["task"], comparison["metric"], comparison["subset"]),
        "points": difference,
        "95 % interval": f"[{low}, {high}]",
        "p": p_value(comparison["p_value"]),
    }
