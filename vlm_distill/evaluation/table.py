"""Plain tables for terminals, logs and Markdown files, and how the numbers in them are written."""

import re
from collections.abc import Mapping, Sequence

from vlm_distill.errors import printable
from vlm_distill.evaluation.statistics import Estimate


def format_estimate(estimate: Estimate) -> str:
    """Return `mean ± half the 95 % interval` in per cent; "-" without items.

    "± ?" stands for an interval that one cluster cannot give.
    """
    if estimate.mean is None:
        return "-"
    half = "?" if estimate.high is None else per_cent(estimate.high - estimate.mean)
    return f"{per_cent(estimate.mean)} ± {half}"


def per_cent(value: float) -> str:
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    """Return a difference in points of per cent, with its sign."""
    return f"{100 * value:+.1f}"


def p_value(value: float | None) -> str:
    if value is None:
        return "?"
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def words(key: str) -> str:
    """Return a key of a record or a JSON file as words."""
    return key.replace("_", " ")


def _cell(value: object) -> str:
    """Return a value that stays in its cell, on a terminal too."""
    return re.sub(r"(?<!\\)\|", r"\\|", printable(" ".join(str(value).split("\n"))))


def format_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return a Markdown table; its columns are those of all rows, in order, and a missing cell is empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    head = [_cell(column) for column in columns]
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(head, *cells, strict=True)]
    lines = [head, ["-" * width for width in widths], *cells]
    return "\n".join(
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
