"""From rows to examples: prompts and images. One function for training data and benchmarks."""

import logging
from collections import Counter
from typing import Annotated, Any, Literal

import jinja2
from pydantic import Field

from vlm_distill.config import Record
from vlm_distill.data.conversations import place_images, split_markers
from vlm_distill.data.filters import Filters, drop_reason
from vlm_distill.data.images import ImageStore
from vlm_distill.data.prompts import DEFAULT_PROMPT, Prompt, compile_prompt, render_prompt
from vlm_distill.data.rows import Row, meta_text
from vlm_distill.data.sources import Source
from vlm_distill.errors import ConfigError, DataError
from vlm_distill.progress import progress
from vlm_distill.records import Example, Image, Message, Text

OnBadImage = Literal["stop", "skip"]
_log = logging.getLogger(__name__)


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
    entry: RecipeSource, images: ImageStore, *, on_bad_image: OnBadImage = "stop"
) -> tuple[list[Example], Counter[str]]:
    """Return the examples of a source, their images stored in `images`, and counts of rows.

    Counts are `read`, `bad_image` and `filtered_<filter>`; the first bad image that is skipped is logged with
    its reason.

    Raises:
        DataError: a row is wrong, two rows share an id, or an image is bad and `on_bad_image` is "stop".
        ConfigError: the prompt template does not fit the columns.
    """
    template = compile_prompt(entry.prompt)
    examples: dict[str, Example] = {}
    counts: Counter[str] = Counter(read=0)
    for row in progress(entry.source.rows(), label=f"reading {entry.source.label}"):
        if row.messages is not None and entry.prompt != DEFAULT_PROMPT:
            where = f"{entry.source.label}: prompt has no effect"
            raise ConfigError(f"{where} beside columns.messages, which hold whole prompts")
        stored = _admit(row, entry.filters, images=images, on_bad_image=on_bad_image, counts=counts)
        if stored is None:
            continue
        if row.id in examples:
            raise DataError(
                f"{row.where}: an earlier row has the id {row.id!r} too; name a unique column as columns.id"
            )
        examples[row.id] = _example(row, template, system=entry.system, images=stored)
        if len(examples) == entry.limit:
            break
    return list(examples.values()), counts


def _admit(
    row: Row, filters: Filters, *, images: ImageStore, on_bad_image: OnBadImage, counts: Counter[str]
) -> tuple[str, ...] | None:
    """Return the stored images of a row to keep, None for a row to drop; `counts` says which it was."""
    counts["read"] += 1
    reason = drop_reason(filters, row)
    if reason is not None:
        counts[f"filtered_{reason}"] += 1
        return None
    try:
        return tuple(images.add(load(), f"{row.where} (id {row.id!r})") for load in row.images)
    except DataError as error:
        if on_bad_image == "stop":
            raise
        if not counts["bad_image"]:
            _log.warning("skipped: %s (later ones are only counted)", error)
        counts["bad_image"] += 1
        return None


def _example(row: Row, template: jinja2.Template, *, system: str | None, images: tuple[str, ...]) -> Example:
    messages = row.messages
    if messages is None:
        variables = {"id": row.id, "references": row.references, **row.meta}
        if row.question is not None:
            variables["question"] = row.question
        text = render_prompt(template, variables, where=row.where)
        messages = (Message(role="user", content=split_markers(text)),)
    if system is not None:
        if messages[0].role == "system":
            raise DataError(f"{row.where}: the row has a system message of its own; leave `system` out")
        messages = (Message(role="system", content=(Text(text=system),)), *messages)
    return Example(
        id=row.id,
        messages=place_images(messages, num_images=len(images), where=row.where),
        images=images,
        references=row.references,
        meta={name: meta_text(value) for name, value in row.meta.items() if value is not None},
    )


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
