from typing import Any

import pytest

from vlm_distill.config import decode
from vlm_distill.data.columns import Column, Columns, cell
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
        ({"image": "a", "images": "b"}, "image and images exclude each other"),
        ({"meta": {"question": "a"}}, "meta cannot be called 'question'"),
        ({"questoin": "a"}, "did you mean 'question'"),
    ],
)
def test_contradictory_columns_do_not_decode(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decode(Columns, value, where="recipe.yaml")
