"""Whatever stands at a key of a YAML file: it decodes, or one bounded line says what is wrong.

Every key is reached by its schema: of each choice every member, of each record every key.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from tools.write_schemas import RECORDS
from vlm_distill.config import apply_overrides, decode
from vlm_distill.config.schema import resolve
from vlm_distill.errors import ConfigError
from vlm_distill.runs.config import RunConfig

NAME = "a`b\n---\nlicense: x|y<script>\x1b[31m\u202e"
ODD: list[Any] = [
    *(None, True, False, 0, -1, 3, 10**12, 10**18, 10**400, -(10**400), 1.5, 1e-320),
    *(float("inf"), float("-inf"), float("nan"), "", " ", "3", "1e5", "nan", "٣", "true", b"x"),
    *("~no-such-user/x", "a\0b", "x" * 5000, "a/" + "y" * 300, NAME, "{{ a }}", "{{", "*", "\ud800"),
    *(
        [],
        [1],
        ["a"],
        ["", ""],
        [[]],
        [None],
        [0.5],
        [2.0, 3.0],
        [0.9, 0.9, 0.9],
        [10**400],
        ["y" * 3000] * 99,
    ),
    *({}, {"a": 1}, {1: 2}, {None: 1}, {True: "x"}, {("a",): 1}, {"k": {}}, {NAME: 1}),
    *({"kind": "x" * 5000}, {"kind": None}, {"kind": ["x"]}, {"kind": {}}, {"kind": NAME}),
    {f"key {number}": number for number in range(1000)},
    list(range(1000)),
]
# What a record needs beside its required keys before its own validators see it.
COMPLETE: dict[str, dict[str, Any]] = {
    "RunConfig": {"teacher": {"model": "t"}, "objective": {"kind": "distillm2"}, "train": {"steps": 1}},
    "TrainConfig": {"steps": 1},
    "StudentConfig": {"model": "s"},
    "DataConfig": {"recipe": "r"},
}
Build = Callable[[Any], Any]
Place = tuple[str, Build]


def example(schema: Any, definitions: Any) -> Any:
    """Return a small value that a schema accepts."""
    schema = resolve(schema, definitions)
    if "const" in schema or "enum" in schema:
        return schema.get("const", [*schema.get("enum", ()), None][0])
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return example(schema[choice][0], definitions)
    if "prefixItems" in schema:
        return [example(item, definitions) for item in schema["prefixItems"]]
    if schema.get("type") == "array":
        return [example(schema["items"], definitions)]
    if schema.get("type") == "object":
        keys = [
            key for key in schema.get("properties", {}) if key in schema.get("required", ()) or key == "kind"
        ]
        found = {key: example(schema["properties"][key], definitions) for key in keys}
        return found | COMPLETE.get(schema.get("title", ""), {})
    return {"integer": max(1, schema.get("minimum", 1)), "number": 0.5, "boolean": True}.get(
        schema.get("type"), "abc"
    )


def places(schema: Any, definitions: Any, build: Build, *, path: str, seen: set[str]) -> Iterator[Place]:
    """Yield where a value may stand, and what makes of it a whole file."""
    reference = schema.get("$ref", "")
    if reference in seen:
        return
    seen |= {reference} - {""}
    schema = resolve(schema, definitions)
    for option in [*schema.get("anyOf", ()), *schema.get("oneOf", ())]:
        yield from places(option, definitions, build, path=path, seen=seen)
    for below, value, wrap in [*keys_of(schema, definitions, build), *items_of(schema, definitions, build)]:
        yield f"{path}.{below}", wrap
        yield from places(value, definitions, wrap, path=f"{path}.{below}", seen=seen)


def keys_of(schema: Any, definitions: Any, build: Build) -> Iterator[tuple[str, Any, Build]]:
    if schema.get("type") != "object":
        return
    whole = example(schema, definitions)
    for key, value in schema.get("properties", {}).items():
        yield key, value, lambda odd, key=key: build({**whole, key: odd})
    free = schema.get("additionalProperties") or {}
    for values in [free, *schema.get("patternProperties", {}).values()]:
        if values:
            yield "*", {} if values is True else values, lambda odd: build({"a": odd})


def items_of(schema: Any, definitions: Any, build: Build) -> Iterator[tuple[str, Any, Build]]:
    whole = [example(item, definitions) for item in schema.get("prefixItems", ())]
    for number, item in enumerate(schema.get("prefixItems", ())):
        yield (
            str(number),
            item,
            lambda odd, number=number: build([*whole[:number], odd, *whole[number + 1 :]]),
        )
    if "items" in schema:
        yield "0", schema["items"], lambda odd: build([odd])


@pytest.mark.parametrize("folder", RECORDS)
def test_an_odd_value_at_any_key_decodes_or_is_one_bounded_line(folder: Any) -> None:
    record: type[BaseModel] = RECORDS[folder]
    schema = record.model_json_schema()
    found = list(places(schema, schema["$defs"], lambda whole: whole, path="", seen=set()))
    assert len(found) >= {"configs": 150, "data_recipes": 50, "eval/tasks": 50, "eval/suites": 5}[folder]
    refused = 0
    for path, build in [("", lambda odd: odd), *found]:
        for odd in ODD:
            start = time.monotonic()
            try:
                decode(record, build(odd), where="a.yaml")
            except ConfigError as error:
                refused += 1
                line = str(error)
                assert line.startswith("a.yaml: "), (path, odd, line)
                assert line.isprintable(), (path, odd, line)
                assert len(line) <= 4000, (path, odd)
            assert time.monotonic() - start < 5, (path, odd)
    assert refused > len(found) * len(ODD) / 2


RUN = {"name": "a", "data": {"recipe": "r"}, "student": {"model": "s"}} | COMPLETE["RunConfig"]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.steps=٣", "train.steps: input should be a valid integer"),
        ("train.steps=true", "train.steps: expected a number, got True"),
        ("train.steps=1000000000000", "train.steps: input should be less than or equal to 1000000000"),
        ("train={epochs: .inf}", "train.epochs: input should be less than or equal to 1000000"),
        ("train={epochs: .nan}", "train.epochs: input should be less than or equal to 1000000, got nan"),
        ("train.learning_rate=.inf", "train.learning_rate: input should be less than or equal to"),
        ("train.betas=[0.9]", "train.betas.1: this value is required"),
        ("train.betas=[0.9, 0.9, 0.9]", "train.betas: tuple should have at most 2 items"),
        ("train.betas=[0.9, 1.0]", "train.betas.1: input should be less than 1"),
        ("train.batch_size=1000000000000", "train.batch_size: input should be less than or equal to"),
        ("rounds=1000000000000", "rounds: input should be less than or equal to 1000"),
        ("generate.sampling.temperature=.inf", "generate.sampling.temperature: input should be less"),
        ("generate.sampling.temperature=1e-9", "generate.sampling: a temperature above 0 and below 0.001"),
        (
            "student={build: {vision: teacher, language: {model: x}}}",
            "student.build.vision: expected a mapping",
        ),
        ("controls={a: 1}", "controls: input should be a valid list, got {'a': 1}"),
        ("train={steps: 1, 1: 2}", "train.1: keys should be strings"),
        ("train={steps: 1, null: 2}", "train: keys should be strings, got None"),
        ("train=", "rounds need `objective` and `train`"),
        ("teacher.model=~no-such-user/x", "teacher.model: expected a path, got '~no-such-user/x'"),
        ("teacher.model=''", "teacher.model: expected a path, got '', which is empty"),
        ('output="a\\0b"', r"output: expected a path, got 'a\x00b', which is empty or with a NUL in it"),
        (f"data.path={'x' * 300}", "which is longer than a path can be"),
        (f"data.path={'x/' * 3000}", "which is longer than a path can be"),
    ],
)
def test_a_value_that_cannot_be_meant_is_named_by_its_dotted_path(override: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        decode(RunConfig, apply_overrides(RUN, [override]), where="a.yaml")
    assert line in str(caught.value)


@pytest.mark.parametrize(
    "override", ["batch_size=true", "batch_size=-1", "batch=1", "batch_size=[1]", "kind=x"]
)
def test_settings_of_an_engine_are_named_as_those_of_a_config(override: str) -> None:
    engine = apply_overrides({"kind": "transformers"}, [override])
    with pytest.raises(ConfigError, match=r"^a.yaml: evaluate.engine.(batch|kind)"):
        decode(RunConfig, {**RUN, "evaluate": {"engine": engine}}, where="a.yaml")


def test_many_mistakes_are_counted_and_not_all_listed() -> None:
    with pytest.raises(ConfigError) as caught:
        decode(RunConfig, {**RUN, **{f"key {number}": number for number in range(5000)}}, where="a.yaml")
    assert str(caught.value).endswith("; and 4,990 more mistakes")
    assert len(str(caught.value)) < 4000
