"""Packages of others: installed by pip into folders of their own, and verbs that see them."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

OFFLINE = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--no-compile")
# Runs verbs; says how each ended, and then which modules were loaded.
PROGRAM = """
import shlex, sys
from vlm_distill.cli import main
for verb in sys.argv[1:]:
    try:
        code = main(shlex.split(verb))
    except SystemExit as end:
        code = end.code
    print("ended:", code, file=sys.stderr)
print("loaded:", *sys.modules, file=sys.stderr)
"""


@dataclass(frozen=True)
class Done:
    """How verbs ended: `said` are the lines of standard error, `loaded` the names of modules."""

    codes: list[int]
    printed: str
    said: list[str]
    loaded: set[str]

    def loaded_of(self, package: str) -> set[str]:
        """Return the names of a package's modules that were loaded, without its own."""
        return {name.removeprefix(f"{package}.") for name in self.loaded if name.startswith(f"{package}.")}


def install(package: Path, folder: Path) -> None:
    """Let pip install the package whose pyproject.toml lies in a folder into another one."""
    python("-m", "pip", "install", *OFFLINE, "--target", str(folder), str(package))


def command(*verbs: str, paths: tuple[Path, ...]) -> Done:
    """Run verbs in one process that sees the distributions in some folders."""
    done = python("-c", PROGRAM, *verbs, paths=paths)
    *said, last = done.stderr.splitlines()
    return Done(
        codes=[int(line.split()[1]) for line in said if line.startswith("ended:")],
        printed=done.stdout,
        said=[line for line in said if not line.startswith("ended:")],
        loaded={*last.split()[1:]},
    )


def python(*arguments: str, paths: tuple[Path, ...] = ()) -> "subprocess.CompletedProcess[str]":
    """Run Python to its end, which must be a good one, with this package and those in some folders."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *map(str, paths)])
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done
