"""Rows of a Hugging Face data set. Only this file imports the `datasets` library, when rows are asked for."""

from collections.abc import Iterator
from typing import Any

from vlm_distill.data.tables import RawRow
from vlm_distill.errors import DataError, one_line


def hub_rows(
    path: str, *, config: str | None, split: str, revision: str | None, streaming: bool
) -> Iterator[tuple[str, RawRow]]:
    """Yield (where, row) of a data set on the hub or in a local folder; images come as {bytes, path}.

    Raises:
        DataError: the data set, its configuration or its split cannot be loaded.
    """
    import datasets

    try:
        table = datasets.load_dataset(path, config, split=split, revision=revision, streaming=streaming)
        for name, feature in (table.features or {}).items():
            plain = _undecoded(feature)
            if plain is not None:
                table = table.cast_column(name, plain)
        # A streamed row is fetched here, so this can fail like the first line.
        for number, row in enumerate(table):
            yield f"hub data set {path} {split} row {number}", row
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        detail = one_line(error)
        raise DataError(
            f"hub data set {path!r}, split {split!r}: cannot be loaded: {type(error).__name__}: {detail}"
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
