"""JSON schemas as validators, so that a YAML file is answered before the records and torch are imported.

The files in schemas/ are written from the records by tools/write_schemas.py. A schema becomes a validator of
pydantic's own core: it converts what the records convert (`"5e-4"` is a number) and words a mistake as they
do. A keyword that is not read here is left to the records, which see every value afterwards.
"""

import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from pydantic_core import CoreSchema, PydanticCustomError, SchemaValidator, core_schema

from vlm_distill.config.assets import Folder
from vlm_distill.plugins import installed_names

Schema = dict[str, Any]
SCHEMAS = Path(__file__).parent / "schemas"
FILES: dict[Folder, Path] = {
    "configs": SCHEMAS / "run.json",
    "data_recipes": SCHEMAS / "recipe.json",
    "eval/tasks": SCHEMAS / "task.json",
    "eval/suites": SCHEMAS / "suite.json",
}


def _number(schema: CoreSchema) -> CoreSchema:
    """Return `schema` without true and false, which Python takes for 1 and 0."""
    return core_schema.no_info_before_validator_function(_refuse_boolean, schema)


def _refuse_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("boolean", "expected a number")
    return value


_SCALARS: dict[str, Callable[..., CoreSchema]] = {
    "null": core_schema.none_schema,
    "boolean": core_schema.bool_schema,
    "integer": lambda **limits: _number(core_schema.int_schema(**limits)),
    "number": lambda **limits: _number(core_schema.float_schema(**limits)),
    "string": core_schema.str_schema,
}
_LIMITS = {
    "minimum": "ge",
    "exclusiveMinimum": "gt",
    "maximum": "le",
    "exclusiveMaximum": "lt",
    "pattern": "pattern",
    "minItems": "min_length",
}
_PLAIN = "no record"
GROUP = "x-entry-points"
"""The keyword beside a choice that other packages add to: the group of their entry points."""


@cache
def shipped_validator(folder: Folder) -> SchemaValidator:
    """Return the validator of the YAML files in one folder."""
    return validator(json.loads(FILES[folder].read_text(encoding="utf-8")))


def validator(schema: Schema) -> SchemaValidator:
    """Return what `schema` accepts and refuses; the error of an unknown key carries the `known` ones."""
    return SchemaValidator(_core(schema, schema.get("$defs", {})))


def resolve(schema: Schema, definitions: Schema) -> Schema:
    """Return what a schema refers to, or itself."""
    reference = schema.get("$ref")
    return definitions[reference.rpartition("/")[2]] if reference else schema


def _core(schema: Schema, definitions: Schema) -> CoreSchema:
    schema = resolve(schema, definitions)
    limits = {_LIMITS[keyword]: value for keyword, value in schema.items() if keyword in _LIMITS}
    if "discriminator" in schema:
        return _tagged(schema, definitions)
    if "anyOf" in schema or "oneOf" in schema:
        return _union(schema.get("anyOf") or schema["oneOf"], definitions)
    if "const" in schema or "enum" in schema:
        return core_schema.literal_schema(schema.get("enum") or [schema["const"]])
    if schema.get("type") == "object":
        return _record(schema, definitions) if "properties" in schema else _mapping(schema, definitions)
    if "prefixItems" in schema:
        return core_schema.tuple_schema([_core(item, definitions) for item in schema["prefixItems"]])
    if schema.get("type") == "array":
        return core_schema.list_schema(_core(schema.get("items", {}), definitions), **limits)
    return _SCALARS[schema["type"]](**limits) if "type" in schema else core_schema.any_schema()


def _record(schema: Schema, definitions: Schema, known: Iterable[str] = ()) -> CoreSchema:
    fields = {
        name: core_schema.typed_dict_field(
            _core(value, definitions), required=name in schema.get("required", ())
        )
        for name, value in schema["properties"].items()
    }
    refuse = core_schema.no_info_plain_validator_function(_unknown_key([*(known or fields)]))
    return core_schema.typed_dict_schema(fields, extra_behavior="allow", extras_schema=refuse)


def _unknown_key(known: list[str]) -> Callable[[Any], None]:
    def refuse(value: Any) -> None:
        raise PydanticCustomError("unknown_key", "unknown key", {"known": known})

    return refuse


def _mapping(schema: Schema, definitions: Schema) -> CoreSchema:
    """Return a mapping of free keys, whose values have one schema."""
    by_pattern = schema.get("patternProperties") or {None: schema["additionalProperties"]}
    [(pattern, values)] = by_pattern.items()
    # In YAML a key may be a number.
    keys = core_schema.str_schema(pattern=pattern) if pattern else core_schema.any_schema()
    return core_schema.dict_schema(keys, _core({} if values is True else values, definitions))


def _tagged(schema: Schema, definitions: Schema) -> CoreSchema:
    discriminator = schema["discriminator"]
    choices = {tag: _core({"$ref": ref}, definitions) for tag, ref in discriminator["mapping"].items()}
    # A record of another package has its say where it is made: nothing is loaded to know its name.
    others = installed_names(schema[GROUP]) if GROUP in schema else ()
    choices |= dict.fromkeys(others, core_schema.any_schema())
    return core_schema.tagged_union_schema(choices, discriminator["propertyName"])


def _union(options: list[Schema], definitions: Schema) -> CoreSchema:
    resolved = [resolve(option, definitions) for option in options]
    others = [option for option in resolved if option.get("type") != "null"]
    union = _choice(others, definitions) if len(others) > 1 else _core(others[0], definitions)
    return core_schema.nullable_schema(union) if len(others) < len(options) else union


def _choice(options: list[Schema], definitions: Schema) -> CoreSchema:
    """Return a union of which one record answers for a mapping: the one whose keys are nearest.

    A value that a record accepts has all keys that it requires and no unknown one, so nothing is nearer.
    """
    records = {f"record {number}": option for number, option in enumerate(options) if "properties" in option}
    plain: list[Any] = [_core(option, definitions) for option in options if "properties" not in option]
    known = {key for record in records.values() for key in record["properties"]}
    choices = {name: _record(record, definitions, known) for name, record in records.items()}
    if plain:
        choices[_PLAIN] = core_schema.union_schema(plain) if len(plain) > 1 else plain[0]

    def choose(value: Any) -> str:
        if plain and not (records and isinstance(value, dict)):
            return _PLAIN
        keys = set(value) if isinstance(value, dict) else set()
        return min(records, key=lambda name: _distance(records[name], keys))

    return core_schema.tagged_union_schema(choices, choose)


def _distance(record: Schema, keys: set[Any]) -> tuple[int, int]:
    return len(keys - record["properties"].keys()), len(set(record.get("required", ())) - keys)
