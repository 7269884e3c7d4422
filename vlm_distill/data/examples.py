"""From rows to examples: prompts and images. One function for training data and benchmarks."""

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

import jinja2

from vlm_distill.data.conversations import place_images, split_markers
from vlm_distill.data.filters import Filters, drop_reason
from vlm_distill.data.images import ImageStore
from vlm_distill.data.prompts import DEFAULT_PROMPT, compile_prompt, render_prompt
from vlm_distill.data.rows import Row, meta_text
from vlm_distill.data.sources import Source, read_rows, source_name
from vlm_distill.errors import ConfigError, DataError
from vlm_distill.progress import progress as with_progress
from vlm_distill.records import Example, Image, Message, Text

OnBadImage = Literal["stop", "skip"]
_log = logging.getLogger(__name__)


def read_examples(
    source: Source,
    *,
    images: ImageStore,
    prompt: str = DEFAULT_PROMPT,
    system: str | None = None,
    on_bad_image: OnBadImage = "stop",
    progress: bool = True,
    filters: Filters = Filters(),  # noqa: B008 (frozen)
    limit: int | None = None,
) -> tuple[list[Example], Counter[str]]:
    """Return the examples of a source, their images stored in `images`, and counts of rows.

    The variables of `prompt` are `question`, `references`, `id` and the names under `meta`, as far as columns
    give them. `limit` is the number of examples after filters, the first ones. Counts are `read`, `bad_image`
    and `filtered_<filter>`; the first bad image that is skipped is logged with its reason.

    Raises:
        DataError: a row is wrong, two rows share an id, or an image is bad and `on_bad_image` is "stop".
        ConfigError: the prompt template does not fit the columns.
    """
    template = _template(source, prompt)
    examples: dict[str, Example] = {}
    counts: Counter[str] = Counter(read=0)
    rows: Iterable[Row] = read_rows(source)
    for row in with_progress(rows, label=f"reading {source_name(source)}") if progress else rows:
        stored = _admit(row, filters, images=images, on_bad_image=on_bad_image, counts=counts)
        if stored is None:
            continue
        if row.id in examples:
            raise DataError(
                f"{row.where}: an earlier row has the id {row.id!r} too; name a unique column as columns.id"
            )
        examples[row.id] = _example(row, template, system=system, images=stored)
        if len(examples) == limit:
            break
    return list(examples.values()), counts


def _template(source: Source, prompt: str) -> jinja2.Template:
    if source.columns.messages is not None and prompt != DEFAULT_PROMPT:
        raise ConfigError(
            f"{source_name(source)}: prompt has no effect beside columns.messages, which hold whole prompts"
        )
    return compile_prompt(prompt)


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
