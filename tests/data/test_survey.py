import json
from pathlib import Path
from typing import Any

import pytest

from vlm_distill.data import survey as survey_module
from vlm_distill.data.survey import Survey, survey_table
from vlm_distill.errors import DataError


def surveyed(folder: Path, *rows: Any) -> Survey:
    path = folder / "t.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return survey_table(path, list_key=None)


def test_all_rows_say_which_columns_there_are(tmp_path: Path) -> None:
    found = surveyed(tmp_path, {"question": "a", "note": ""}, {"note": 1}, {"answer": ["x"], "note": [None]})
    assert (found.num_rows, dict(found.filled)) == (3, {"question": 1, "note": 1, "answer": 1})
    assert found.kinds == {"question": {"text"}, "answer": {"list"}}
    assert [set(pattern) for pattern in found.patterns] == [{"question"}, set(), {"answer"}]


def test_columns_that_rows_fill_together_are_kept_with_the_first_such_row(tmp_path: Path) -> None:
    found = surveyed(
        tmp_path, {"question": "a"}, {"question": "b", "note": "c"}, {"question": "d", "image": "e"}
    )
    places = {tuple(sorted(pattern)): where.rpartition(" ")[2] for pattern, where in found.patterns.items()}
    assert places == {("question",): "0", ("image", "question"): "2"}


@pytest.mark.parametrize(
    ("ids", "is_unique"),
    [(["1", 2], True), (["1", "1"], False), (["1", 1], False), (["1", None], False), (["1", ["2"]], False)],
)
def test_ids_are_unique_texts_or_numbers_of_every_row(
    tmp_path: Path, ids: list[Any], is_unique: bool
) -> None:
    assert surveyed(tmp_path, *({"id": one} for one in ids)).is_unique("id") is is_unique


def test_rows_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    deep = f'{{"question": {"[" * 900}{"]" * 900}}}'
    found = surveyed(tmp_path, '{"question": ', deep, {"question": "a"})
    assert (found.num_rows, dict(found.filled)) == (1, {"question": 1})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "t.jsonl: expected rows with prompts, found none"),
        (["{"], "t.jsonl line 1: not valid JSON"),
        ([["a", "b"]], "t.jsonl row 0: expected named columns, got a list"),
    ],
)
def test_a_table_without_rows_of_named_columns_is_refused(tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        surveyed(tmp_path, *rows)


def test_objects_whose_keys_are_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "_MAX_COLUMNS", 2)
    with pytest.raises(DataError, match="row 1: expected at most 2 columns, the rows have more"):
        surveyed(tmp_path, {"a": 1, "b": 1}, {"c": 1})
