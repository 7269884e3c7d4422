"""One row of a data set with its columns resolved: what every kind of source yields."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from vlm_distill.data.columns import Columns, cell
from vlm_distill.data.conversations import parse_messages
from vlm_distill.data.image_values import image_bytes
from vlm_distill.data.tables import RawRow
from vlm_distill.errors import DataError
from vlm_distill.records import Message, Text


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row; `where` names it in errors.

    Each of `images` returns the bytes of one image file when called, and raises DataError when they cannot be
    had: filters and limits come first, and a bad image can be skipped. `meta` holds the values as they are,
    for prompts.
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
    raw_rows: Iterable[tuple[str, RawRow, Path | None]], columns: Columns, *, name: str
) -> Iterator[Row]:
    """Yield the row that `columns` see in each (where, row, image root), called `name`-number by default."""
    for number, (where, raw, image_root) in enumerate(raw_rows):
        yield build_row(raw, columns, default_id=f"{name}-{number}", image_root=image_root, where=where)


def build_row(raw: RawRow, columns: Columns, *, default_id: str, image_root: Path | None, where: str) -> Row:
    """Return the row that `columns` see in `raw`.

    Raises:
        DataError: a column is missing, empty, or holds something else than its use needs.
    """
    question = messages = answer = None
    if columns.question is not None:
        question = _text(
            cell(raw, columns.question, use="question", where=where), use="question", where=where
        )
    if columns.messages is not None:
        messages, answer = parse_messages(
            cell(raw, columns.messages, use="messages", where=where), where=where
        )
    references: tuple[str, ...] = () if answer is None else (answer,)
    if columns.references is not None:
        references = _references(cell(raw, columns.references, use="references", where=where), where=where)
    images = _images(raw, columns, where=where)
    meta = {name: cell(raw, column, use=f"meta {name}", where=where) for name, column in columns.meta.items()}
    row_id = (
        default_id
        if columns.id is None
        else _text(cell(raw, columns.id, use="id", where=where), use="id", where=where)
    )
    return Row(
        id=row_id,
        where=where,
        images=tuple(partial(image_bytes, value, root=image_root, where=where) for value in images),
        question=question,
        messages=messages,
        references=references,
        meta=meta,
    )


def meta_text(value: Any) -> str:
    """Return a meta value as examples store it: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _text(value: Any, *, use: str, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise DataError(f"{where}: expected text or a number as {use}, got {type(value).__name__}")
    if use == "id" and not str(value):
        raise DataError(f"{where}: the id is empty")
    return str(value)


def _references(value: Any, *, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    found = []
    for item in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(item, dict):
            if "answer" not in item:
                raise DataError(
                    f"{where}: expected references with a key 'answer', got {', '.join(map(str, item))}"
                )
            item = item["answer"]
        found.append(_text(item, use="references", where=where))
    return tuple(found)


def _images(raw: RawRow, columns: Columns, *, where: str) -> list[Any]:
    if columns.image is not None:
        values = [cell(raw, columns.image, use="image", where=where)]
    elif isinstance(columns.images, list):
        values = [cell(raw, column, use="images", where=where) for column in columns.images]
    elif columns.images is not None:
        listed = cell(raw, columns.images, use="images", where=where)
        if not isinstance(listed, (list, tuple, type(None))):
            raise DataError(
                f"{where}: expected a list in column {columns.images!r} (images), got {type(listed).__name__}"
            )
        values = list(listed or [])
    else:
        values = []
    if isinstance(columns.images, (int, str)) and None in values:
        raise DataError(f"{where}: an image in column {columns.images!r} (images) is empty")
    # Elsewhere None comes only from columns that rows may lack.
    return [value for value in values if value is not None]
