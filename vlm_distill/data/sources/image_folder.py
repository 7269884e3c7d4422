"""A folder of images, with or without a table of metadata beside them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from vlm_distill.config import PathText, Record, user_path
from vlm_distill.data.columns import Columns
from vlm_distill.data.rows import Row, build_rows
from vlm_distill.data.sources.files import sizes_and_times
from vlm_distill.data.tables import RawRow, read_table
from vlm_distill.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class ImageFolder(Record):
    """Images of a folder and its subfolders; metadata.jsonl or metadata.csv adds columns by `file_name`."""

    kind: Literal["image_folder"] = "image_folder"
    name: str | None = None
    path: PathText
    columns: Columns = Columns()
    hub_id: ClassVar[None] = None

    @property
    def label(self) -> str:
        return Path(self.path).name if self.name is None else self.name

    def rows(self) -> Iterator[Row]:
        folder = user_path(self.path)
        columns = _with_file_names(self.columns, has_table=bool(_tables(folder)))
        raw_rows = ((where, raw, folder) for where, raw in _raw_rows(folder))
        return build_rows(raw_rows, columns, name=self.label)

    def state(self) -> Any:
        return sizes_and_times(sorted(path for path in user_path(self.path).rglob("*") if path.is_file()))

    def describe(self) -> str:
        return f"local image folder `{self.name}`" if self.name else "local image folder"


def _with_file_names(columns: Columns, *, has_table: bool) -> Columns:
    if columns.image is None and columns.images is None:
        columns = columns.model_copy(update={"image": "file_name"})
    # Without a table every image is one row; its path names it better than a number that new files shift.
    if columns.id is None and not has_table:
        columns = columns.model_copy(update={"id": "file_name"})
    return columns


def _raw_rows(folder: Path) -> Iterator[tuple[str, RawRow]]:
    images, tables = _images(folder), _tables(folder)
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


def _tables(folder: Path) -> list[Path]:
    return [folder / name for name in ("metadata.jsonl", "metadata.csv") if (folder / name).is_file()]


def _images(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder (looked at {folder.absolute()})")
    paths = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
    if not paths:
        raise DataError(f"{folder}: no images; expected files that end in {', '.join(IMAGE_SUFFIXES)}")
    return [path.relative_to(folder).as_posix() for path in paths]
