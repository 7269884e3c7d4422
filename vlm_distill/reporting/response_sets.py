"""The responses of a run: how long they are, how they ended, what was dropped."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from vlm_distill.data.lengths import StoredLengths, read_lengths
from vlm_distill.data.store import MANIFEST
from vlm_distill.generation.work import COUNTS
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
from vlm_distill.reporting.run_files import RunFiles, read_mapping

HEIGHT, TOP, BOTTOM = 170, 10, 38
MAX_BINS = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseSet:
    """The responses of one author in one round. Counts of prompts and drops are None until the stage ends."""

    label: str
    stored: StoredLengths
    prompts: int | None
    overlong: int | None
    empty: int | None
    aborted: int | None

    @property
    def num_stopped(self) -> int:
        return self.stored.finishes.count("stop")

    @property
    def num_cut(self) -> int:
        return self.stored.finishes.count("length")

    @property
    def unanswered(self) -> int | None:
        """Prompts without any stored response; a stage that needs this author leaves them out."""
        return None if self.prompts is None else self.prompts - self.stored.num_prompts

    def percentile(self, share: float) -> str:
        lengths = self.stored.lengths
        return f"{np.percentile(lengths, 100 * share):.0f}" if lengths else "-"

    @property
    def mean(self) -> str:
        return f"{np.mean(self.stored.lengths):.1f}" if self.stored.lengths else "-"


def read_response_sets(run: RunFiles) -> list[ResponseSet]:
    """Return the responses that are trained on, the teacher's first, in the order of rounds."""
    found = _found(run.folder / "responses")
    return sorted(found, key=lambda one: (one.label != "teacher", _natural(one.label)))


def _natural(label: str) -> list[tuple[int, str]]:
    """Return a sorting key by which round 10 comes after round 9."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", label)]


def _found(folder: Path) -> Iterator[ResponseSet]:
    for path in folder.iterdir() if folder.is_dir() else ():
        if (path / MANIFEST).is_file():
            counts = read_mapping(path / COUNTS)
            yield ResponseSet(
                label=path.name.replace("_", " "),
                stored=read_lengths(path),
                **{name: counts.get(name) for name in ("prompts", "overlong", "empty", "aborted")},
            )


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
