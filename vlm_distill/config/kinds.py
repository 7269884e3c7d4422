"""Fields that take one of several records by its `kind`: known ones, those of other packages, or any object.

A record of another package is an entry point of the field's group, called as its `kind`. It is a dataclass or
pydantic model, decoded as the known ones are, and follows the protocol of the field.
"""

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from inspect import getattr_static
from typing import Annotated, Any, Union, get_args

from pydantic import (
    BaseModel,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
)
from pydantic.errors import PydanticUserError
from pydantic_core import CoreSchema, core_schema, to_jsonable_python
from typing_extensions import get_protocol_members

from vlm_distill.config.schema import GROUP, resolve, validator
from vlm_distill.errors import PluginError, UserError, one_line
from vlm_distill.plugins import Part, find_part


@dataclass(frozen=True, slots=True)
class Kinds:
    """The choice at a field, `Annotated[Protocol, Kinds(group, known records)]`."""

    group: str
    known: tuple[Any, ...]

    def __get_pydantic_core_schema__(self, protocol: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        union: Any = Annotated[Union[self.known], Field(discriminator="kind")]  # noqa: UP007 (of a tuple)

        def read(value: Any, read_known: Callable[[Any], Any]) -> Any:
            if isinstance(value, dict):
                return self._decode(value, protocol, read_known)
            if isinstance(value, type) or not (is_dataclass(value) or isinstance(value, BaseModel)):
                return read_known(value)
            return self._taken(value, protocol)

        return core_schema.no_info_wrap_validator_function(
            read,
            handler.generate_schema(union),
            # Written as what it is, whichever record it is.
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Any:
        """Return the schema of the known records, beside which an editor accepts other kinds."""
        known = handler(schema)
        kinds = {"type": "string", "not": {"enum": [*known["discriminator"]["mapping"]]}}
        other = {"type": "object", "properties": {"kind": kinds}, "required": ["kind"]}
        return {**known, "oneOf": [*known["oneOf"], other], GROUP: self.group}

    def _decode(self, value: dict[str, Any], protocol: Any, read_known: Callable[[Any], Any]) -> Any:
        kind = value.get("kind")
        if not isinstance(kind, str):
            return read_known(value)
        known = [get_args(record.__annotations__["kind"]) for record in self.known]
        part = find_part(self.group, kind, instead_of=kind if (kind,) in known else None)
        if part is None:
            return read_known(value)
        made = _made(part, value)
        _require(made, protocol, origin=part.origin)
        return made

    def _taken(self, value: Any, protocol: Any) -> Any:
        """Return an object as it is; a file would say it by its kind, which must not mean another record."""
        written = _require(value, protocol, origin=type(value).__name__)
        part = find_part(self.group, str(written.get("kind")), instead_of=None)
        if part is not None and part.value is not type(value):
            raise PluginError(
                f"{type(value).__name__}: its kind is that of {part.origin}; write the kind out, which takes "
                "that one, or uninstall it"
            )
        return value


def as_json(record: Any) -> Any:
    """Return a dataclass or pydantic model as it is hashed and written: plain values, infinity among them."""
    return to_jsonable_python(record, inf_nan_mode="constants")


def _made(part: Part, value: dict[str, Any]) -> Any:
    """Return the record that a part of another package makes of `value`.

    Raises:
        PluginError: the part is no record of that kind.
        ValidationError: a key or value is wrong.
    """
    try:
        read, schema = _reader(part, value["kind"])
        # What is wrong with keys is said by the schema, as decoding says it of known records.
        validator(schema).validate_python(value)
        return read(value)
    except (ValidationError, UserError):
        raise
    except KeyboardInterrupt:
        raise
    # Another package's code runs here, so anything can be raised.
    except BaseException as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise PluginError(f"{part.origin} cannot be made: {reason}; mend or uninstall it") from None


def _reader(part: Part, kind: str) -> tuple[Callable[[Any], Any], dict[str, Any]]:
    """Return what decodes the record that a part is, and its schema."""
    expected = f"{part.origin}: expected a dataclass or model with `kind: Literal[{kind!r}]`"
    if not isinstance(part.value, type):
        raise PluginError(expected)
    try:
        record: TypeAdapter[Any] = TypeAdapter(part.value)
        schema = record.json_schema()
    except PydanticUserError as error:
        raise PluginError(f"{expected}: {one_line(error)}") from None
    fields = resolve(schema, schema.get("$defs", {})).get("properties", {})
    if fields.get("kind", {}).get("const") != kind:
        raise PluginError(expected)
    return record.validate_python, schema


def _require(value: Any, protocol: Any, *, origin: str) -> dict[str, Any]:
    """Return a record as it is written; it must have what the protocol asks of it."""
    # Properties are not run: they are another package's code.
    missing = sorted(name for name in get_protocol_members(protocol) if not _has(value, name))
    if missing:
        raise PluginError(f"{origin}: expected what {protocol.__name__} asks for, lacks {', '.join(missing)}")
    try:
        written: dict[str, Any] = as_json(value)
    except ValueError as error:
        raise PluginError(f"{origin}: expected fields that JSON can hold: {one_line(error)}") from None
    return written


def _has(value: Any, name: str) -> bool:
    nothing = object()
    return getattr_static(value, name, nothing) is not nothing
