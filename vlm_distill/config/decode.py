"""Decoding plain YAML values into typed run records.

Errors name the dotted path of the wrong key and the nearest known one.
"""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from vlm_distill.errors import ConfigError, did_you_mean

ModelT = TypeVar("ModelT", bound=BaseModel)


class Record(BaseModel):
    """The base of every run record: unknown keys are errors at every depth, decoded values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=False)


def decode(model: type[ModelT], value: Any, *, where: str) -> ModelT:
    """Return `value` as a `model`; `where` names the file in errors.

    Raises:
        ConfigError: one line that names every wrong key with its dotted path.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        lines = [_explain(model, item) for item in error.errors(include_url=False)]
        raise ConfigError(f"{where}: " + "; ".join(dict.fromkeys(lines))) from None


def _explain(model: type[BaseModel], item: Any) -> str:
    path = ".".join(str(part) for part in _visible(model, item["loc"]))
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _keys_at(model, item["loc"][:-1])
        return f"{path}: unknown key; {did_you_mean(str(item['loc'][-1]), known)}"
    if item["type"] == "missing" or item["type"] == "missing_argument":
        return f"{path}: this key is required"
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        context = item.get("ctx", {})
        expected = [
            tag.strip().strip("'") for tag in context.get("expected_tags", "").split(",") if tag.strip()
        ]
        if "tag" in context:
            return f"{path}.kind: unknown kind {context['tag']!r}; {did_you_mean(context['tag'], expected)}"
        return f"{path}.kind: this key is required" + (f"; known: {', '.join(expected)}" if expected else "")
    message = item["msg"].removeprefix("Value error, ")
    place = f"{path}: " if path else ""
    # A whole record is no help as "got": what is wrong in it is in the message.
    found = "" if isinstance(item["input"], dict) and item["type"] == "value_error" else _got(item["input"])
    return f"{place}{message[0].lower()}{message[1:]}{found}"


def _got(value: Any) -> str:
    text = repr(value)
    return f", got {text if len(text) <= 80 else text[:77] + '...'}"


def _members(annotation: Any) -> Iterator[Any]:
    """Yield the record types that an annotation may hold, also inside Optional, unions and containers."""
    if get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif isinstance(annotation, type) and (
        issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)
    ):
        yield annotation
    else:
        for argument in get_args(annotation):
            yield from _members(argument)


def _fields(record: Any) -> dict[str, Any]:
    if issubclass(record, BaseModel):
        return {field.alias or name: field.annotation for name, field in record.model_fields.items()}
    return {field.name: field.type for field in dataclasses.fields(record)}


def _kind(record: Any) -> str | None:
    annotation = _fields(record).get("kind")
    arguments = get_args(annotation)
    return str(arguments[0]) if arguments else None


def _walk(model: type[BaseModel], loc: tuple[Any, ...]) -> Iterator[tuple[Any, bool, list[Any]]]:
    """Yield (part, is it in the YAML, record types below it).

    Pydantic puts union tags and type names into `loc` too.
    """
    records: list[Any] = [model]
    for part in loc:
        tagged = [record for record in records if part in (_kind(record), record.__name__)]
        if tagged and not any(part in _fields(record) for record in records):
            records = tagged
            yield part, False, records
        elif isinstance(part, int):
            yield part, True, records
        else:
            below = [
                member
                for record in records
                if part in _fields(record)
                for member in _members(_fields(record)[part])
            ]
            is_key = any(part in _fields(record) for record in records) or not _looks_like_type(part)
            records = below or records if is_key else records
            yield part, is_key, records


def _looks_like_type(part: Any) -> bool:
    return (
        str(part) in {"str", "int", "float", "bool", "none"} or "[" in str(part) or "function-" in str(part)
    )


def _visible(model: type[BaseModel], loc: tuple[Any, ...]) -> list[Any]:
    return [part for part, visible, _ in _walk(model, loc) if visible]


def _keys_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    records: list[Any] = [model]
    for _, _, below in _walk(model, loc):
        records = below
    return [name for record in records for name in _fields(record)]
