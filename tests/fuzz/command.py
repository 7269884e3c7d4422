"""One command of a case, called in this process, and what came of it."""

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import vlm_distill
from vlm_distill.cli import main

PACKAGE = str(Path(vlm_distill.__file__).parent)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The exit code, None for an exception, all that was printed, and where the exception came from."""

    code: int | None
    printed: str
    place: str
    exception: str


def call(arguments: Sequence[str], log: Path) -> Outcome:
    code, place, exception = None, "", ""
    with printing_to(log):
        try:
            code = main(list(arguments))
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
        except BaseException as error:  # What a user would see as a traceback is what is looked for.
            place, exception = (
                place_of(error),
                f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            )
            traceback.print_exc()
    return Outcome(code=code, printed=log.read_text(errors="replace"), place=place, exception=exception)


@contextmanager
def printing_to(log: Path) -> Iterator[None]:
    """Send what this process prints, its libraries included, to a file."""
    _flush()
    kept = os.dup(1), os.dup(2)
    with log.open("wb") as file:
        try:
            _send((file.fileno(), file.fileno()))
            yield
        finally:
            _flush()
            _send(kept)
            for descriptor in kept:
                os.close(descriptor)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _send(places: tuple[int, int]) -> None:
    os.dup2(places[0], 1)
    os.dup2(places[1], 2)


def place_of(error: BaseException) -> str:
    """Return the innermost line of the package that an exception went through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(PACKAGE)]
    if not own:
        return "outside the package"
    last = own[-1]
    return f"{os.path.relpath(last.filename, PACKAGE)}:{last.lineno} {last.name}"
