"""The log of a stage: one JSON line every few optimiser steps, and the trackers of accelerate."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from vlm_distill.files import append_jsonl, atomic_path, refuse_pipe

# Values of the last step; everything else is a sum over the steps since the last line.
LAST = ("learning_rate", "grad_norm")
# The only value that a stage that was interrupted has otherwise: response tokens a second since it started.
THROUGHPUT = "tokens_per_second"


def merge_steps(pending: Sequence[dict[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the values of the last step and the sums over all `pending` steps, whose names may differ."""
    names = dict.fromkeys(name for metrics in pending for name in metrics if name not in LAST)
    sums = {name: sum(metrics.get(name, 0.0) for metrics in pending) for name in names}
    return {name: pending[-1][name] for name in LAST}, sums


def append_row(path: Path, row: dict[str, Any]) -> None:
    append_jsonl(path, [row])


def read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of a log and how many lines are none; no rows where nothing is logged yet."""
    refuse_pipe(path)
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    rows: list[dict[str, Any]] = []
    lines = [line for line in text.split("\n") if line]
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        step = row.get("step") if isinstance(row, dict) else None
        if is_number(step) and math.isfinite(step):
            rows.append(row)
    return rows, len(lines) - len(rows)


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def drop_rows_after(path: Path, step: int) -> int:
    """Drop log lines of steps that will be done again, and return how many lines more: those that are none.

    A kill cuts the last one short.
    """
    rows, num_unreadable = read_log(path)
    kept = [row for row in rows if row["step"] <= step]
    with atomic_path(path) as temporary:
        temporary.touch()
        append_jsonl(temporary, kept)
    return num_unreadable
