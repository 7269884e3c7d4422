"""The primary score of every model as a point with its 95 % interval."""

from markupsafe import Markup

from vlm_distill.evaluation.table import per_cent
from vlm_distill.reporting.charts.svg import WIDTH, Axis, figure, line, nice_ticks, number, text, width_of
from vlm_distill.reporting.scores import Score, Scores
from vlm_distill.runs.plan import TEACHER

ROW, TOP, BOTTOM = 24, 8, 36
MAX_LABEL = 16


def draw_intervals(scores: Scores) -> Markup | None:
    """Return the figure, None where nothing was scored."""
    primary = scores.primary
    if primary is None:
        return None
    rows = [(row, row.scores[primary]) for row in scores.rows if primary in row.scores]
    known = [(row, score, score.mean) for row, score in rows if score.mean is not None]
    if not known:
        return None
    labels = [_clipped(row.label) for row, _, _ in known]
    limits = [limit for _, score, mean in known for limit in (score.low, score.high, mean)]
    bounds = [limit for limit in limits if limit is not None]
    values = Axis(
        low=min(0.0, 100 * min(bounds)),
        high=max(100.0, 100 * max(bounds)) if max(bounds) > 0.5 else 115 * max(max(bounds), 0.01),
        # Names are set in 12 pixels.
        start=max(width_of(label) for label in labels) * 12 / 11 + 14,
        end=WIDTH - 62,
    )
    height = TOP + ROW * len(known) + BOTTOM
    base = height - BOTTOM
    parts = []
    for tick in nice_ticks(values.low, values.high):
        parts.append(line(values.at(tick), TOP, values.at(tick), base, "grid"))
        parts.append(text(values.at(tick), base + 16, number(tick), anchor="middle"))
    for index, (label, (row, score, mean)) in enumerate(zip(labels, known, strict=True)):
        y = TOP + ROW * (index + 0.5)
        parts.append(text(values.start - 8, y + 4, label, kind="name", anchor="end"))
        parts += _point(score, mean, values, y, kind="s1" if row.step.track == TEACHER else "s0")
        parts.append(text(WIDTH - 2, y + 4, f"{per_cent(mean)} %", kind="name", anchor="end"))
    parts.append(text((values.start + values.end) / 2, base + 32, f"{primary}, per cent", anchor="middle"))
    spoken = "; ".join(f"{row.label} {per_cent(mean)} %" for row, _, mean in known)
    return figure(parts, height=height, label=f"{primary} with 95 % intervals: {spoken}")


def _point(score: Score, mean: float, values: Axis, y: float, *, kind: str) -> list[Markup]:
    """Return the mean with its interval, whose ends show beside the dot however narrow it is."""
    dot = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3.2" class="dot {}"/>')
    parts = [dot.format(values.at(100 * mean), y, kind)]
    if score.low is not None and score.high is not None:
        low, high = values.at(100 * score.low), values.at(100 * score.high)
        ends = [line(x, y - 5, x, y + 5, f"whisker {kind}") for x in (low, high)]
        parts += [line(low, y, high, y, f"whisker {kind}"), *ends]
    return parts


def _clipped(label: str) -> str:
    return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "…"
