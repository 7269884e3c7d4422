"""One row of a data set with its columns resolved: what every kind of source yields."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from vlm_distill.data.absent import is_absent, is_null, is_unsaid
from vlm_distill.data.bad_rows import RowError
from vlm_distill.data.columns import Column, Columns, as_text, cell, listed, one_of, unread
from vlm_distill.data.conversations import parse_messages
from vlm_distill.data.forms import (
    Options,
    name_choice,
    read_answers,
    read_earlier,
    read_options,
    read_question,
)
from vlm_distill.data.image_values import image_bytes, image_file, may_be_image
from vlm_distill.data.tables import RawRow
from vlm_distill.data.text_lists import unpacked
from vlm_distill.errors import DataError
from vlm_distill.records import Message, Text

RawRows = Iterator[tuple[str, RawRow | RowError, Path | None]]
"""Rows as they stand in a table, each behind its place for errors and before the folder of its images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row; `where` names it in errors.

    `question` is empty where the row lacks one and may. Each of `images` returns the bytes of one image file
    when called, and raises DataError when they cannot be had: filters and limits come first, and a bad image
    can be skipped. `before` are the turns in front of the question. `meta` holds the values as they are, for
    prompts. `unread` names the columns that the row fills and nobody reads. A row without images
    `lacks_images` where its source has a column of them, or a cell that nobody reads may hold one.
    """

    id: str
    where: str
    images: tuple[Callable[[], bytes], ...] = ()
    question: str | None = None
    before: tuple[Message, ...] = ()
    messages: tuple[Message, ...] | None = None
    references: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    lacks_images: bool = True

    @property
    def asked(self) -> str:
        """The text of the question, in a conversation that of the last turn of the user."""
        if self.messages is None:
            return self.question or ""
        return "".join(part.text for part in self.messages[-1].content if isinstance(part, Text))


def build_rows(raw_rows: RawRows, columns: Columns, *, name: str) -> Iterator[Row | RowError]:
    """Yield the row that `columns` see in each raw one, called `name`-number by default.

    A row that cannot be used is yielded as what is wrong with it.
    """
    known = columns.known()
    used = known.difference(columns.ignore)
    for number, (where, raw, image_root) in enumerate(raw_rows):
        if isinstance(raw, RowError):
            yield raw
            continue
        try:
            row = build_row(raw, columns, default_id=f"{name}-{number}", image_root=image_root, where=where)
            lacks_images = _lacks_images(raw, columns, others=unread(raw, used))
            row = replace(row, unread=tuple(unread(raw, known)), lacks_images=lacks_images)
        except RowError as error:
            yield error
        except RecursionError:
            yield RowError(f"{where}: a cell is nested too deeply", reason="wrong_cell")
        else:
            yield row


def _lacks_images(raw: RawRow, columns: Columns, *, others: Iterable[str]) -> bool:
    cells = (raw[name] if isinstance(raw, dict) else raw[int(name)] for name in others)
    return columns.image is not None or columns.images is not None or any(map(may_be_image, cells))


def build_row(raw: RawRow, columns: Columns, *, default_id: str, image_root: Path | None, where: str) -> Row:
    """Return the row that `columns` see in `raw`.

    Raises:
        RowError: a column is missing, empty, or holds something else than its use needs.
    """
    options = read_options(raw, columns, where=where)
    question = read_question(raw, columns, options, where=where)
    before = read_earlier(raw, columns, where=where)
    messages, answer = _conversation(raw, columns, before, where=where)
    if question is not None and messages is not None:
        message = f"{where}: question and messages are filled; expected one of them"
        raise RowError(message, reason="wrong_cell")
    if question is None and messages is None and (columns.question, columns.messages) != (None, None):
        question = ""
    row_id = None if columns.id is None else cell(raw, columns.id, use="id", where=where)
    images = _images(raw, columns, where=where)
    return Row(
        id=default_id if row_id is None else as_text(row_id, use="id", where=where),
        where=where,
        images=tuple(partial(image_bytes, value, root=image_root, where=where) for value in images),
        question=question,
        before=before,
        messages=messages,
        references=_references(raw, columns, options, where=where) or (() if answer is None else (answer,)),
        meta={
            name: cell(raw, column, use=f"meta {name}", where=where, lacks=is_null)
            for name, column in columns.meta.items()
        },
    )


def image_files(raw_rows: RawRows, columns: Columns) -> Iterator[Path]:
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


def _conversation(
    raw: RawRow, columns: Columns, before: tuple[Message, ...], *, where: str
) -> tuple[tuple[Message, ...] | None, str | None]:
    """Return the turns of a conversation and its last answer, if any."""
    value = one_of(raw, columns.messages, use="messages", where=where)
    if value is None:
        return None, None
    messages, answer = parse_messages(value, where=where)
    if before and messages[0].role == "system":
        message = f"{where}: the conversation has a system message, and column {columns.system!r} another"
        raise RowError(message, reason="bad_conversation")
    return (*before, *messages), answer


def _references(raw: RawRow, columns: Columns, options: Options | None, *, where: str) -> tuple[str, ...]:
    if columns.references is None:
        return ()
    value = one_of(raw, columns.references, use="references", where=where, lacks=is_unsaid)
    found = [name_choice(item, options, where=where) for item in read_answers(value, where=where)]
    # True and False are answers, written as JSON writes them.
    return tuple(
        str(item).lower() if isinstance(item, bool) else as_text(item, use="references", where=where)
        for item in found
        if not is_absent(item)
    )


def _images(raw: RawRow, columns: Columns, *, where: str) -> list[Any]:
    if columns.images is not None and not isinstance(columns.images, list):
        value = cell(raw, columns.images, use="images", where=where, lacks=is_unsaid)
        return _listed_images(unpacked(value), column=columns.images, where=where)
    use = "images" if columns.image is None else "image"
    values: list[Any] = []
    for column in listed(columns.images if columns.image is None else columns.image):
        value = unpacked(cell(raw, column, use=use, where=where))
        is_list = isinstance(value, (list, tuple))
        values += _listed_images(value, column=column, where=where) if is_list else [value]
    # None comes only from columns that rows may lack.
    return [value for value in values if value is not None]


def _listed_images(given: Any, *, column: Column, where: str) -> list[Any]:
    if not isinstance(given, (list, tuple, type(None))):
        kind = type(given).__name__
        message = f"{where}: expected a list in column {column!r} (images), got {kind}"
        raise RowError(message, reason="wrong_cell")
    values = list(given or [])
    if any(map(is_absent, values)):
        message = f"{where}: an image in column {column!r} (images) is empty"
        raise RowError(message, reason="missing_cell")
    return values
