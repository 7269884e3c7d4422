"""The small figures of a report as inline SVG: lines over steps, histograms, intervals.

Colours are classes, so that the page's light and dark palettes apply. A figure is 360 units wide, about the
width at which it is shown, so that a text of 11 units is 11 pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from markupsafe import Markup

Real: TypeAlias = float | int
WIDTH = 360
CHARACTER = 6.8  # of 11 pixel text in a wide sans-serif, on average
# From this factor between the highest and the lowest value on, a linear axis flattens the lower ones.
LOG_FACTOR = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A linear or logarithmic map from values to positions, and its ticks."""

    low: Real
    high: Real
    start: Real
    end: Real
    is_log: bool = False

    def at(self, value: Real) -> float:
        low, high, value = (
            (math.log10(one) for one in (self.low, self.high, value))
            if self.is_log
            else (self.low, self.high, value)
        )
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        return _log_ticks(self.low, self.high) if self.is_log else nice_ticks(self.low, self.high)


def value_axis(values: Sequence[Real], *, start: Real, end: Real, may_be_log: bool = False) -> Axis:
    """Return an axis that holds all values; it begins at 0 where that wastes less than half of it."""
    low, high = min(values), max(values)
    if may_be_log and low > 0 and high / low > LOG_FACTOR:
        return Axis(low=low / 1.15, high=high * 1.15, start=start, end=end, is_log=True)
    if 0 <= low <= high / 2:
        low = 0.0
    if high == low:
        margin = abs(high) * 0.1 or 1.0
        low, high = low - margin, high + margin
    elif low:
        low -= 0.06 * (high - low)
    return Axis(low=low, high=high + 0.06 * (high - low), start=start, end=end)


def nice_ticks(low: Real, high: Real, *, wanted: int = 5) -> list[float]:
    """Return about `wanted` multiples of 1, 2 or 5 times a power of ten inside the range."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _log_ticks(low: Real, high: Real) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 2 else (1,)
    return [value for power in powers for factor in factors if low <= (value := factor * 10.0**power) <= high]


def number(value: Real, *, digits: int = 3) -> str:
    """Return a short text for a tick or a value, with k for thousands and an exponent for small ones."""
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-4 or size >= 1e6:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if size >= 1e4:
        return f"{value / 1000:.{digits + 1}g}k"
    return f"{value:,.0f}" if size >= 1000 and digits == 3 else f"{value:.{digits}g}"


def tick_labels(ticks: Sequence[Real]) -> list[str]:
    """Return the texts of an axis, with as many digits as tell its ticks apart."""
    tries = ([number(tick, digits=digits) for tick in ticks] for digits in range(3, 8))
    return next(
        (labels for labels in tries if len(set(labels)) == len(labels)), [str(tick) for tick in ticks]
    )


def width_of(text: str) -> float:
    return len(text) * CHARACTER


def text(x: Real, y: Real, content: str, *, kind: str = "tick", anchor: str = "start") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" class="{}" text-anchor="{}">{}</text>').format(
        x, y, kind, anchor, content
    )


def line(x1: Real, y1: Real, x2: Real, y2: Real, kind: str) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(
        x1, y1, x2, y2, kind
    )


def box(x: Real, y: Real, width: Real, height: Real, kind: str, title: str = "") -> Markup:
    inside = Markup("<title>{}</title>").format(title) if title else ""
    return Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}">{}</rect>').format(
        x, y, max(width, 0.0), max(height, 0.0), kind, inside
    )


def figure(parts: Sequence[Markup], *, height: Real, label: str) -> Markup:
    """Return the SVG; `label` is what a screen reader says instead of it."""
    return Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, label, Markup("\n").join(parts)
    )


def value_ticks(axis: Axis, *, left: Real, right: Real) -> list[Markup]:
    """Return horizontal grid lines with their values to the left of the plot."""
    parts = []
    for tick, label in zip(axis.ticks, tick_labels(axis.ticks), strict=True):
        y = axis.at(tick)
        parts += [line(left, y, right, y, "grid"), text(left - 6, y + 4, label, anchor="end")]
    return parts


def margin_for(axis: Axis) -> float:
    """Return how much room the tick labels of a value axis need on its left."""
    return max(map(width_of, tick_labels(axis.ticks)), default=0.0) + 12
