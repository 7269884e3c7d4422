"""One row of a data set with its columns resolved: what every kind of source yields."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from vlm_distill.data.absent import is_absent, is_null, is_unsaid
from vlm_distill.data.bad_rows import RowError
from vlm_distill.data.columns import Columns, cell
from vlm_distill.data.conversations import parse_messages
from vlm_distill.data.image_values import image_bytes, image_file
from vlm_distill.data.tables import RawRow
from vlm_distill.errors import DataError
from vlm_distill.records import Message, Text


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row; `where` names it in errors.

    `question` is empty where the row lacks one and may. Each of `images` returns the bytes of one image file
    when called, and raises DataError when they cannot be had: filters and limits come first, and a bad image
    can be skipped. `meta` holds the values as they are, for prompts.
    """

    id: str
    where: str
    images: tuple[Callable[[], bytes], ...] = ()
    question: str | None = None
    messages: tuple[Message, ...] | None = None
    references: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> str:
        """The text of the question, in a conversation that of the last turn of the user."""
        if self.messages is None:
            return self.question or ""
        return "".join(part.text for part in self.messages[-1].content if isinstance(part, Text))


def build_rows(
    raw_rows: Iterable[tuple[str, RawRow | RowError, Path | None]], columns: Columns, *, name: str
) -> Iterator[Row | RowError]:
    """Yield the row that `columns` see in each (where, row, image root), called `name`-number by default.

    A row that cannot be used is yielded as what is wrong with it.
    """
    for number, (where, raw, image_root) in enumerate(raw_rows):
        if isinstance(raw, RowError):
            yield raw
            continue
        try:
            row = build_row(raw, columns, default_id=f"{name}-{number}", image_root=image_root, where=where)
        except RowError as error:
            yield error
        except RecursionError:
            yield RowError(f"{where}: a cell is nested too deeply", reason="wrong_cell")
        else:
            yield row


def build_row(raw: RawRow, columns: Columns, *, default_id: str, image_root: Path | None, where: str) -> Row:
    """Return the row that `columns` see in `raw`.

    Raises:
        RowError: a column is missing, empty, or holds something else than its use needs.
    """
    question = messages = answer = None
    if columns.question is not None:
        found = cell(raw, columns.question, use="question", where=where)
        question = "" if found is None else _text(found, use="question", where=where)
    if columns.messages is not None:
        found = cell(raw, columns.messages, use="messages", where=where)
        question = "" if found is None else None
        messages, answer = (None, None) if found is None else parse_messages(found, where=where)
    row_id = None if columns.id is None else cell(raw, columns.id, use="id", where=where)
    images = _images(raw, columns, where=where)
    return Row(
        id=default_id if row_id is None else _text(row_id, use="id", where=where),
        where=where,
        images=tuple(partial(image_bytes, value, root=image_root, where=where) for value in images),
        question=question,
        messages=messages,
        references=_references(raw, columns, where=where) or (() if answer is None else (answer,)),
        meta={
            name: cell(raw, column, use=f"meta {name}", where=where, lacks=is_null)
            for name, column in columns.meta.items()
        },
    )


def image_files(
    raw_rows: Iterable[tuple[str, RawRow | RowError, Path | None]], columns: Columns
) -> Iterator[Path]:
    """Yield the picture files that rows name, whether or not they are there."""
    if columns.image is None and columns.images is None:
        return
    for where, raw, image_root in raw_rows:
        if not isinstance(raw, RowError):
            # A row that cannot be used is said where it is read.
            with suppress(DataError, RecursionError):
                files = (image_file(value, root=image_root) for value in _images(raw, columns, where=where))
                yield from (file for file in files if file is not None)


def meta_text(value: Any) -> str:
    """Return a meta value as examples store it: text as it is, nothing as none, everything else as JSON."""
    if is_null(value):
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _text(value: Any, *, use: str, where: str) -> str:
    """Return the text of a cell: numbers as Python writes them, dates and times in ISO 8601."""
    if isinstance(value, str):
        return value
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, bool) or not (isinstance(value, (int, float, Decimal)) and math.isfinite(value)):
        kind = type(value).__name__
        raise RowError(f"{where}: expected text or a number as {use}, got {kind}", reason="wrong_cell")
    return str(value)


def _references(raw: RawRow, columns: Columns, *, where: str) -> tuple[str, ...]:
    if columns.references is None:
        return ()
    value = cell(raw, columns.references, use="references", where=where, lacks=is_unsaid)
    items = value if isinstance(value, (list, tuple)) else [value]
    found = [_answer(item, where=where) for item in items]
    # True and False are answers, written as JSON writes them.
    return tuple(
        str(item).lower() if isinstance(item, bool) else _text(item, use="references", where=where)
        for item in found
        if not is_absent(item)
    )


def _answer(item: Any, *, where: str) -> Any:
    if not isinstance(item, dict):
        return item
    if "answer" not in item:
        known = ", ".join(map(str, item))
        message = f"{where}: expected references with a key 'answer', got {known}"
        raise RowError(message, reason="wrong_cell")
    return item["answer"]


def _images(raw: RawRow, columns: Columns, *, where: str) -> list[Any]:
    if columns.image is not None:
        values = [cell(raw, columns.image, use="image", where=where)]
    elif isinstance(columns.images, list):
        values = [cell(raw, column, use="images", where=where) for column in columns.images]
    elif columns.images is not None:
        listed = cell(raw, columns.images, use="images", where=where, lacks=is_unsaid)
        return _listed_images(listed, column=columns.images, where=where)
    else:
        values = []
    # None comes only from columns that rows may lack.
    return [value for value in values if value is not None]


def _listed_images(listed: Any, *, column: int | str, where: str) -> list[Any]:
    if not isinstance(listed, (list, tuple, type(None))):
        kind = type(listed).__name__
        message = f"{where}: expected a list in column {column!r} (images), got {kind}"
        raise RowError(message, reason="wrong_cell")
    values = list(listed or [])
    if any(map(is_absent, values)):
        message = f"{where}: an image in column {column!r} (images) is empty"
        raise RowError(message, reason="missing_cell")
    return values
