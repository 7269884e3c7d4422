"""From rows to examples: prompts and images. One function for training data and benchmarks."""

import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Annotated, Any

import jinja2
from pydantic import Field

from vlm_distill.config import Record
from vlm_distill.data.absent import is_blank, is_null
from vlm_distill.data.bad_rows import REASONS, OnBadRow, RowError
from vlm_distill.data.columns import shown_column
from vlm_distill.data.conversations import has_marker_word, place_images
from vlm_distill.data.filters import Filters, drop_reason
from vlm_distill.data.images import ImageStore
from vlm_distill.data.prompts import DEFAULT_PROMPT, Prompt, compile_prompt, render_prompt
from vlm_distill.data.rows import Row, meta_text
from vlm_distill.data.sources import Source
from vlm_distill.data.unicode_text import is_unicode
from vlm_distill.errors import ConfigError, DataError, StorageError, few, shown
from vlm_distill.progress import Log, progress
from vlm_distill.records import Example, Image, Message, Text


class RecipeSource(Record):
    """One source of a recipe: its prompt, which rows are kept, and its share of the mixture.

    The variables of `prompt` are `question`, `references`, `id` and the names under `meta`, as far as columns
    give them.
    """

    source: Source
    prompt: Prompt = DEFAULT_PROMPT
    system: str | None = None
    weight: Annotated[float, Field(gt=0, le=1e12)] | None = Field(
        default=None, description="relative share; for all sources or none"
    )
    filters: Filters = Filters()
    limit: Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="the first so many rows that filters keep"
    )


def read_examples(
    entry: RecipeSource,
    images: ImageStore,
    *,
    log: Log,
    on_bad_row: OnBadRow = "stop",
    owners: dict[str, str] | None = None,
) -> tuple[list[Example], Counter[str]]:
    """Return the examples of a source, their images stored in `images`, and counts of rows.

    Counts are `read`, `filtered_<filter>`, `no_question` (rows that may lack one, and nothing else is asked),
    the reasons of bad rows, the first of each of which is logged, and `without_references`. `owners` are the
    sources that have an id already; this one is added with its ids. The log also names columns that rows fill
    and nobody reads.

    Raises:
        RowError: a row cannot be used and `on_bad_row` is "stop".
        DataError: the source cannot be read, or none of its rows can be used.
        ConfigError: the recipe contradicts itself.
    """
    reader = _Reader(
        entry=entry,
        template=compile_prompt(entry.prompt),
        images=images,
        on_bad_row=on_bad_row,
        owners={} if owners is None else owners,
        log=log,
    )
    examples = list(islice(reader.examples(), entry.limit))
    reader.require_usable()
    if lacking := sum(not example.references for example in examples):
        reader.counts["without_references"] = lacking
    if reader.num_words:
        log(f"{entry.source.label}: in {reader.num_words} rows <image> is kept as a word")
    if reader.unread:
        log(f"{entry.source.label}: columns not read: {few(list(map(shown_column, reader.unread)))}")
    return examples, reader.counts


@dataclass(kw_only=True, slots=True)
class _Reader:
    """Makes the rows of a source examples, and counts those that it drops; `owners` grows by their ids.

    `num_words` counts rows in which a `<image>` is no place of an image, `unread` the columns that rows fill
    and nobody reads. `first_error` is that of the first bad row.
    """

    entry: RecipeSource
    template: jinja2.Template
    images: ImageStore
    on_bad_row: OnBadRow
    owners: dict[str, str]
    log: Log
    counts: Counter[str] = field(default_factory=lambda: Counter(read=0))
    unread: Counter[str] = field(default_factory=Counter)
    num_words: int = 0
    first_error: RowError | None = None

    def examples(self) -> Iterator[Example]:
        """Yield the examples of the rows that are kept."""
        for row in progress(self.entry.source.rows(), label=f"reading {self.entry.source.label}"):
            self.counts["read"] += 1
            try:
                example = self._example(row)
            except RowError as error:
                if self.on_bad_row == "stop":
                    raise
                self._skip(error)
                continue
            if example is not None:
                yield example

    def _skip(self, error: RowError) -> None:
        self.first_error = self.first_error or error
        if not self.counts[error.reason]:
            self.log(f"skipped: {error} (later ones are only counted)")
        self.counts[error.reason] += 1

    def require_usable(self) -> None:
        """Refuse a source of which no row is good: what is wrong stands in the recipe, not in a row."""
        found = {reason: self.counts[reason] for reason in REASONS if self.counts[reason]}
        if found and sum(found.values()) == self.counts["read"]:
            listed = ", ".join(f"{reason} {count}" for reason, count in found.items())
            raise DataError(
                f"source {self.entry.source.label}: none of its {self.counts['read']} rows can be used "
                f"({listed}): {self.first_error}"
            )

    def _example(self, row: Row | RowError) -> Example | None:
        """Return the example of a row, None for one that is dropped and counted."""
        if isinstance(row, RowError):
            raise row
        self.unread.update(row.unread)
        if row.messages is not None and self.entry.prompt != DEFAULT_PROMPT:
            where = f"{self.entry.source.label}: prompt has no effect"
            raise ConfigError(f"{where} beside columns.messages, which hold whole prompts")
        reason = drop_reason(self.entry.filters, row)
        if reason is not None:
            self.counts[f"filtered_{reason}"] += 1
            return None
        messages = _messages(row, self.template, system=self.entry.system)
        if messages is None:
            self.counts["no_question"] += 1
            return None
        self._check_id(row)
        meta = {name: meta_text(value) for name, value in row.meta.items() if not is_null(value)}
        example = Example(id=row.id, messages=messages, references=row.references, meta=meta)
        _check_text(example, where=row.where)
        # Last, so that a row that is left out leaves no image behind.
        example = replace(example, images=_store_images(row, self.images))
        self.owners[row.id] = self.entry.source.label
        self.num_words += has_marker_word(messages)
        return example

    def _check_id(self, row: Row) -> None:
        owner, label = self.owners.get(row.id, ""), self.entry.source.label
        if owner == label:
            remedy = "name a unique column or a template as columns.id, or null, to number the rows"
            message = f"{row.where}: an earlier row has the id {row.id!r} too; {remedy}"
            raise RowError(message, reason="repeated_id")
        if owner:
            hint = f'write columns.id as a template, such as "{label}-{{column}}"'
            raise RowError(
                f"{row.where}: sources {owner!r} and {label!r} share the id {row.id!r}; {hint}",
                reason="repeated_id",
            )


def _store_images(row: Row, images: ImageStore) -> tuple[str, ...]:
    try:
        return tuple(images.add(load(), f"{row.where} (id {row.id!r})") for load in row.images)
    except StorageError:
        raise  # A full disk is no fault of the row.
    except DataError as error:
        raise RowError(str(error), reason="bad_image") from None


def _messages(row: Row, template: jinja2.Template, *, system: str | None) -> tuple[Message, ...] | None:
    """Return the prompt of a row with a place for each image, None where a row that may lack it has none."""
    messages = row.messages
    if messages is None:
        text = _prompt(row, template)
        if is_blank(text) and row.question == "":
            return None
        messages = (*row.before, Message(role="user", content=(Text(text=text),) if text else ()))
    messages = place_images(
        messages, num_images=len(row.images), lacks_images=row.lacks_images, where=row.where
    )
    if all(isinstance(part, Text) and is_blank(part.text) for part in messages[-1].content):
        raise RowError(f"{row.where}: expected a question, got empty text", reason="missing_cell")
    if system is None:
        return messages
    if messages[0].role == "system":
        message = f"{row.where}: the row has a system message of its own; leave `system` out"
        raise RowError(message, reason="bad_conversation")
    return (Message(role="system", content=(Text(text=system),)), *messages)


def _prompt(row: Row, template: jinja2.Template) -> str:
    variables = {"id": row.id, "references": row.references, **row.meta}
    if row.question is not None:
        variables["question"] = row.question
    try:
        return render_prompt(template, variables, where=row.where)
    except ConfigError as error:
        raise RowError(str(error), reason="bad_prompt") from None


def _check_text(example: Example, *, where: str) -> None:
    parts = (part for message in example.messages for part in message.content)
    texts = [part.text for part in parts if isinstance(part, Text)]
    for text in (example.id, *texts, *example.references, *example.meta.values()):
        if "\0" in text or not is_unicode(text):
            message = f"{where}: expected text in Unicode without NUL, got {shown(text)}"
            raise RowError(message, reason="bad_text")
    # Ids stand in log lines and in names of rows of the report.
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in example.id):
        message = f"{where}: expected an id on one line without control characters, got {shown(example.id)}"
        raise RowError(message, reason="bad_text")


def example_to_json(example: Example) -> dict[str, Any]:
    """Return an example as the JSON object that prepared data sets hold."""
    return {
        "id": example.id,
        "messages": [message.as_chat() for message in example.messages],
        "images": list(example.images),
        "references": list(example.references),
        "meta": example.meta,
    }


def example_from_json(value: dict[str, Any]) -> Example:
    """Return the example that `example_to_json` wrote."""
    return Example(
        id=value["id"],
        messages=tuple(_message_from_json(message) for message in value["messages"]),
        images=tuple(value["images"]),
        references=tuple(value["references"]),
        meta=value["meta"],
    )


def _message_from_json(value: dict[str, Any]) -> Message:
    parts = (Text(text=part["text"]) if part["type"] == "text" else Image() for part in value["content"])
    return Message(role=value["role"], content=tuple(parts))
