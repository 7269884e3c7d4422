"""How long responses are, as bars over the number of tokens: those that stopped, and those that were cut."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from vlm_distill.reporting.charts.svg import (
    WIDTH,
    Axis,
    box,
    figure,
    line,
    margin_for,
    nice_ticks,
    number,
    text,
    value_axis,
    value_ticks,
)
from vlm_distill.reporting.response_sets import ResponseSet

HEIGHT, TOP, BOTTOM = 170, 10, 38
MAX_BINS = 24


def draw_histograms(sets: Sequence[ResponseSet]) -> list[tuple[str, Markup]]:
    """Return label and histogram of every set; all have the same bins and scales, to be compared."""
    filled = [one for one in sets if one.stored.lengths]
    if not filled:
        return []
    edges = bin_edges(max(max(one.stored.lengths) for one in filled))
    shares = [_shares(one, edges) for one in filled]
    highest = max(float((stopped + cut).max()) for stopped, cut in shares)
    return [
        (one.label, _draw(one.label, edges, stopped, cut, highest=highest))
        for one, (stopped, cut) in zip(filled, shares, strict=True)
    ]


def bin_edges(longest: int) -> list[int]:
    """Return the first length of every bin and the one after the last, in whole tokens from 0 on."""
    nice = (factor * 10**power for power in range(9) for factor in (1, 2, 5))
    width = next(one for one in nice if one * MAX_BINS > longest)
    return list(range(0, longest + width + 1, width))


def _shares(one: ResponseSet, edges: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of all responses of the set in every bin: those that stopped, those that were cut."""
    lengths = np.asarray(one.stored.lengths)
    is_cut = np.asarray([finish == "length" for finish in one.stored.finishes])
    stopped, cut = (np.histogram(lengths[chosen], edges)[0] for chosen in (~is_cut, is_cut))
    return stopped / len(lengths), cut / len(lengths)


def _draw(
    label: str, edges: Sequence[int], stopped: np.ndarray, cut: np.ndarray, *, highest: float
) -> Markup:
    vertical = value_axis([0.0, 100 * highest], start=HEIGHT - BOTTOM, end=TOP)
    left = margin_for(vertical)
    tokens = Axis(low=edges[0], high=edges[-1], start=left, end=WIDTH - 8)
    parts = value_ticks(vertical, left=left, right=tokens.end)
    base = vertical.at(0)
    for start, end, first, second in zip(edges, edges[1:], 100 * stopped, 100 * cut, strict=False):
        x, width = tokens.at(start) + 0.5, tokens.at(end) - tokens.at(start) - 1
        span = f"{start}" if end == start + 1 else f"{start} to {end - 1}"
        title = f"{span} tokens: {first:.1f} % stopped, {second:.1f} % cut"
        middle, top = vertical.at(first), vertical.at(first + second)
        parts.append(box(x, middle, width, base - middle, "bar s0", title))
        parts.append(box(x, top, width, middle - top, "bar s1", title))
    parts += _token_ticks(tokens, edges)
    longest = max(index for index, share in enumerate(stopped + cut) if share) + 1
    spoken = f"Lengths of the responses of {label}: the longest have up to {edges[longest] - 1} tokens"
    return figure(parts, height=HEIGHT, label=spoken)


def _token_ticks(tokens: Axis, edges: Sequence[int]) -> list[Markup]:
    base = HEIGHT - BOTTOM
    # Where a bin is one length, its label stands below its middle.
    shift = (tokens.at(1) - tokens.at(0)) / 2 if edges[1] - edges[0] == 1 else 0.0
    parts = [line(tokens.start, base, tokens.end, base, "axis")]
    for tick in nice_ticks(tokens.low, tokens.high, wanted=6):
        if tick == round(tick) and tokens.at(tick) + shift <= tokens.end:
            parts.append(text(tokens.at(tick) + shift, base + 16, number(tick), anchor="middle"))
    parts.append(text((tokens.start + tokens.end) / 2, base + 32, "response tokens", anchor="middle"))
    return parts
