"""Plain tables for terminals, logs and Markdown files."""

from collections.abc import Mapping, Sequence

from vlm_distill.evaluation.statistics import Estimate


def format_estimate(estimate: Estimate, *, scale: float = 100.0) -> str:
    """Return `mean ± half the 95 % interval`, in per cent unless `scale` says otherwise; "-" without items.

    "± ?" stands for an interval that one cluster cannot give.
    """
    if estimate.mean is None:
        return "-"
    mean = f"{estimate.mean * scale:.1f}"
    if estimate.high is None:
        return f"{mean} ± ?"
    return f"{mean} ± {(estimate.high - estimate.mean) * scale:.1f}"


def format_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return a Markdown table; its columns are those of all rows, in order, and a missing cell is empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [
        [str(row.get(column, "")).replace("|", r"\|").replace("\n", " ") for column in columns]
        for row in rows
    ]
    widths = [max(len(text) for text in column) for column in zip(columns, *cells, strict=True)]
    lines = [columns, ["-" * width for width in widths], *cells]
    return "\n".join(
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
