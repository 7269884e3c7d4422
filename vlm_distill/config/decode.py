"""Decoding plain YAML values into typed run records.

What is wrong with keys, types and kinds is said by the schema of the record (schema.py), the rest by the
record itself. Errors name the dotted path of each wrong key and the nearest known one.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import SchemaValidator

from vlm_distill.config.assets import Folder, find_yaml
from vlm_distill.config.schema import shipped_validator, validator
from vlm_distill.config.yaml import apply_overrides, read_yaml
from vlm_distill.errors import ConfigError, cut, did_you_mean, shown

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=BaseModel)
_MOST_MISTAKES = 10
# Pydantic speaks to authors of classes here.
_MESSAGES = dict.fromkeys(("dict_type", "model_attributes_type"), "expected a mapping of keys to values")


class Record(BaseModel):
    """The base of every run record: unknown keys are errors at every depth, decoded values do not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=False, ser_json_inf_nan="constants"
    )


def decode(model: type[ModelT], value: Any, *, where: str) -> ModelT:
    """Return `value` as a `model`; `where` names the file in errors.

    Raises:
        ConfigError: one line that names every wrong key with its dotted path.
    """
    _in_one_line(_schema_of(model).validate_python, value, where=where)
    return _in_one_line(model.model_validate, value, where=where)


def check_yaml(name: str, overrides: Sequence[str] = (), *, folder: Folder) -> None:
    """Refuse a file for what its schema can tell, before the record behind it is imported.

    Raises:
        ConfigError: the line that decoding it would end with.
    """
    path = find_yaml(name, folder=folder)
    values = apply_overrides(read_yaml(path), overrides)
    _in_one_line(shipped_validator(folder).validate_python, values, where=str(path))


@cache
def _schema_of(model: type[BaseModel]) -> SchemaValidator:
    return validator(model.model_json_schema())


def _in_one_line(validate: Callable[[Any], T], value: Any, *, where: str) -> T:
    try:
        return validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False)
        lines = [_explain(value, item) for item in found[:_MOST_MISTAKES]]
        more = [f"and {len(found) - _MOST_MISTAKES:,} more mistakes"] if len(found) > _MOST_MISTAKES else []
        raise ConfigError(f"{where}: " + "; ".join(dict.fromkeys(lines + more))) from None


def _explain(value: Any, item: Any) -> str:
    path = ".".join(_keys(value, item))
    context = item.get("ctx", {})
    if item["type"] == "unknown_key":
        key, known = str(item["loc"][-1]), context["known"]
        # Where one of several records may stand, the keys of all are known.
        hint = " beside the others" if key in known else f"; {did_you_mean(key, known)}"
        return f"{path}: unknown key{hint}"
    if item["type"] == "missing":
        what = "value" if isinstance(item["loc"][-1], int) else "key"
        return f"{path}: this {what} is required"
    if item["type"] == "union_tag_not_found":
        return f"{path}.kind: this key is required"
    if item["type"] == "union_tag_invalid":
        known = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
        return f"{path}.kind: unknown kind {shown(context['tag'])}; {did_you_mean(context['tag'], known)}"
    message = _MESSAGES.get(item["type"], item["msg"].removeprefix("Value error, "))
    place = f"{path}: " if path else ""
    # A whole record is no help as "got": what is wrong in it is in the message.
    found = (
        ""
        if isinstance(item["input"], dict) and item["type"] == "value_error"
        else f", got {shown(item['input'])}"
    )
    return f"{place}{message[0].lower()}{message[1:]}{found}"


def _keys(value: Any, item: Any) -> Iterator[str]:
    """Yield the keys on the way to a mistake in `value`: pydantic's `loc` without names of union members."""
    for part in item["loc"]:
        known = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        if part in known:
            value = value[part]
            yield cut(str(part), 80)
        elif item["type"] == "missing" and part == item["loc"][-1]:
            yield cut(str(part), 80)
