"""The training stages in numbers: where they lie on the axis of the curves, and how they went."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm_distill.reporting.curves import Band
from vlm_distill.reporting.run_files import RunFiles
from vlm_distill.reporting.stage_log import is_number, read_log


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRow:
    """A stage. `tokens` are response tokens of the student, the losses those of the first and last row."""

    label: str
    is_trained: bool
    first: int
    last: int
    tokens: int | None
    first_loss: float | None
    last_loss: float | None
    tokens_per_second: float | None
    num_unreadable: int


def stage_rows(run: RunFiles, bands: Sequence[Band]) -> list[StageRow]:
    """Return the stages that have begun."""
    stages = {stage.label: stage for stage in run.stages}
    rows = []
    for band in bands:
        stage = stages[band.label]
        log = read_log(stage.folder)
        names = ("loss", "tokens_per_second", "tokens")
        losses, speeds, tokens = (_numbers(log.rows, name) for name in names)
        rows.append(
            StageRow(
                label=band.label,
                is_trained=stage.is_trained,
                first=band.first + 1,
                last=band.last,
                tokens=int(tokens[-1]) if tokens else None,
                first_loss=losses[0] if losses else None,
                last_loss=losses[-1] if losses else None,
                tokens_per_second=statistics.median(speeds) if speeds else None,
                num_unreadable=log.num_unreadable,
            )
        )
    return rows


def _numbers(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [float(row[name]) for row in rows if is_number(row.get(name))]
