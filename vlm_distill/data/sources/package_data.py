"""A table inside an installed Python package."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from vlm_distill.config import PathText, Record
from vlm_distill.data.bad_rows import RowError
from vlm_distill.data.columns import Columns
from vlm_distill.data.image_values import inside
from vlm_distill.data.rows import RawRows, Row, build_rows
from vlm_distill.data.sources.files import pictures_state
from vlm_distill.data.tables import read_table
from vlm_distill.errors import DataError
from vlm_distill.files import sha256_file
from vlm_distill.markdown import inline_code
from vlm_distill.packages import not_installed, package_folder


class PackageData(Record):
    """A table inside an installed Python package, which is not imported; image paths are relative to it."""

    kind: Literal["package_data"] = "package_data"
    name: str | None = None
    package: str = Field(pattern=r"^[A-Za-z_]\w*$")
    file: PathText
    list_key: str | None = None
    columns: Columns
    hub_id: ClassVar[None] = None

    @property
    def label(self) -> str:
        return self.package if self.name is None else self.name

    def rows(self) -> Iterator[Row | RowError]:
        return build_rows(_raw_rows(self), self.columns, name=self.label)

    def state(self) -> Any:
        return [sha256_file(_find(self)[1]), pictures_state(_raw_rows(self), self.columns)]

    def describe(self) -> str:
        return f"{inline_code(self.file)} of the Python package {inline_code(self.package)}"


def _raw_rows(source: PackageData) -> RawRows:
    folder, file = _find(source)
    return ((where, raw, folder) for where, raw in read_table(file, list_key=source.list_key))


def _find(source: PackageData) -> tuple[Path, Path]:
    """Return the folder of the package, and the table in it."""
    folder = package_folder(source.package)
    if folder is None:
        raise DataError(not_installed(source.package))
    file = inside(folder, source.file, where=f"package {source.package}")
    if not file.is_file():
        raise DataError(f"package {source.package}: no file {source.file!r} in {folder}")
    return folder, file
