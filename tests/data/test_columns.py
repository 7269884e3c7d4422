from typing import Any

import pytest

from vlm_distill.config import decode
from vlm_distill.data.columns import Column, Columns, OneOf, cell, one_of, unread
from vlm_distill.errors import ConfigError, DataError

RECORD = {"folder": "a", "name": "x", "n": 3, "empty": None, "list": [1]}
CELLS = ["what?", "red", 7, None]


@pytest.mark.parametrize(
    ("row", "column", "value"),
    [
        (RECORD, "name", "x"),
        (RECORD, "{folder}/{name}-{n}.jpg", "a/x-3.jpg"),
        (CELLS, 0, "what?"),
        (CELLS, "images/{2}.png", "images/7.png"),
        (RECORD, "empty?", None),
        (RECORD, "absent?", None),
        (RECORD, "images/{absent}.png?", None),
        (CELLS, "9?", None),
    ],
)
def test_a_column_is_a_name_a_position_or_a_template(row: Any, column: Column, value: Any) -> None:
    assert cell(row, column, use="question", where="row 4") == value


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        (
            RECORD,
            "nam",
            "no column 'nam' .question.; did you mean 'name'[?] known: empty, folder, list, n, name",
        ),
        (RECORD, "empty", "column 'empty' .question. is empty; write 'empty[?]' if rows may lack it"),
        (RECORD, "{nam}.png", "no column 'nam'"),
        (RECORD, "{empty}.png", "needs text or a number in 'empty', not None"),
        (RECORD, "{list}.png", "needs text or a number in 'list'"),
        (CELLS, 4, "no position 4 .question.; the row has 4 cells"),
        (CELLS, "question", "the row is a list; expected a position below 4"),
        (CELLS, 3, "is empty"),
    ],
)
def test_a_missing_cell_is_an_error_that_names_row_use_and_known_columns(
    row: Any, column: Column, message: str
) -> None:
    with pytest.raises(DataError, match=f"^row 4: .*{message}"):
        cell(row, column, use="question", where="row 4")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"question": "a", "messages": "b"}, "question and messages exclude each other"),
        ({"question": "a?", "messages": "b"}, "write a '[?]' behind both"),
        ({"messages": "b", "context": "c"}, "context belongs to a question; name the column of that too"),
        ({"image": "a", "images": "b"}, "image and images exclude each other"),
        ({"meta": {"question": "a"}}, "meta cannot be called 'question'"),
        ({"questoin": "a"}, "did you mean 'question'"),
    ],
)
def test_contradictory_columns_do_not_decode(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decode(Columns, value, where="recipe.yaml")


@pytest.mark.parametrize(
    ("columns", "value"),
    [
        ("name", "x"),
        (["name", "absent"], "x"),
        (["absent", "empty", "name"], "x"),
        (["absent?", "empty?"], None),
        (None, None),
    ],
)
def test_of_several_columns_the_filled_one_is_read(columns: OneOf | None, value: Any) -> None:
    assert one_of(RECORD, columns, use="question", where="row 4") == value


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["name?", "folder"], "'name' and 'folder' are filled; expected one of them as question"),
        (["absent", "empty?"], "every column for question is empty: 'absent', 'empty'"),
    ],
)
def test_two_filled_columns_or_none_are_refused(columns: OneOf, message: str) -> None:
    with pytest.raises(DataError, match=f"^row 4: {message}"):
        one_of(RECORD, columns, use="question", where="row 4")


def test_what_no_column_reads_is_known_by_name_or_position() -> None:
    columns = Columns(question="name", image="{folder}/{n}.png?", meta={"all": "absent?"})
    assert unread({**RECORD, "list": ["x"], "note": "", "other": 0}, columns.known()) == ["list", "other"]
    assert unread(RECORD, Columns(question="name", ignore=["folder", "n"]).known()) == ["list"]
    assert unread(CELLS, Columns(question=0, image="images/{2}.png").known()) == ["1"]
