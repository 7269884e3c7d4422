"""Which column of a data set is what: the mapping that sources share, and looking cells up by it."""

import re
from typing import Any

from pydantic import Field, model_validator

from vlm_distill.config import Record
from vlm_distill.data.tables import RawRow
from vlm_distill.errors import DataError, did_you_mean

# A name, the position in a row that is a list, or a template of such in braces: "images/{2}.png",
# "{folder}/{name}.jpg". A question mark at the end says that rows may lack it.
Column = int | str
_RESERVED = ("id", "question", "references")


class Columns(Record):
    """The columns of a data set. `question` excludes `messages`, and `image` excludes `images`."""

    id: Column | None = Field(
        default=None, description="unique name of a row; default: <source name>-<row number>"
    )
    image: Column | None = Field(default=None, description="path, bytes, base64 or {bytes, path}")
    images: Column | list[Column] | None = Field(
        default=None, description="a column with a list of images, or several columns"
    )
    question: Column | None = None
    messages: Column | None = Field(
        default=None, description="chat messages, or conversations as LLaVA stores them"
    )
    references: Column | None = Field(
        default=None, description="acceptable answers: text, a list of texts, or of {answer}"
    )
    meta: dict[str, Column] = Field(
        default={}, description="more columns, for prompts, filters and grouped scores"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Columns":
        if self.question is not None and self.messages is not None:
            raise ValueError("question and messages exclude each other: messages hold the whole prompt")
        if self.image is not None and self.images is not None:
            raise ValueError("image and images exclude each other")
        taken = [name for name in self.meta if name in _RESERVED]
        if taken:
            raise ValueError(
                f"meta cannot be called {taken[0]!r}: prompts have a variable of that name already"
            )
        return self


def cell(row: RawRow, column: Column, *, use: str, where: str) -> Any:
    """Return what `column` names in `row`, None only where the column is marked as one that rows may lack.

    Raises:
        DataError: no such column, or it is empty (null).
    """
    optional = isinstance(column, str) and column.endswith("?")
    name = column.removesuffix("?") if isinstance(column, str) else column
    if isinstance(name, str) and "{" in name:
        return _fill(row, name, optional=optional, use=use, where=where)
    value = _look_up(row, name, optional=optional, use=use, where=where)
    if value is None and not optional:
        raise DataError(f"{where}: column {name!r} ({use}) is empty; write '{name}?' if rows may lack it")
    return value


def _look_up(row: RawRow, name: Column, *, optional: bool, use: str, where: str) -> Any:
    if isinstance(row, list):
        if isinstance(name, str) and not name.isdigit():
            raise DataError(
                f"{where}: the row is a list; expected a position below {len(row)} for {use}, got {name!r}"
            )
        if int(name) >= len(row) and not optional:
            raise DataError(
                f"{where}: no position {name} ({use}); the row has {len(row)} cells, counted from 0"
            )
        return row[int(name)] if 0 <= int(name) < len(row) else None
    if str(name) not in row and not optional:
        raise DataError(f"{where}: no column {name!r} ({use}); {did_you_mean(str(name), map(str, row))}")
    return row.get(str(name))


def _fill(row: RawRow, template: str, *, optional: bool, use: str, where: str) -> str | None:
    filled: list[str] = []
    for position, part in enumerate(re.split(r"\{([^{}]+)\}", template)):
        if position % 2 == 0:
            filled.append(part)
            continue
        value = _look_up(row, part, optional=optional, use=use, where=where)
        if value is None and optional:
            return None
        if not isinstance(value, (str, int, float)):
            raise DataError(
                f"{where}: {template!r} ({use}) needs text or a number in {part!r}, not {value!r}"
            )
        filled.append(str(value))
    return "".join(filled)
