"""Fields that take one of several records by its `kind`: known ones, those of other packages, or any object.

A record of another package is an entry point of the field's group, called as its `kind`. It is a dataclass or
pydantic model, decoded as the known ones are, and follows the protocol of the field.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic_core import CoreSchema, core_schema
from typing_extensions import get_protocol_members

from vlm_distill.config.schema import GROUP, validator
from vlm_distill.errors import PluginError, one_line
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
            if not hasattr(value, "kind"):
                return read_known(value)
            return _follow(value, protocol, origin=type(value).__name__)

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
        return _follow(_made(part, value), protocol, origin=part.origin)


def _made(part: Part, value: dict[str, Any]) -> Any:
    """Return the record that a part of another package makes of `value`.

    Raises:
        PluginError: the part is no record of that kind.
        ValidationError: a key or value is wrong.
    """
    expected = f"{part.origin}: expected a dataclass or model with `kind: Literal[{value['kind']!r}]`"
    if not isinstance(part.value, type):
        raise PluginError(expected)
    try:
        record: TypeAdapter[Any] = TypeAdapter(part.value)
        schema = record.json_schema()
    except PydanticUserError as error:
        raise PluginError(f"{expected}: {one_line(error)}") from None
    if schema.get("properties", {}).get("kind", {}).get("const") != value["kind"]:
        raise PluginError(expected)
    # What is wrong with keys is said by the schema, as decoding says it of known records.
    validator(schema).validate_python(value)
    return record.validate_python(value)


def _follow(value: Any, protocol: Any, *, origin: str) -> Any:
    """Return `value`, which must have what the protocol asks of it."""
    missing = sorted(name for name in get_protocol_members(protocol) if not hasattr(value, name))
    if missing:
        raise PluginError(f"{origin}: expected what {protocol.__name__} asks for, lacks {', '.join(missing)}")
    return value
