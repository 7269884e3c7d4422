"""A chart of metrics over optimiser steps, with the trainings as bands behind the curves."""

from collections.abc import Sequence

from markupsafe import Markup

from vlm_distill.reporting.charts.svg import (
    WIDTH,
    Axis,
    figure,
    line,
    margin_for,
    nice_ticks,
    number,
    text,
    value_axis,
    value_ticks,
    width_of,
)
from vlm_distill.reporting.curves import Chart, Series
from vlm_distill.reporting.facts import Training

HEIGHT, TOP, BOTTOM = 210, 24, 38
# Single points are marked as long as they do not melt into one another.
MAX_MARKS = 12


def draw_chart(chart: Chart, trainings: Sequence[Training]) -> Markup:
    values = [value for one in chart.series for segment in one.segments for _, value in segment]
    vertical = value_axis(values, start=HEIGHT - BOTTOM, end=TOP, may_be_log=chart.subject.may_be_log)
    left, right = margin_for(vertical), WIDTH - 8
    steps = Axis(low=0, high=max(one.end for one in trainings), start=left, end=right)
    parts = [
        *_bands(trainings, steps),
        *value_ticks(vertical, left=left, right=right),
        *_step_ticks(steps),
        *(part for index, one in enumerate(chart.series) for part in _curve(one, index, steps, vertical)),
    ]
    return figure(parts, height=HEIGHT, label=describe(chart))


def is_log(chart: Chart) -> bool:
    """Return whether the chart is drawn on a logarithmic axis."""
    values = [value for one in chart.series for segment in one.segments for _, value in segment]
    return value_axis(values, start=0, end=1, may_be_log=chart.subject.may_be_log).is_log


def describe(chart: Chart) -> str:
    """Return the chart in words: first and last value of every curve."""
    curves = []
    for one in chart.series:
        first, last = one.segments[0][0], one.segments[-1][-1]
        curves.append(f"{one.label} from {number(first[1])} to {number(last[1])} at step {last[0]:,.0f}")
    return f"{chart.subject.title}: {'; '.join(curves)}"


def _bands(trainings: Sequence[Training], steps: Axis) -> list[Markup]:
    parts = []
    for index, one in enumerate(trainings):
        start, end = steps.at(one.start), steps.at(one.end)
        shade = Markup('<rect x="{:.1f}" y="{}" width="{:.1f}" height="{}" class="band{}"/>')
        parts.append(shade.format(start, TOP, end - start, HEIGHT - BOTTOM - TOP, index % 2))
        if index:
            parts.append(line(start, TOP, start, HEIGHT - BOTTOM, "boundary"))
        label = next((name for name in one.short_labels if width_of(name) <= end - start - 2), "")
        parts.append(text((start + end) / 2, TOP - 7, label, kind="stage", anchor="middle"))
    return parts


def _step_ticks(steps: Axis) -> list[Markup]:
    base = HEIGHT - BOTTOM
    parts = [line(steps.start, base, steps.end, base, "axis")]
    ticks = [tick for tick in nice_ticks(steps.low, steps.high, wanted=6) if tick == round(tick)]
    for tick in ticks:
        parts.append(line(steps.at(tick), base, steps.at(tick), base + 4, "axis"))
        # The last label is moved to the left where it would leave the picture.
        half = width_of(number(tick)) / 2
        parts.append(text(min(steps.at(tick), WIDTH - half), base + 16, number(tick), anchor="middle"))
    parts.append(text((steps.start + steps.end) / 2, base + 32, "optimiser steps", anchor="middle"))
    return parts


def _curve(series: Series, index: int, steps: Axis, vertical: Axis) -> list[Markup]:
    num_points = sum(len(segment) for segment in series.segments)
    parts = []
    for segment in series.segments:
        places = [(steps.at(step), vertical.at(value)) for step, value in segment]
        if len(places) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(Markup('<polyline points="{}" class="curve s{}"/>').format(path, index % 4))
        if len(places) <= 2 or num_points <= MAX_MARKS:
            parts += [_mark(place, point, index) for place, point in zip(places, segment, strict=True)]
    return parts


def _mark(place: tuple[float, float], point: tuple[float, float], index: int) -> Markup:
    mark = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.6" class="mark s{}"><title>{}</title></circle>')
    return mark.format(*place, index % 4, f"step {point[0]:,.0f}: {number(point[1])}")
