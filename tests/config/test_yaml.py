import os
import time

import pytest

from vlm_distill.config import apply_overrides, dump_yaml, parse_yaml, read_yaml
from vlm_distill.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1.5E3", 1500.0),
        ("-.5", -0.5),
        ("12", 12),
        ("0x1f", 31),
        ("010", 10),
        ("-089", -89),
        ("true", True),
        (".inf", float("inf")),
    ],
)
def test_numbers_and_booleans_are_read_as_in_yaml_1_2(text: str, value: object) -> None:
    assert parse_yaml(text, where="here") == value
    assert type(parse_yaml(text, where="here")) is type(value)


@pytest.mark.parametrize(
    "text", ["yes", "no", "on", "off", "2024-01-01", "1:30", "1_000", "e5", "=", "<<", "٣"]
)
def test_words_that_yaml_1_1_would_convert_stay_text(text: str) -> None:
    assert parse_yaml(text, where="here") == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\nb: *x", "aliases"),
        ("a: 1\na: 2", "stands twice"),
        ("a: [1", "not valid YAML"),
        ("a: &x [*x, *x]", "aliases"),
        ("a: !!int many", "tags such as"),
        ("a: !!bool x", "tags such as"),
        ("a: !!timestamp x", "tags such as"),
        ("a: ! x", "tags such as"),
        ("a: !!python/object/apply:os.system [ls]", "tags such as"),
        ("[a]: 1", "line 1: expected a plain value as key, got \\['a'\\]"),
        ("{a: 1}: 1", "expected a plain value as key"),
        ("true: 1\n1: 2", "stands twice"),
        ("a: \0", "not valid YAML"),
        ('a: "\\ud800"', "half of a surrogate pair"),
        ("a: 1\n--- \nb: 2", "not valid YAML"),
        ("a: " + "9" * 5000, "at most 18 digits, got 999"),
        ("a: 0x" + "f" * 60_000, "at most 18 digits"),
        ("[" * 10_000 + "]" * 10_000, "at most 50 levels"),
        ("? " * 30_000, "at most 50 levels"),
        ("".join(" " * level + "a:\n" for level in range(300)), "line 51: expected at most 50 levels"),
        ("".join(f"key {number}: 1\n" for number in range(100_000)), "at most 262,144 characters"),
        ("x" * 60_000 + ": 1", "not valid YAML"),
        (f"{'x' * 500}: 1\n{'x' * 500}: 2", "stands twice"),
    ],
)
def test_what_is_not_plain_data_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_yaml(text, where="file.yaml")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
    assert str(caught.value).startswith("file.yaml")


def test_the_longest_file_of_keys_is_read_in_seconds() -> None:
    start = time.monotonic()
    text = "".join(f"key {number}: value\n" for number in range(13_000))
    assert len(parse_yaml(text, where="file.yaml")) == 13_000
    assert time.monotonic() - start < 10


def test_a_file_that_is_no_mapping_or_missing_is_named(tmp_path) -> None:
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    os.mkfifo(tmp_path / "pipe.yaml")
    with (tmp_path / "huge.yaml").open("wb") as handle:
        handle.truncate(1 << 30)
    for name, message in [
        ("list.yaml", "expected a mapping"),
        ("none.yaml", "cannot be read"),
        ("binary.yaml", "UTF-8"),
        ("pipe.yaml", "expected a file"),
        ("huge.yaml", "expected at most 262,144 bytes"),
        (".", "expected a file"),
    ]:
        with pytest.raises(ConfigError, match=message):
            read_yaml(tmp_path / name)


def test_overrides_reach_nested_keys_and_list_items_and_leave_the_original_alone() -> None:
    original = {"train": {"lr": 1.0}, "tasks": [{"limit": 1}, {"limit": 2}]}
    changed = apply_overrides(original, ["train.lr=1e-5", "tasks.1.limit=7", "new.deep.key=[a, no]"])
    assert changed == {
        "train": {"lr": 1e-5},
        "tasks": [{"limit": 1}, {"limit": 7}],
        "new": {"deep": {"key": ["a", "no"]}},
    }
    assert original["tasks"][1]["limit"] == 2


@pytest.mark.parametrize(
    "override",
    [
        *(
            "train.lr",
            "=3",
            "train..lr=1",
            "name.x=1",
            "tasks.5.limit=1",
            "tasks.x=1",
            "tasks.²=1",
            "tasks.-1=1",
        ),
        *(
            "a." * 5000 + "b=1",
            "a=" + "[" * 5000,
            "a=" + "9" * 5000,
            "a=*x",
            "x" * 9999,
            f"tasks.{'9' * 9999}=1",
        ),
    ],
)
def test_an_override_that_points_nowhere_is_an_error(override: str) -> None:
    with pytest.raises(ConfigError, match="override") as caught:
        apply_overrides({"name": "a", "tasks": [1]}, [override])
    assert len(str(caught.value)) < 500


def test_what_is_written_is_read_back_equal() -> None:
    shared = {"rate": 1e-5, "answers": ["yes", "no", "1e-5", "null", "12"]}
    value = {"first": shared, "second": shared, "none": None, "flag": True, "text": "été: a & b"}
    assert parse_yaml(dump_yaml(value), where="x") == value
