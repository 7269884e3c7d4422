"""Reading state files in bounded time and memory: every bad one is one line."""

import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from vlm_distill.errors import DataError
from vlm_distill.files import (
    atomic_folder,
    parse_json,
    read_json,
    read_text,
    remove_temporaries,
    sha256_file,
    temporary_path,
)

BAD = {
    "empty": (b"", "not valid JSON"),
    "cut": (b'{"key": "abc", "cou', "not valid JSON"),
    "binary": (bytes(range(256)), "expected UTF-8 text, byte 128 is none"),
    "utf-16": ('{"key": 1}'.encode("utf-16"), "expected UTF-8 text"),
    "NUL": (b'{"key": 1}\x00', "not valid JSON"),
    "byte order mark": (b"\xef\xbb\xbf{}", "not valid JSON"),
    "digits": (b'{"key": ' + b"9" * 5000 + b"}", "too many digits"),
    "101 levels": (b"[" * 101 + b"]" * 101, "at most 100 levels"),
    "10,000 levels": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "at most 100 levels"),
    "values": (b"[" + b"[]," * 2_000_000 + b"[]]", "at most 2,000,000 values"),
    "size": (b'"' + b"a" * (64 << 20) + b'"', "at most 67,108,864 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_state_file_is_one_line_that_names_it(name: str, tmp_path: Path) -> None:
    content, expected = BAD[name]
    path = tmp_path / "state.json"
    path.write_bytes(content)
    start = time.monotonic()
    with pytest.raises(DataError, match=expected) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert time.monotonic() - start < 5


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(DataError, match="expected a file"):
            read_text(path)


def test_a_file_at_the_bounds_is_read(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("[" * 100 + "]" * 100)
    value = read_json(path)
    for _ in range(99):
        [value] = value
    assert value == []
    keys = {f"key {number}": number for number in range(100_000)}
    path.write_text(str(keys).replace("'", '"'))
    assert read_json(path) == keys


def test_many_brackets_are_no_depth() -> None:
    assert parse_json("[" + "[]," * 500 + "{}]", where="line") == [[]] * 500 + [{}]
    assert parse_json('"' + "[" * 500 + '"', where="line") == "[" * 500


def test_what_killed_processes_were_writing_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in (".lock", "a/.b.tmp", "a/b.12.tmp", ".c/d.json")]
    left = [
        temporary_path(tmp_path / name) for name in ("state.json", "a/image", "round_1/step_00000003/model")
    ]
    folder = temporary_path(tmp_path / "round_1" / "step_00000004")
    for path in [*kept, *left, folder / "model.safetensors", temporary_path(folder / "state.json")]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    remove_temporaries(tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(kept)
    assert not folder.exists()


def test_a_folder_takes_the_place_of_the_old_one_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for name in ("first", "second"):
        with atomic_folder(target) as temporary:
            (temporary / name).touch()
            assert not (target / name).exists()
    with suppress(DataError), atomic_folder(target) as temporary:
        (temporary / "third").touch()
        raise DataError("refused")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == [
        "model",
        "model/second",
    ]


def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="expected a file, got a device or a pipe"):
        sha256_file(tmp_path / "pipe")
