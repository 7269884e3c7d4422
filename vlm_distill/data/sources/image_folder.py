"""A folder of images, with or without tables of metadata in it."""

import logging
import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from vlm_distill.config import PathText, Record, user_path
from vlm_distill.data.absent import is_absent
from vlm_distill.data.bad_rows import RowError
from vlm_distill.data.columns import Columns
from vlm_distill.data.image_formats import suffixes
from vlm_distill.data.rows import RawRows, Row, build_rows
from vlm_distill.data.sources.files import sizes_and_times
from vlm_distill.data.tables import RawRow, read_table
from vlm_distill.errors import DataError
from vlm_distill.markdown import inline_code

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
# What Windows and macOS leave beside pictures; names with a dot in front are hidden anyway.
_OF_THE_SYSTEM = {"__macosx", "thumbs.db", "desktop.ini"}
# How many kinds a line names.
_NAMED = 8
logger = logging.getLogger(__name__)


class ImageFolder(Record):
    """Images of a folder and its subfolders, hidden ones left out; metadata adds columns by `file_name`.

    A table (metadata.jsonl, metadata.csv or metadata.parquet) may stand in the folder or in subfolders and
    names images by their paths from there.
    """

    kind: Literal["image_folder"] = "image_folder"
    name: str | None = None
    path: PathText
    columns: Columns = Columns()
    hub_id: ClassVar[None] = None

    @property
    def label(self) -> str:
        return Path(self.path).name if self.name is None else self.name

    def rows(self) -> Iterator[Row | RowError]:
        found = _find(user_path(self.path))
        columns = _with_file_names(self.columns, has_table=bool(found.tables))
        return build_rows(_raw_rows(found), columns, name=self.label)

    def state(self) -> Any:
        return sizes_and_times(_files(user_path(self.path)))

    def describe(self) -> str:
        return f"local image folder {inline_code(self.name)}" if self.name else "local image folder"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """What lies in a folder: paths of images from there, which `by_spelling` finds too, and the tables."""

    folder: Path
    images: Sequence[str]
    by_spelling: Mapping[str, Sequence[str]]
    tables: Sequence[Path]

    def on_disk(self, name: str, *, below: str) -> str | None:
        """Return the path of the image that a table in the subfolder `below` calls `name`, None for none.

        It may be absolute, or written with backslashes, another case or other code points for an accented
        letter.
        """
        if name.startswith(root := f"{self.folder.absolute().as_posix()}/"):
            name, below = name.removeprefix(root), "."
        for path in (name, name.replace("\\", "/")):
            clean = posixpath.normpath(posixpath.join(below, path))
            alike = self.by_spelling.get(_spelling(clean), ())
            if clean in alike or len(alike) == 1:
                return clean if clean in alike else alike[0]
        return None


def _spelling(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _find(folder: Path) -> _Found:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder (looked at {folder.absolute()})")
    entries = _entries(folder)
    files = [path for path in entries if path.is_file()]
    images = [path for path in files if path.suffix.lower() in suffixes()]
    if not images:
        raise DataError(
            f"{folder}: no images; expected files that end in .png, .jpg or another suffix of images"
        )
    tables = [path for path in files if path.name in METADATA]
    twice = [one for one, count in Counter(path.parent for path in tables).items() if count > 1]
    if twice:
        raise DataError(f"{twice[0]}: expected one of {', '.join(METADATA)}, found several")
    taken = {*images, *tables}
    _say_others(folder, [path for path in entries if path not in taken])
    names = [path.relative_to(folder).as_posix() for path in images]
    by_spelling: dict[str, list[str]] = {}
    for name in names:
        by_spelling.setdefault(_spelling(name), []).append(name)
    return _Found(folder=folder, images=names, by_spelling=by_spelling, tables=tables)


def _files(folder: Path) -> list[Path]:
    """Return the files of a folder and its subfolders in a fixed order, without hidden ones."""
    return [path for path in _entries(folder) if path.is_file()]


def _entries(folder: Path) -> list[Path]:
    """Return all but folders; links to folders, which are not followed, are among them.

    Raises:
        DataError: a subfolder cannot be read.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        if any(map(_is_hidden, path.relative_to(folder).parts)):
            continue
        if path.is_symlink() or not path.is_dir():
            found.append(path)
        elif not os.access(path, os.R_OK | os.X_OK):
            raise DataError(f"{path}: the folder cannot be read: Permission denied")
    return found


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _OF_THE_SYSTEM


def _say_others(folder: Path, others: Sequence[Path]) -> None:
    if others:
        kinds = Counter(map(_kind, others)).most_common(_NAMED)
        listed = ", ".join(f"{kind} {count}" for kind, count in kinds)
        logger.info("%s: %d files are no images and left out: %s", folder, len(others), listed)


def _kind(path: Path) -> str:
    if not path.is_file():
        return "links to folders or nowhere, pipes and the like"
    return ascii(path.suffix.lower())[1:-1] or "no suffix"


def _with_file_names(columns: Columns, *, has_table: bool) -> Columns:
    if columns.image is None and columns.images is None:
        columns = columns.model_copy(update={"image": "file_name"})
    # Without a table every image is one row; its path names it better than a number that new files shift.
    if columns.id is None and not has_table:
        columns = columns.model_copy(update={"id": "file_name"})
    return columns


def _is_empty(raw: RawRow) -> bool:
    """Return whether a row has the column of its image and nothing in it, which its columns may allow."""
    return isinstance(raw, dict) and "file_name" in raw and is_absent(raw["file_name"])


def _raw_rows(found: _Found) -> RawRows:
    if not found.tables:
        for one in found.images:
            yield str(found.folder / one), {"file_name": one}, found.folder
        return
    unnamed = set(found.images)
    for table in found.tables:
        below = table.parent.relative_to(found.folder).as_posix()
        for where, raw in read_table(table):
            named = raw.get("file_name") if isinstance(raw, dict) else None
            if isinstance(raw, dict) and isinstance(named, str) and not _is_empty(raw):
                on_disk = found.on_disk(named, below=below)
                unnamed.discard(on_disk or "")
                raw = {**raw, "file_name": posixpath.relpath(on_disk, below) if on_disk else named}
            elif not isinstance(raw, RowError) and not _is_empty(raw):
                message = f"{where}: expected a column 'file_name' with the path of the image"
                raw = RowError(message, reason="missing_cell")
            yield where, raw, table.parent
    for one in sorted(unnamed):
        message = f"{found.tables[0]}: {len(unnamed)} images of the folder have no row, one is {one}"
        yield one, RowError(message, reason="missing_cell"), found.folder
