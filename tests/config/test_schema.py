"""The schemas say what the records say: file by file, and on every shipped file with one value replaced."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from tests.tiny_run import write_run
from tools.write_schemas import RECORDS, schema_text
from vlm_distill.config import apply_overrides, read_yaml, shipped
from vlm_distill.config.schema import FILES, shipped_validator, validator
from vlm_distill.training.config import TrainConfig

SHIPPED = [(folder, path) for folder in RECORDS for path in shipped(folder).values()]
PROBES: list[Any] = [
    *(None, True, "x", "a b", "3", "0.5", "true", 3, -1, 0, 0.5, 3.0, float("inf")),
    *([], {}, [1], ["a"], [{}], {"kind": "x"}, {"kind": "kd"}, {"a": 1}),
]
RARE = (
    "train.trainable={language: {kind: lora, rank: 2}, projector: frozen}",
    "generate.engine={kind: vllm, max_model_len: 64}",
    "student.build={vision: {name: ViT-B-32}, language: {model: x}, tokenizer: {train: {vocab_size: 300}}}",
    "objective={kind: kd, divergence: {kind: skew_kl, alpha: 0.2}}",
    "teacher.quantisation={quant_method: x}",
    "cache={tier: top_k}",
)


@pytest.mark.parametrize("folder", RECORDS)
def test_the_schema_files_are_what_the_records_say(folder) -> None:
    text = schema_text(RECORDS[folder])
    assert FILES[folder].read_text() == text, "run: python -m tools.write_schemas"
    Draft202012Validator.check_schema(json.loads(text))


@pytest.mark.parametrize(("folder", "path"), SHIPPED, ids=lambda value: getattr(value, "stem", value))
def test_an_editor_finds_no_mistake_in_a_shipped_file(folder, path: Path) -> None:
    schema = json.loads(FILES[folder].read_text())
    assert not list(Draft202012Validator(schema).iter_errors(read_yaml(path)))


def places(value: Any, at: tuple[Any, ...] = (), seen: str = "") -> Iterator[tuple[tuple[Any, ...], str]]:
    """Yield the path of each value in a tree, and the same as a name: by kind of mapping, without numbers."""
    yield at, seen
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*at, key), f"{seen} {value.get('kind', '')}.{key}")
    for number, item in enumerate(value if isinstance(value, list) else ()):
        yield from places(item, (*at, number), seen)


def changed(value: Any, at: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """Return a copy of `value` where `change` was applied to what stands at a path."""
    if not at:
        return change(value)
    copied = value.copy()
    copied[at[0]] = changed(value[at[0]], at[1:], change)
    return copied


def mutations(value: Any, at: tuple[Any, ...]) -> Iterator[Any]:
    """Yield `value` with each probe at a path, with an unknown key below it, and without it."""
    for probe in PROBES:
        yield changed(value, at, lambda _, probe=probe: probe)
    yield changed(value, at, lambda old: {**old, "unknown": 1} if isinstance(old, dict) else [old])
    if at and isinstance(at[-1], str):
        yield changed(value, at[:-1], lambda old: {key: old[key] for key in old if key != at[-1]})


def mistakes(validate: Callable[[Any], Any], value: Any) -> set[str]:
    """Return the types of pydantic's errors."""
    try:
        validate(value)
    except ValidationError as error:
        return {item["type"] for item in error.errors()}
    except AttributeError:  # The records' own choice between unions expects a mapping.
        return {"dict_type"}
    return set()


@pytest.mark.parametrize("folder", RECORDS)
def test_schema_and_record_agree_on_every_value_but_for_what_only_validators_know(folder, tmp_path) -> None:
    (tmp_path / "teacher").mkdir()
    config = write_run(tmp_path)
    run = read_yaml(config)
    recipe_task_or_suite = config.with_name(f"{FILES[folder].stem}.yaml")
    written = [run, apply_overrides(run, RARE)] if folder == "configs" else [read_yaml(recipe_task_or_suite)]
    record, schema = RECORDS[folder], shipped_validator(folder)
    seen: set[str] = set()
    verdicts: set[bool] = set()
    for value in [*map(read_yaml, shipped(folder).values()), *written]:
        for at, name in places(value):
            for wrong in mutations(value, at) if name not in seen else ():
                known = mistakes(record.model_validate, wrong) - {"value_error"}
                refused = mistakes(schema.validate_python, wrong)
                # In Python true is 1; in a file it is no number.
                is_agreed = bool(known) == bool(refused) or "boolean" in refused
                assert is_agreed, (at, known, refused, wrong)
                verdicts.add(bool(refused))
            seen.add(name)
    assert verdicts == {True, False}


def test_what_a_record_converts_passes_its_schema() -> None:
    value = {
        "steps": "12",
        "learning_rate": "5e-4",
        "batch_size": 3.0,
        "weight_decay": 1,
        "betas": (0.5, "0.9"),
    }
    validator(TrainConfig.model_json_schema()).validate_python(value)
    assert TrainConfig.model_validate(value).betas == (0.5, 0.9)
