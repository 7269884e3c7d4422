"""Append-only shards in a folder, and the manifest that lists them: what the stores on disk share. No torch.

A shard counts when the manifest lists it. One that a killed process renamed but did not list is ignored, and
the next append overwrites it, because its name follows from the number of listed shards. One process writes a
manifest; several write one each, in parts of the folder, which are read together however many there are then.

What is inside a shard is the codec of its store: Parquet in data/store.py, safetensors in
teacher_cache/store.py. Features of images (models/feature_store.py) need no manifest: their files are named
by their content.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlm_distill.errors import DataError
from vlm_distill.files import atomic_path, sha256_file
from vlm_distill.state import damaged, read_state, write_state

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A listed file; `writer` is what made its rows, as it says itself."""

    name: str
    num_rows: int
    sha256: str
    writer: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Manifest:
    """What a manifest says; `complete` are the rows of the whole once it is finished."""

    key: Any
    complete: int | None
    shards: tuple[Shard, ...]
    format_version: Literal[3] = 3


@dataclass(kw_only=True, slots=True)
class Shards:
    """What one manifest lists. `key` is JSON that says what the rows were made from.

    `remedy` ends the lines about damage: what to do about it. `num_complete` are the rows of the whole, parts
    included, when it was finished; None before.
    """

    folder: Path
    key: Any
    remedy: str
    listed: list[Shard] = field(default_factory=list)
    num_complete: int | None = None

    @classmethod
    def read(cls, folder: Path, *, remedy: str) -> "Shards":
        """Return what the manifest in `folder` lists; DataError for a damaged one or another format."""
        found = read_state(_Manifest, folder / MANIFEST, remedy=remedy)
        for shard in found.shards:
            if Path(shard.name).name != shard.name:
                raise damaged(folder / MANIFEST, f"{shard.name!r} is no file beside it", remedy=remedy)
        return cls(
            folder=folder,
            key=found.key,
            remedy=remedy,
            listed=list(found.shards),
            num_complete=found.complete,
        )

    def save(self) -> None:
        manifest = _Manifest(key=self.key, complete=self.num_complete, shards=tuple(self.listed))
        write_state(self.folder / MANIFEST, manifest)

    def append(
        self, write: Callable[[Path], None], *, name: str, num_rows: int, writer: Mapping[str, str]
    ) -> Path:
        """List the file that `write` makes and return its path; after this returns it survives a crash.

        `name` has a place for its number.

        Raises:
            StorageError: the file cannot be written.
        """
        path = self.folder / name.format(len(self.listed))
        with atomic_path(path) as temporary:
            write(temporary)
        sha256 = sha256_file(path)
        self.listed.append(Shard(name=path.name, num_rows=num_rows, sha256=sha256, writer=writer))
        self.save()
        return path

    def reset(self, key: Any) -> None:
        """Delete all shards and start again under `key`."""
        old, self.key, self.listed, self.num_complete = self.listed, key, [], None
        # The manifest goes first: a process that dies in between leaves shards that nothing lists.
        self.save()
        for shard in old:
            (self.folder / shard.name).unlink(missing_ok=True)

    @property
    def num_rows(self) -> int:
        return sum(shard.num_rows for shard in self.listed)

    def finish(self, *, num_rows: int) -> None:
        """Mark the whole as complete with the rows of all parts."""
        self.num_complete = num_rows
        self.save()

    def paths(self) -> list[Path]:
        """Return where the shards are; DataError if one is not there."""
        paths = [self.folder / shard.name for shard in self.listed]
        for path in paths:
            if not path.is_file():
                raise DataError(f"{path}: the shard is missing; {self.remedy}")
        return paths

    def verified(self) -> Iterator[Path]:
        """Yield where the shards are; DataError if one is missing or was changed after it was written."""
        for path, shard in zip(self.paths(), self.listed, strict=True):
            if sha256_file(path) != shard.sha256:
                raise self.damaged(path)
            yield path

    def damaged(self, path: Path) -> DataError:
        return damaged(path, "not what was written", remedy=self.remedy)


def part_folder(folder: Path, number: int) -> Path:
    """Return where one of several processes writes its part."""
    return folder / f"rank_{number}"


def part_folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("rank_*"))


def read_parts(folder: Path, *, remedy: str) -> list[Shards]:
    """Return what several processes list in their parts; DataError as `Shards.read`."""
    parts = [path for path in part_folders(folder) if (path / MANIFEST).exists()]
    return [Shards.read(path, remedy=remedy) for path in parts]
