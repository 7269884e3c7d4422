"""The table at the end of a run: one row a model, and the last round against every other student."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm_distill.evaluation.compare import compare
from vlm_distill.evaluation.results import TaskResult
from vlm_distill.evaluation.statistics import PairedDifference
from vlm_distill.evaluation.table import format_estimate, format_table
from vlm_distill.evaluation.task import ALL
from vlm_distill.files import atomic_path, write_json
from vlm_distill.runs.evaluator import Measured
from vlm_distill.runs.plan import ROUNDS, TEACHER

LEGEND = (
    "Scores in per cent with the half-width of the 95 % interval, clustered by image. "
    "KL(teacher || student) in nats per response token, equal first choice (top-1) and equal answer "
    "on held-out prompts. Drop: points lost when the images are permuted."
)


def summarise(measured: Sequence[Measured], *, folder: Path) -> str:
    """Return the summary as Markdown and write it to `summary.md` and `summary.json` in the folder."""
    if not measured:
        return "nothing was evaluated: the config has no `evaluate`"
    comparisons = _comparisons(measured)
    parts = [format_table([_row(one) for one in measured]), LEGEND]
    if comparisons:
        parts.append(format_table([_comparison_row(comparison) for comparison in comparisons]))
    text = "\n\n".join(parts)
    with atomic_path(folder / "summary.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    write_json(
        folder / "summary.json", {"rows": [_values(one) for one in measured], "comparisons": comparisons}
    )
    return text


def _cells(results: dict[str, TaskResult]) -> list[tuple[str, str, str, str]]:
    """Return (column, task, metric, subset) of every number of the table.

    All metrics, and the subsets of the first one.
    """
    return [
        (f"{task} {metric}" if subset == ALL else f"{task} {subset}", task, metric, subset)
        for task, result in results.items()
        for number, (metric, subsets) in enumerate(result.metrics.items())
        for subset in subsets
        if subset == ALL or number == 0
    ]


def _row(one: Measured) -> dict[str, object]:
    row: dict[str, object] = {"model": one.label}
    for column, task, metric, subset in _cells(dict(one.results)):
        row[column] = format_estimate(one.results[task].metrics[metric][subset])
    for task, result in one.results.items():
        if task in one.shuffled:
            metric = next(iter(result.metrics))
            drop = compare(one.shuffled[task], result)[metric][ALL].difference
            row[f"{task} drop"] = format_estimate(drop)
    row["KL"] = "-" if one.token_kl is None else f"{one.token_kl:.4f}"
    row["own KL"] = "-" if one.own_kl is None else f"{one.own_kl:.4f}"
    row["top-1"] = "-" if one.top1 is None else f"{100 * one.top1:.1f}"
    row["same answer"] = "-" if one.answers is None else f"{100 * one.answers:.1f}"
    return row


def _values(one: Measured) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    for column, task, metric, subset in _cells(dict(one.results)):
        estimate = one.results[task].metrics[metric][subset]
        scores[column] = {
            "mean": estimate.mean,
            "low": estimate.low,
            "high": estimate.high,
            "n": estimate.num_items,
        }
    first = next(iter(scores.values()), {"mean": None})
    drops = {}
    for task, result in one.results.items():
        if task in one.shuffled:
            drops[task] = compare(one.shuffled[task], result)[next(iter(result.metrics))][ALL].difference.mean
    return {
        "model": one.label,
        "fingerprint": one.fingerprint,
        "accuracy": first["mean"],
        "scores": scores,
        "image_shuffle_drop": drops,
        "token_kl": one.token_kl,
        "own_kl": one.own_kl,
        "top1": one.top1,
        "same_answer": one.answers,
        "counts": {task: dict(result.counts) for task, result in one.results.items()},
    }


def _comparisons(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Compare the last student of the rounds with every other model, by the first metric of each task.

    Without rounds the last student is compared. Questions are paired.
    """
    rounds = [one for one in measured if one.track == ROUNDS]
    last = (rounds or [one for one in measured if one.track != TEACHER] or list(measured))[-1]
    found = []
    for other in measured:
        if other is last:
            continue
        names = {"better": last.label, "than": other.label}
        for task, result in last.results.items():
            metric, subsets = next(iter(compare(other.results[task], result).items()))
            found += [
                {**names, "task": task, "metric": metric, "subset": subset, **_paired(pair)}
                for subset, pair in subsets.items()
            ]
    return found


def _paired(pair: PairedDifference) -> dict[str, float | None]:
    estimate = pair.difference
    return {"difference": estimate.mean, "low": estimate.low, "high": estimate.high, "p_value": pair.p_value}


def _comparison_row(comparison: dict[str, Any]) -> dict[str, object]:
    points = [comparison[name] for name in ("difference", "low", "high")]
    shown = ["?" if value is None else f"{100 * value:+.1f}" for value in points]
    p_value = comparison["p_value"]
    return {
        "comparison": f"{comparison['better']} - {comparison['than']}",
        "score": f"{comparison['task']} {comparison['metric']}"
        + ("" if comparison["subset"] == ALL else f" {comparison['subset']}"),
        "points": shown[0],
        "95 % interval": f"[{shown[1]}, {shown[2]}]",
        "p": "?" if p_value is None else "< 0.0001" if p_value < 1e-4 else f"{p_value:.4f}",
    }
