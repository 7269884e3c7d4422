"""Small declarative filters on rows; what they drop is counted by reason."""

from typing import Annotated

from pydantic import Field

from vlm_distill.config import Record
from vlm_distill.data.rows import Row, meta_text
from vlm_distill.errors import DataError, did_you_mean


class Filters(Record):
    """Which rows to keep. Lengths are characters of the question; texts are compared exactly."""

    min_characters: Annotated[int, Field(ge=0)] = 0
    max_characters: Annotated[int, Field(gt=0)] | None = None
    references_in: list[str] | None = Field(
        default=None, description="keep rows with a reference in this list"
    )
    references_not_in: list[str] = Field(default=[], description="drop rows with a reference in this list")
    meta: dict[str, str] = Field(default={}, description="keep rows whose meta has these values")


def drop_reason(filters: Filters, row: Row) -> str | None:
    """Return the name of the first filter that drops the row, None for a row to keep."""
    if len(row.asked) < filters.min_characters:
        return "min_characters"
    if filters.max_characters is not None and len(row.asked) > filters.max_characters:
        return "max_characters"
    if filters.references_in is not None and not set(row.references) & set(filters.references_in):
        return "references_in"
    if set(row.references) & set(filters.references_not_in):
        return "references_not_in"
    for name, expected in filters.meta.items():
        if name not in row.meta:
            raise DataError(
                f"{row.where}: filter on meta {name!r}, which no column gives; {did_you_mean(name, row.meta)}"
            )
        if meta_text(row.meta[name]) != expected:
            return f"meta_{name}"
    return None
