"""Which column of a data set is what: the mapping that sources share, and looking cells up by it."""

import re
from collections.abc import Callable
from reprlib import repr as shown
from typing import Any

from pydantic import Field, model_validator

from vlm_distill.config import Record
from vlm_distill.data.absent import is_absent, is_null
from vlm_distill.data.bad_rows import RowError
from vlm_distill.data.tables import RawRow
from vlm_distill.errors import did_you_mean

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


def cell(
    row: RawRow, column: Column, *, use: str, where: str, lacks: Callable[[Any], bool] = is_absent
) -> Any:
    """Return what `column` names in `row`, None only where the column is marked as one that rows may lack.

    `lacks` says which values are none.

    Raises:
        RowError: no such column, or it is empty.
    """
    optional = isinstance(column, str) and column.endswith("?")
    name = column.removesuffix("?") if isinstance(column, str) else column
    if isinstance(name, str) and "{" in name:
        return _fill(row, name, optional=optional, use=use, where=where)
    value = _look_up(row, name, optional=optional, use=use, where=where)
    if not lacks(value):
        return value
    if not optional:
        raise _missing(f"{where}: column {name!r} ({use}) is empty; write {f'{name}?'!r} if rows may lack it")
    return None


def _missing(message: str) -> RowError:
    return RowError(message, reason="missing_cell")


def _look_up(row: RawRow, name: Column, *, optional: bool, use: str, where: str) -> Any:
    if isinstance(row, list):
        if isinstance(name, str) and not name.isdecimal():
            raise _missing(
                f"{where}: the row is a list; expected a position below {len(row)} for {use}, got {name!r}"
            )
        if int(name) >= len(row) and not optional:
            raise _missing(
                f"{where}: no position {name} ({use}); the row has {len(row)} cells, counted from 0"
            )
        return row[int(name)] if 0 <= int(name) < len(row) else None
    if str(name) not in row and not optional:
        raise _missing(f"{where}: no column {name!r} ({use}); {did_you_mean(str(name), map(str, row))}")
    return row.get(str(name))


def _fill(row: RawRow, template: str, *, optional: bool, use: str, where: str) -> str | None:
    pieces = re.split(r"\{([^{}]+)\}", template)
    values = [_look_up(row, part, optional=optional, use=use, where=where) for part in pieces[1::2]]
    if optional and (any(map(is_null, values)) or all(map(is_absent, values))):
        return None
    for part, value in zip(pieces[1::2], values, strict=True):
        if is_null(value) or not isinstance(value, (str, int, float)):
            raise RowError(
                f"{where}: {template!r} ({use}) needs text or a number in {part!r}, not {shown(value)}",
                reason="missing_cell" if is_null(value) else "wrong_cell",
            )
    pieces[1::2] = map(str, values)
    return "".join(pieces)
