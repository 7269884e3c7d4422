"""Small file mechanics shared by every stage: atomic writes and content hashes. No torch."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What `temporary_path` makes.
TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def temporary_path(path: Path) -> Path:
    """Return the hidden sibling of `path` under which this process writes what will be renamed to it."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_temporaries(folder: Path) -> None:
    """Delete what killed processes have left anywhere in `folder` under temporary names."""
    for place, folders, files in os.walk(folder):
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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON with sorted keys."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def append_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to a log that may lose its last line in a crash (metrics); data use atomic files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as handle:
        handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        for block in iter(lambda: handle.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """Return the sha256 of the canonical JSON of `value`: equal values, equal hashes, in every process."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256_bytes(text.encode("utf-8"))
