"""What one fuzz case is, and what may be wrong with it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

OUTPUT = "out"
"""Where the commands of a case may write, below its folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Commands that are called one after the other in the folder of the case.

    `outputs` are the files and folders that they may write. `rows` is how many rows the table has, as far as
    that is known: after a run all of them must be counted. `summary` is the file of the material that a run
    must end with again, whatever it found.
    """

    commands: tuple[tuple[str, ...], ...]
    outputs: tuple[str, ...] = (OUTPUT,)
    rows: int | None = None
    summary: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What a case showed: of which sort, at which place of the package, and more for the reader."""

    sort: str
    place: str
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What one case came to, which `python -m tests.fuzz KIND SEED` makes again: exit codes and problems."""

    kind: str
    seed: str
    codes: tuple[int | None, ...]
    problems: tuple[Problem, ...]
    seconds: float


Make = Callable[[Random, Path, Path], Case]
"""Write the inputs of a case into a folder, from the material in another one."""
