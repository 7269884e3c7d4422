"""A Hugging Face data set. Only this file imports the `datasets` library, when rows are asked for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vlm_distill.config import PathText, Record
from vlm_distill.data.bad_rows import RowError
from vlm_distill.data.columns import Columns
from vlm_distill.data.rows import RawRows, Row, build_rows
from vlm_distill.errors import DataError, one_line
from vlm_distill.markdown import inline_code, plain


class Hub(Record):
    """A Hugging Face data set, by id or as a local folder. Code of the data set never runs."""

    kind: Literal["hub"] = "hub"
    name: str | None = None
    path: PathText
    config: str | None = Field(
        default=None, description="the configuration of the data set, where it has several"
    )
    split: str
    revision: str | None = None
    streaming: bool = False
    columns: Columns

    @property
    def label(self) -> str:
        return Path(self.path).name if self.name is None else self.name

    @property
    def hub_id(self) -> str:
        return self.path

    def rows(self) -> Iterator[Row | RowError]:
        return build_rows(_raw_rows(self), self.columns, name=self.label)

    def state(self) -> Any:
        """Return the revision; without one the head of the data set moves unseen."""
        return self.revision

    def describe(self) -> str:
        revision = f" at revision {plain(self.revision)}" if self.revision else ""
        return f"{inline_code(self.path)}, split {plain(self.split)}{revision}"


def _raw_rows(source: Hub) -> RawRows:
    """Yield the rows as they stand there; images come as {bytes, path}."""
    import datasets

    try:
        table = datasets.load_dataset(
            source.path,
            source.config,
            split=source.split,
            revision=source.revision,
            streaming=source.streaming,
        )
        for name, feature in (table.features or {}).items():
            undecoded = _undecoded(feature)
            if undecoded is not None:
                table = table.cast_column(name, undecoded)
        # A streamed row is fetched here, so this can fail like the first line.
        for number, row in enumerate(table):
            yield f"hub data set {source.path} {source.split} row {number}", row, None
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"hub data set {source.path!r}, split {source.split!r}: cannot be loaded: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from None


def _undecoded(feature: Any) -> Any:
    """Return the feature of an image column that hands out file bytes, None for other columns.

    Decoding would lose the file: the store hashes and keeps the bytes as they are.
    """
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, (datasets.List, datasets.LargeList)) and isinstance(
        feature.feature, datasets.Image
    ):
        return type(feature)(datasets.Image(decode=False))
    return None
