from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from vlm_distill.config import Record, decode
from vlm_distill.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Loud:
    kind: Literal["loud"] = "loud"
    volume: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Quiet:
    kind: Literal["quiet"] = "quiet"


class Inner(Record):
    learning_rate: float = 1.0
    sizes: tuple[int, ...] = ()


class Span(Record):
    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def _ordered(self) -> "Span":
        if self.low > self.high:
            raise ValueError("expected low <= high")
        return self


class Square(Record):
    side: int


class Ring(Record):
    inner: int
    outer: int = 2


class Outer(Record):
    name: str
    span: Span = Span()
    inner: Inner = Inner()
    many: list[Inner] = Field(default_factory=list)
    sound: Annotated[Loud | Quiet, Field(discriminator="kind")] = Quiet()
    either: Inner | None = None
    shape: Square | Ring | str = "round"


def failure(value: object) -> str:
    with pytest.raises(ConfigError) as caught:
        decode(Outer, value, where="run.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "a", "nam": 1}, "run.yaml: nam: unknown key; did you mean 'name'?"),
        (
            {"name": "a", "inner": {"learning_rat": 1}},
            "inner.learning_rat: unknown key; did you mean 'learning_rate'?",
        ),
        ({"name": "a", "many": [{}, {"size": 1}]}, "many.1.size: unknown key; did you mean 'sizes'?"),
        (
            {"name": "a", "sound": {"kind": "loud", "volum": 1}},
            "sound.volum: unknown key; did you mean 'volume'?",
        ),
        ({"name": "a", "sound": {"kind": "loudd"}}, "sound.kind: unknown kind 'loudd'; did you mean 'loud'?"),
        ({"name": "a", "sound": {}}, "sound.kind: this key is required"),
        ({"name": "a", "either": {"siz": 1}}, "either.siz: unknown key"),
        ({}, "name: this key is required"),
        (
            {"name": "a", "inner": {"learning_rate": "fast"}},
            "inner.learning_rate: input should be a valid number",
        ),
        ({"name": "a", "inner": {"sizes": [1, "x"]}}, "inner.sizes.1: input should be a valid integer"),
        ({"name": "a", "inner": 3}, "inner: expected a mapping of keys to values, got 3"),
        ({"name": "a", "sound": "loud"}, "sound: expected a mapping of keys to values, got 'loud'"),
        ({"name": "a", "shape": 3}, "run.yaml: shape: input should be a valid string, got 3"),
        ({"name": "a", "shape": {"inner": "x"}}, "run.yaml: shape.inner: input should be a valid integer"),
        (
            {"name": "a", "shape": {"inner": 1, "outer": 2, "size": 3}},
            "run.yaml: shape.size: unknown key; did you mean 'side'? known: inner, outer, side",
        ),
        (
            {"name": "a", "shape": {"inner": 1, "outer": 2, "side": 3}},
            "run.yaml: shape.side: unknown key beside the others",
        ),
        ({"name": "a", "shape": {"outer": 2}}, "run.yaml: shape.inner: this key is required"),
    ],
)
def test_errors_name_the_dotted_path_and_the_nearest_key(value: object, message: str) -> None:
    assert message in failure(value)


def test_what_is_wrong_with_a_whole_record_is_said_without_printing_it() -> None:
    assert failure({"name": "a", "span": {"low": 2}}) == "run.yaml: span: expected low <= high"
    with pytest.raises(ConfigError) as caught:
        decode(Span, {"low": 2}, where="span.yaml")
    assert str(caught.value) == "span.yaml: expected low <= high"


def test_all_wrong_keys_are_named_at_once() -> None:
    assert "nam:" in failure({"nam": 1, "inner": {"x": 1}})
    assert "inner.x:" in failure({"nam": 1, "inner": {"x": 1}})


def test_a_valid_value_decodes_into_records_and_stays_as_it_is() -> None:
    decoded = decode(Outer, {"name": "a", "sound": {"kind": "loud", "volume": 2}}, where="x")
    assert decoded.sound == Loud(volume=2.0)
    with pytest.raises(ValueError, match="frozen"):
        decoded.name = "b"
