"""Tables in files of one's own: JSON, JSONL, CSV, TSV or Parquet."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from vlm_distill.config import PathText, Record, user_path
from vlm_distill.data.bad_rows import RowError
from vlm_distill.data.columns import Columns
from vlm_distill.data.rows import RawRows, Row, build_rows, image_files
from vlm_distill.data.tables import read_table
from vlm_distill.errors import DataError
from vlm_distill.files import hash_json
from vlm_distill.markdown import inline_code


class Files(Record):
    """JSON, JSONL, CSV, TSV or Parquet; image paths are relative to the file's folder or to `image_root`."""

    kind: Literal["files"] = "files"
    name: str | None = None
    paths: PathText | Annotated[list[PathText], Field(min_length=1)] = Field(
        description="paths or glob patterns; relative ones start at the current folder"
    )
    image_root: PathText | None = None
    list_key: str | None = Field(
        default=None, description="the key of the list in a .json file whose top level is an object"
    )
    columns: Columns
    hub_id: ClassVar[None] = None

    @property
    def label(self) -> str:
        return Path(_patterns(self)[0]).stem if self.name is None else self.name

    def rows(self) -> Iterator[Row | RowError]:
        return build_rows(_raw_rows(self), self.columns, name=self.label)

    def state(self) -> Any:
        return [sizes_and_times(_files(self)), pictures_state(_raw_rows(self), self.columns)]

    def describe(self) -> str:
        return f"local files {inline_code(self.name)}" if self.name else "local files"


def sizes_and_times(paths: Iterable[Path]) -> list[list[Any]]:
    """Return name, bytes and times of the last change of every file: that which `touch` sets, and its own."""
    found = [(path, _stat(path)) for path in paths]
    return [[str(path), at and [at.st_size, at.st_mtime_ns, at.st_ctime_ns]] for path, at in found]


def pictures_state(raw_rows: RawRows, columns: Columns) -> str:
    """Return a hash of name, bytes and time of the picture files that rows name."""
    return hash_json(sizes_and_times(sorted(set(image_files(raw_rows, columns)))))


def _stat(path: Path) -> os.stat_result | None:
    """Return what the disk knows of a file, None where there is none or can be none of such a name."""
    try:
        return path.stat() if path.is_file() else None
    except OSError:
        return None


def _raw_rows(source: Files) -> RawRows:
    for file in _files(source):
        root = file.parent if source.image_root is None else user_path(source.image_root)
        for where, raw in read_table(file, list_key=source.list_key):
            yield where, raw, root


def _patterns(source: Files) -> list[str]:
    return [source.paths] if isinstance(source.paths, str) else source.paths


def _files(source: Files) -> list[Path]:
    found: list[Path] = []
    for pattern in _patterns(source):
        expanded = user_path(pattern)
        matches = [str(expanded)] if expanded.exists() else sorted(glob.glob(str(expanded), recursive=True))
        if not matches:
            raise DataError(
                f"{pattern}: no such file, and no match as a pattern (looked at {expanded.absolute()})"
            )
        found += [Path(match) for match in matches]
    twice = {str(path) for path in found if found.count(path) > 1}
    if twice:
        raise DataError(f"{sorted(twice)[0]}: named by several entries of paths")
    return found
