"""Which column of a data set is what: the mapping that sources share, and looking cells up by it."""

import math
import re
from collections.abc import Callable, Collection
from datetime import date, time
from decimal import Decimal
from typing import Any

from pydantic import Field, model_validator

from vlm_distill.config import Record
from vlm_distill.data.absent import is_absent, is_null
from vlm_distill.data.bad_rows import RowError
from vlm_distill.data.tables import RawRow
from vlm_distill.errors import cut, did_you_mean, shown

# A name, the position in a row that is a list, or a template of such in braces: "images/{2}.png",
# "{folder}/{name}.jpg". A question mark at the end says that rows may lack it.
Column = int | str
# One column, or several of which a row fills one.
OneOf = Column | list[Column]
_RESERVED = ("id", "question", "references")
_AROUND_A_QUESTION = ("context", "input", "options", "history")


class Columns(Record):
    """The columns of a data set. `question` excludes `messages`, and `image` excludes `images`.

    Of several columns for one use a row fills one; a row that fills two is an error. What belongs to a prompt
    beside its question is put together in forms.py.
    """

    id: Column | None = Field(
        default=None, description="unique name of a row; default: <source name>-<row number>"
    )
    image: Column | None = Field(default=None, description="path, bytes, base64 or {bytes, path}")
    images: Column | list[Column] | None = Field(
        default=None, description="a column with a list of images, or several columns of one or more"
    )
    question: OneOf | None = None
    messages: OneOf | None = Field(
        default=None, description="chat messages, or conversations as LLaVA stores them"
    )
    references: OneOf | None = Field(
        default=None, description="acceptable answers: text, a list of texts, or of {answer}"
    )
    context: OneOf | None = Field(default=None, description="text before the question: a passage, a hint")
    input: OneOf | None = Field(
        default=None, description="text after the question, as `input` of Alpaca; alone it is the question"
    )
    options: Column | list[Column] | None = Field(
        default=None, description="choices after the question: a list in one column, or a column a choice"
    )
    system: OneOf | None = Field(default=None, description="the system message of the row")
    history: OneOf | None = Field(
        default=None, description="turns before the question: a list of [question, answer], or of messages"
    )
    meta: dict[str, Column] = Field(
        default={}, description="more columns, for prompts, filters and grouped scores"
    )
    ignore: list[str] = Field(
        default=[], description="columns that are not read on purpose: the log does not name them"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Columns":
        prompts = [*listed(self.question), *listed(self.messages)]
        if None not in (self.question, self.messages) and not all(map(is_optional, prompts)):
            raise ValueError(
                "question and messages exclude each other: messages hold the whole prompt; if every row has "
                "one of them, write a '?' behind both"
            )
        if self.image is not None and self.images is not None:
            raise ValueError("image and images exclude each other")
        alone = [name for name in _AROUND_A_QUESTION if getattr(self, name) is not None]
        if alone and self.question is None:
            raise ValueError(f"{alone[0]} belongs to a question; name the column of that too")
        taken = [name for name in self.meta if name in _RESERVED]
        if taken:
            raise ValueError(
                f"meta cannot be called {taken[0]!r}: prompts have a variable of that name already"
            )
        return self

    def known(self) -> frozenset[str]:
        """Return the names, and positions as text, of all columns that are read or ignored."""
        uses = (value for use, value in self if use not in ("meta", "ignore"))
        columns = [column for use in (*uses, *self.meta.values()) for column in listed(use)]
        return frozenset(name for column in columns for name in _names(column)).union(self.ignore)


def listed(columns: OneOf | None) -> list[Column]:
    """Return the columns of a use, none for none."""
    return columns if isinstance(columns, list) else [] if columns is None else [columns]


def is_optional(column: Column) -> bool:
    """Return whether rows may lack the column."""
    return isinstance(column, str) and column.endswith("?")


def shown_column(name: str) -> str:
    """Return the name of a column, in quotes if it would be misread."""
    is_plain = name.isprintable() and name == name.strip() and "," not in name and name
    return cut(name if is_plain else repr(name), 80)


def unread(row: RawRow, known: Collection[str]) -> list[str]:
    """Return the names, or positions as text, of the cells of a row that are not among the known ones."""
    cells = row.items() if isinstance(row, dict) else enumerate(row)
    return [str(name) for name, value in cells if str(name) not in known and not is_absent(value)]


def one_of(
    row: RawRow, columns: OneOf | None, *, use: str, where: str, lacks: Callable[[Any], bool] = is_absent
) -> Any:
    """Return the cell of the column that the row fills, None where rows may lack all of them.

    Raises:
        RowError: several are filled, or none and one must be.
    """
    if not isinstance(columns, list):
        return None if columns is None else cell(row, columns, use=use, where=where, lacks=lacks)
    cells = [cell(row, _optional(column), use=use, where=where) for column in columns]
    found = [(column, value) for column, value in zip(columns, cells, strict=True) if value is not None]
    if len(found) > 1:
        names = " and ".join(repr(_plain(column)) for column, _ in found)
        raise RowError(f"{where}: {names} are filled; expected one of them as {use}", reason="wrong_cell")
    if not found and not all(map(is_optional, columns)):
        names = ", ".join(repr(_plain(column)) for column in columns)
        raise _missing(f"{where}: every column for {use} is empty: {names}")
    return found[0][1] if found else None


def cell(
    row: RawRow, column: Column, *, use: str, where: str, lacks: Callable[[Any], bool] = is_absent
) -> Any:
    """Return what `column` names in `row`, None only where the column is marked as one that rows may lack.

    `lacks` says which values are none.

    Raises:
        RowError: no such column, or it is empty.
    """
    optional = is_optional(column)
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


def as_text(value: Any, *, use: str, where: str) -> str:
    """Return the text of a cell: numbers as Python writes them, dates and times in ISO 8601."""
    if isinstance(value, str):
        return value
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, bool) or not (isinstance(value, (int, float, Decimal)) and math.isfinite(value)):
        kind = type(value).__name__
        raise RowError(f"{where}: expected text or a number as {use}, got {kind}", reason="wrong_cell")
    return str(value)


def _plain(column: Column) -> str:
    return str(column).removesuffix("?")


def _optional(column: Column) -> Column:
    return column if is_optional(column) else f"{column}?"


def _names(column: Column) -> list[str]:
    """Return the names that a column stands for: itself, or those in the braces of a template."""
    name = _plain(column)
    return re.findall(r"\{([^{}]+)\}", name) if "{" in name else [name]
