"""Progress of a long loop: a bar on a terminal, plain lines in a log file."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

from vlm_distill.errors import printable

T = TypeVar("T")
Log = Callable[[str], None]
"""Takes one line for people: where a job is, what it left out."""


def silent(_: str) -> None:
    """Take a line that somebody has been told, or will be."""


def progress(
    iterable: Iterable[T], *, label: str, total: int | None = None, interval: float = 5.0
) -> Iterator[T]:
    """Yield the items of `iterable` and report to stderr: a tqdm bar on a terminal, else plain lines.

    Lines are at least `interval` seconds apart. `total` defaults to the length where there is one; without it
    no remaining time is given. A loop that is left early prints no last line. Of several processes under a
    launcher only the first reports.
    """
    if os.environ.get("RANK", "0") != "0":
        yield from iterable
        return
    label = printable(label)
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if sys.stderr.isatty():
        yield from tqdm(iterable, total=total, desc=label, dynamic_ncols=True)
        return
    start = reported = time.monotonic()
    count = 0
    for item in iterable:
        yield item
        count += 1
        now = time.monotonic()
        if now - reported >= interval and count != total:
            reported = now
            print(_line(label, count=count, total=total, seconds=now - start), file=sys.stderr, flush=True)
    seconds = time.monotonic() - start
    print(
        f"{label}: {count} done in {duration(seconds)} ({_rate(count, seconds)})", file=sys.stderr, flush=True
    )


def _line(label: str, *, count: int, total: int | None, seconds: float) -> str:
    if total is None:
        return f"{label}: {count} ({_rate(count, seconds)})"
    left = seconds / count * max(total - count, 0)
    return f"{label}: {count} of {total} ({_rate(count, seconds)}), {duration(left)} left"


def _rate(count: int, seconds: float) -> str:
    if count and seconds / count > 1:
        return f"{seconds / count:.1f} s each"
    return (
        f"{count / max(seconds, 1e-9):.3g}/s"
        if count < 1000 * seconds
        else f"{count / max(seconds, 1e-9):.0f}/s"
    )


def duration(seconds: float) -> str:
    """Return a duration for people: "8 s", "3 min 20 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
