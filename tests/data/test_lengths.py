from dataclasses import replace
from pathlib import Path

import pytest

from tests.tiny import example
from vlm_distill.data.lengths import read_lengths
from vlm_distill.data.store import ResponseStore
from vlm_distill.errors import DataError
from vlm_distill.records import Response, response_id

ONE = Response(
    id="",
    example_id="",
    author="teacher",
    round=0,
    sample_index=0,
    text="a",
    token_ids=(),
    finish="stop",
    model_fingerprint="f",
)


def responses(example_name: str, lengths: tuple[int, ...]) -> list[Response]:
    """Return one response per length to an example; those of an odd length were cut."""
    return [
        replace(
            ONE,
            id=response_id(example_name, "teacher", round=0, sample_index=index),
            example_id=example(example_name, "?").id,
            sample_index=index,
            token_ids=tuple(range(length)),
            finish="length" if length % 2 else "stop",
        )
        for index, length in enumerate(lengths)
    ]


def test_lengths_are_those_of_the_stored_responses(tmp_path: Path) -> None:
    store = ResponseStore.create_or_resume(tmp_path, "key")
    store.append(responses("first", (2, 0, 7)), {})
    store.append(responses("second", (300,)), {})
    found = read_lengths(tmp_path)
    assert found.lengths == [2, 0, 7, 300]
    assert found.finishes == ["stop", "stop", "length", "stop"]
    assert (found.num_prompts, found.is_complete) == (2, False)
    store.finish()
    assert read_lengths(tmp_path).is_complete


def test_a_store_without_responses_has_none(tmp_path: Path) -> None:
    ResponseStore.create_or_resume(tmp_path, "key").finish()
    assert read_lengths(tmp_path).lengths == []


@pytest.mark.parametrize("damage", ["shard", "manifest"])
def test_damage_is_one_line_that_names_the_folder(tmp_path: Path, damage: str) -> None:
    ResponseStore.create_or_resume(tmp_path, "key").append(responses("first", (2,)), {})
    (tmp_path / {"shard": "responses-00000.parquet", "manifest": "manifest.json"}[damage]).write_text("?")
    with pytest.raises(DataError, match=r"(parquet|manifest.json): damaged") as caught:
        read_lengths(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)
