"""Where examples come from: the kinds of sources, as records, and reading rows from them.

Nothing is downloaded except by kind `hub`. Prompts are made in examples.py, mixtures in recipe.py.
"""

import glob
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from vlm_distill.config import Record
from vlm_distill.data.columns import Columns
from vlm_distill.data.hub import hub_rows
from vlm_distill.data.image_values import inside
from vlm_distill.data.rows import Row, build_row
from vlm_distill.data.tables import RawRow, read_table
from vlm_distill.errors import DataError
from vlm_distill.files import sha256_file

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_INSTALL = {"easy_vqa": "pip install 'vlm-distill[demo]'"}


class PackageData(Record):
    """A table inside an installed Python package, which is not imported; image paths are relative to it."""

    kind: Literal["package_data"] = "package_data"
    name: str | None = None
    package: str = Field(pattern=r"^[A-Za-z_]\w*$")
    file: str
    list_key: str | None = None
    columns: Columns


class Files(Record):
    """JSON, JSONL, CSV, TSV or Parquet; image paths are relative to the file's folder or to `image_root`."""

    kind: Literal["files"] = "files"
    name: str | None = None
    paths: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="paths or glob patterns; relative ones start at the current folder"
    )
    image_root: str | None = None
    list_key: str | None = Field(
        default=None, description="the key of the list in a .json file whose top level is an object"
    )
    columns: Columns


class ImageFolder(Record):
    """Images of a folder and its subfolders; metadata.jsonl or metadata.csv adds columns by `file_name`."""

    kind: Literal["image_folder"] = "image_folder"
    name: str | None = None
    path: str
    columns: Columns = Columns()


class Hub(Record):
    """A Hugging Face data set, by id or as a local folder. Code of the data set never runs."""

    kind: Literal["hub"] = "hub"
    name: str | None = None
    path: str
    config: str | None = Field(
        default=None, description="the configuration of the data set, where it has several"
    )
    split: str
    revision: str | None = None
    streaming: bool = False
    columns: Columns


Source = Annotated[PackageData | Files | ImageFolder | Hub, Field(discriminator="kind")]


def source_name(source: Source) -> str:
    """Return the name of a source, which ids begin with where there is no id column."""
    if source.name is not None:
        return source.name
    if isinstance(source, PackageData):
        return source.package
    if isinstance(source, Files):
        first = source.paths if isinstance(source.paths, str) else source.paths[0]
        return Path(first).stem
    return Path(source.path).name


def read_rows(source: Source) -> Iterator[Row]:
    """Yield the rows of a source in a fixed order.

    Raises:
        DataError: the source is not there, or a row is not what its columns say.
    """
    name = source_name(source)
    columns = _folder_columns(source) if isinstance(source, ImageFolder) else source.columns
    for number, (where, raw, image_root) in enumerate(_raw_rows(source)):
        default_id = f"{name}-{number}"
        yield build_row(raw, columns, default_id=default_id, image_root=image_root, where=where)


def _raw_rows(source: Source) -> Iterator[tuple[str, RawRow, Path | None]]:
    if isinstance(source, PackageData):
        folder, file = _package_file(source)
        for where, raw in read_table(file, list_key=source.list_key):
            yield where, raw, folder
    elif isinstance(source, Files):
        for file in _files(source):
            root = file.parent if source.image_root is None else Path(source.image_root).expanduser()
            for where, raw in read_table(file, list_key=source.list_key):
                yield where, raw, root
    elif isinstance(source, ImageFolder):
        folder = Path(source.path).expanduser()
        for where, raw in _folder_rows(folder):
            yield where, raw, folder
    else:
        yield from (
            (where, raw, None)
            for where, raw in hub_rows(
                source.path,
                config=source.config,
                split=source.split,
                revision=source.revision,
                streaming=source.streaming,
            )
        )


def source_state(source: Source) -> Any:
    """Return what changes when the content of a source does, as far as that is cheap to see, as a JSON value.

    The table of a package is hashed; files and image folders are listed with size and time. Images that a
    table names and the moving head of a hub data set without `revision` are not looked at.
    """
    if isinstance(source, PackageData):
        return sha256_file(_package_file(source)[1])
    if isinstance(source, Hub):
        return source.revision
    if isinstance(source, Files):
        files = _files(source)
    else:
        files = sorted(path for path in Path(source.path).expanduser().rglob("*") if path.is_file())
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _package_file(source: PackageData) -> tuple[Path, Path]:
    spec = importlib.util.find_spec(source.package)
    if spec is None or not spec.submodule_search_locations:
        command = _INSTALL.get(source.package, f"pip install the distribution that provides {source.package}")
        raise DataError(f"package {source.package!r} is not installed in this environment; run: {command}")
    folder = Path(next(iter(spec.submodule_search_locations)))
    file = inside(folder, source.file, where=f"package {source.package}")
    if not file.is_file():
        raise DataError(f"package {source.package}: no file {source.file!r} in {folder}")
    return folder, file


def _files(source: Files) -> list[Path]:
    found: list[Path] = []
    for pattern in [source.paths] if isinstance(source.paths, str) else source.paths:
        expanded = Path(pattern).expanduser()
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


def _folder_rows(folder: Path) -> Iterator[tuple[str, RawRow]]:
    images = _folder_images(folder)
    tables = _metadata(folder)
    if len(tables) > 1:
        raise DataError(f"{folder}: expected one of metadata.jsonl and metadata.csv, found both")
    if not tables:
        for name in images:
            yield str(folder / name), {"file_name": name}
        return
    unnamed = set(images)
    for where, raw in read_table(tables[0]):
        if not isinstance(raw, dict) or not isinstance(raw.get("file_name"), str):
            raise DataError(f"{where}: expected a column 'file_name' with the path of the image")
        unnamed.discard(raw["file_name"])
        yield where, raw
    if unnamed:
        raise DataError(
            f"{tables[0]}: {len(unnamed)} images of the folder have no row, the first is {min(unnamed)}"
        )


def _folder_columns(source: ImageFolder) -> Columns:
    columns, folder = source.columns, Path(source.path).expanduser()
    if columns.image is None and columns.images is None:
        columns = columns.model_copy(update={"image": "file_name"})
    # Without a table every image is one row; its path names it better than a number that new files shift.
    if columns.id is None and not _metadata(folder):
        columns = columns.model_copy(update={"id": "file_name"})
    return columns


def _metadata(folder: Path) -> list[Path]:
    return [folder / name for name in ("metadata.jsonl", "metadata.csv") if (folder / name).is_file()]


def _folder_images(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder (looked at {folder.absolute()})")
    paths = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
    if not paths:
        raise DataError(f"{folder}: no images; expected files that end in {', '.join(IMAGE_SUFFIXES)}")
    return [path.relative_to(folder).as_posix() for path in paths]
