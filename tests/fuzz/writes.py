"""What a command writes: as Python's audit hook tells it, and as the folder looks before and after."""

import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# How many of the first arguments are paths that change.
CHANGING = {
    "os.mkdir": 1,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.rename": 2,
    "os.truncate": 1,
    "os.chmod": 1,
    "os.utime": 1,
    "os.symlink": 2,
    "os.link": 2,
    "shutil.rmtree": 1,
}
Looks = dict[str, str]


class Recorder:
    """The paths that Python code wrote, made, moved or removed while it was recording."""

    def __init__(self) -> None:
        self._found: set[str] | None = None
        sys.addaudithook(self._see)

    @contextmanager
    def recording(self) -> Iterator[set[str]]:
        found: set[str] = set()
        self._found = found
        try:
            yield found
        finally:
            self._found = None

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._found is None:
            return
        if event == "open":
            path, _, flags = arguments
            # A descriptor was opened before; its path was seen then.
            if isinstance(flags, int) and flags & WRITING and not isinstance(path, int):
                self._add(path)
        elif event in CHANGING:
            paths, rest = arguments[: CHANGING[event]], arguments[CHANGING[event] :]
            # Below a directory that is open already a name alone says nothing; rmtree tells the top itself.
            is_relative = event in ("os.remove", "os.rmdir") and rest[0] >= 0
            if not is_relative and not (event == "os.mkdir" and not _can_be_made(paths[0])):
                for path in paths:
                    self._add(path)

    def _add(self, path: Any) -> None:
        assert self._found is not None
        if isinstance(path, (str, bytes, os.PathLike)):
            self._found.add(os.path.abspath(os.fsdecode(path)))


def _can_be_made(path: Any) -> bool:
    """Return whether a folder can be made: that is tried, and told, also where something stands already."""
    return not os.path.lexists(path) and os.path.isdir(os.path.dirname(os.path.abspath(path)))


def looks(folder: Path, *, without: tuple[str, ...] = ()) -> Looks:
    """Return what stands at every path below a folder: the kind of file and the hash of its content."""
    found: Looks = {}
    left_out = {name.partition("/")[0] for name in without}
    # Unlike `Path.is_dir` this is false for a name that no file can have.
    if "." in left_out or not os.path.isdir(folder):
        return found
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if relative.parts[0] not in left_out and path.name != ".lock":
            found[relative.as_posix()] = _look(path)
    return found


def _look(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"link to {os.readlink(path)}"
    if not stat.S_ISREG(mode):
        return stat.filemode(mode)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def changes(before: Looks, after: Looks) -> list[str]:
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
