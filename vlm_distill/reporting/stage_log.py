"""The log of a training stage, metrics.jsonl, as rows of numbers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class StageLog:
    """The rows of a log, each with `step`. `num_unreadable` lines were cut short by a kill."""

    rows: list[dict[str, Any]]
    num_unreadable: int


def read_log(folder: Path) -> StageLog:
    """Return the log in the folder of a stage, an empty one where nothing is logged yet."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    rows, num_unreadable = [], 0
    for line in filter(None, lines):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and is_number(row.get("step")):
            rows.append(row)
        else:
            num_unreadable += 1
    return StageLog(rows=rows, num_unreadable=num_unreadable)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
