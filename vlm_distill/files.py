"""Small file mechanics shared by every stage: atomic writes, bounded reads, content hashes. No torch."""

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlm_distill.errors import DataError, one_line
from vlm_distill.faults import writing

# Far above what a run or a model writes (an index of 140,000 weights has 13 MB), and held by any machine.
_MAX_BYTES, _MAX_VALUES, _MAX_DEPTH = 64 << 20, 2_000_000, 100
# Stands in the folder of a job and is held as long as it works there.
LOCK = ".lock"
# What `temporary_path` makes.
TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def temporary_path(path: Path) -> Path:
    """Return the hidden sibling of `path` under which this process writes what will be renamed to it."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_temporaries(folder: Path) -> None:
    """Delete what killed processes have left anywhere in `folder` under temporary names.

    A folder in it with a lock of its own belongs to another job, which may be writing there.
    """
    for place, folders, files in os.walk(folder):
        folders[:] = [one for one in folders if not Path(place, one, LOCK).exists()]
        for name in [one for one in folders if TEMPORARY.fullmatch(one)]:
            shutil.rmtree(Path(place, name))
            folders.remove(name)
        for name in filter(TEMPORARY.fullmatch, files):
            Path(place, name).unlink()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` that takes its name when the block ends without an error.

    The file is flushed to disk before the rename, so a reader sees the old content or the new, never half of
    it.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        with writing(path):
            yield temporary
            with temporary.open("rb+") as handle:
                os.fsync(handle.fileno())
            take_name(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling folder that takes the name of `path`, and its place, at the end of the block.

    Its files are flushed to disk before. On an error what was there before is there still.
    """
    temporary = temporary_path(path)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with writing(path):
            temporary.mkdir(parents=True)
            yield temporary
            for file in filter(Path.is_file, temporary.rglob("*")):
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
            _take_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(temporary: Path, path: Path) -> None:
    if not path.exists():
        take_name(temporary, path)
        return
    # A folder cannot be replaced in one step; the old one steps aside first.
    previous = temporary_path(path.with_name(f"{path.name}.old"))
    os.replace(path, previous)
    try:
        take_name(temporary, path)
    finally:
        if not path.exists():
            os.replace(previous, path)
    # A file may stand where the folder was.
    shutil.rmtree(previous) if previous.is_dir() else previous.unlink()


def take_name(temporary: Path, path: Path) -> None:
    """Rename a complete file or folder, so that its name too survives a crash of the machine."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON with sorted keys."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def refuse_pipe(path: Path) -> None:
    """Raise a DataError for a device or a pipe, which may never end; nothing for a missing file."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(f"{path}: expected a file, got a device or a pipe; move it away")


def read_text(path: Path, *, max_bytes: int = _MAX_BYTES) -> str:
    """Return the text of a UTF-8 file.

    Raises:
        DataError: it is larger than `max_bytes`, no file or not UTF-8.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f"{path}: expected a file")
    with path.open("rb") as handle:
        data = handle.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise DataError(f"{path}: expected at most {max_bytes:,} bytes, the file has more")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, byte {error.start} is none") from None


def read_json(path: Path) -> Any:
    """Return what a JSON file of a run or a model holds.

    Raises:
        DataError: it is cut or otherwise no JSON, or larger or deeper than such a file can be.
    """
    text = read_text(path)
    if sum(text.count(sign) for sign in ",[{") > _MAX_VALUES:
        raise DataError(f"{path}: expected at most {_MAX_VALUES:,} values, the file has more")
    return parse_json(text, where=str(path))


def parse_json(text: str, *, where: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        DataError: it is no JSON, nested too deeply, or has a number that Python does not convert.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON: {one_line(error)}") from None
    except ValueError:  # int() takes 4,300 digits: more would need quadratic time.
        raise DataError(f"{where}: not valid JSON: a number has too many digits") from None
    except RecursionError:
        raise DataError(_too_deep(where)) from None
    if text.count("[") + text.count("{") > _MAX_DEPTH and _is_deep(value):
        raise DataError(_too_deep(where))
    return value


def _too_deep(where: str) -> str:
    return f"{where}: expected at most {_MAX_DEPTH} levels of lists and objects, it has more"


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH):
        below = [node.values() if isinstance(node, dict) else node for node in level]
        level = [item for node in below for item in node if isinstance(item, (dict, list))]
    return bool(level)


def append_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to a log that may lose its last line in a crash (metrics); data use atomic files."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as handle:
            handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    refuse_pipe(path)
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        for block in iter(lambda: handle.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """Return the sha256 of the canonical JSON of `value`: equal values, equal hashes, in every process."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # Names of files need not be Unicode.
    return sha256_bytes(text.encode("utf-8", "surrogatepass"))
