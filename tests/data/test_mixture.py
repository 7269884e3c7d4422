import pytest

from vlm_distill.data.mixture import mix
from vlm_distill.errors import DataError
from vlm_distill.records import Example, Message, Text


def group(name: str, size: int) -> list[Example]:
    return [
        Example(id=f"{name}{n}", messages=(Message(role="user", content=(Text(text=f"{name}{n}"),)),))
        for n in range(size)
    ]


def names(examples: list[Example]) -> str:
    return "".join(example.id[0] for example in examples)


def test_without_weights_everything_comes_evenly_interleaved() -> None:
    mixed = mix({"a": group("a", 6), "b": group("b", 3)}, None, seed=0)
    assert names(mixed) == "aabaabaab" or names(mixed) == "abaabaaba"
    assert [example.id for example in mixed if example.id[0] == "a"] == [f"a{n}" for n in range(6)]


def test_one_source_keeps_its_order() -> None:
    assert mix({"a": group("a", 5)}, None, seed=0) == group("a", 5)


def test_weights_are_shares_and_nothing_is_repeated() -> None:
    mixed = mix({"a": group("a", 1000), "b": group("b", 30)}, {"a": 2.0, "b": 1.0}, seed=0)
    assert (names(mixed).count("a"), names(mixed).count("b")) == (60, 30)
    assert len({example.id for example in mixed}) == 90


def test_shares_hold_in_every_prefix() -> None:
    order = names(mix({"a": group("a", 300), "b": group("b", 100)}, {"a": 3.0, "b": 1.0}, seed=0))
    assert all(abs(order[:end].count("b") - end / 4) <= 1 for end in range(1, 401))


def test_thirds_lose_no_example_to_rounding() -> None:
    mixed = mix({name: group(name, 3) for name in "abc"}, dict.fromkeys("abc", 1 / 3), seed=0)
    assert len(mixed) == 9


def test_the_draw_depends_on_the_seed_only() -> None:
    groups = {"a": group("a", 100), "b": group("b", 10)}
    weights = {"a": 1.0, "b": 1.0}
    assert mix(groups, weights, seed=1) == mix(groups, weights, seed=1)
    assert mix(groups, weights, seed=1) != mix(groups, weights, seed=2)


def test_an_empty_source_with_a_weight_is_an_error() -> None:
    with pytest.raises(DataError, match="source 'b' has a weight but no examples left"):
        mix({"a": group("a", 3), "b": []}, {"a": 1.0, "b": 1.0}, seed=0)
