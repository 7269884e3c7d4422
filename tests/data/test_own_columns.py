"""Which columns of one's own table are taken, from rows that are not written to a file."""

from typing import Any

import pytest

from vlm_distill.config import decode
from vlm_distill.data.columns import Columns
from vlm_distill.data.own_columns import column_map, take_columns
from vlm_distill.data.survey import Survey
from vlm_distill.errors import DataError

Q = {"question": "Which?"}
TALK = [{"role": "user", "content": "Hi"}]


def columns_of(*rows: dict[str, Any], is_metadata: bool = False) -> dict[str, Any]:
    """Return what a recipe would say of the columns of rows, which decodes."""
    survey = Survey()
    for number, row in enumerate(rows):
        survey.add(row, where=f"t row {number}")
    taken = take_columns(survey, where="t", is_metadata=is_metadata)
    return decode(Columns, column_map(taken, survey), where="t").model_dump(exclude_defaults=True)


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        ([Q, {**Q, "image": "a.png", "answer": "red"}], {"image": "image?", "references": "answer?"}),
        ([{**Q, "image": "a.png"}, {**Q, "images": ["b", "c"]}], {"images": ["image?", "images?"]}),
        ([{**Q, "image": ["a.png", "b.png"]}], {"images": "image?"}),
        ([{**Q, "image": ["a.png"]}, {**Q, "image": "b.png"}], {"images": ["image?"]}),
        ([{**Q, "images": "a.png"}], {"images": ["images?"]}),
        ([{**Q, "image": "", "images": [], "answer": None}], {}),
        ([{**Q, "context": "c"}, {**Q, "passage": "p"}], {"context": ["context?", "passage?"]}),
        ([{**Q, "context": {"title": "t"}}], {}),
        ([{**Q, "options": ["a", "b"]}], {"options": "options?"}),
        ([{**Q, "A": "a", "B": "b", "D": "d"}], {"options": ["A?", "B?"]}),
        ([{**Q, "A": "a"}], {}),
        (
            [{**Q, "system_prompt": "s", "history": [["a", "b"]]}],
            {"system": "system_prompt?", "history": "history?"},
        ),
        ([{**Q, "id": "1", "question_id": "1"}], {"id": "id"}),
        ([{**Q, "id": "1", "question_id": n} for n in range(2)], {"id": "question_id"}),
        ([{**Q, "id": "1"}, {**Q, "id": "1"}], {}),
        ([{**Q, "file_name": "doc.pdf"}], {}),
        ([{**Q, "answers": "a"}, {**Q, "output": "b"}], {"references": ["answers?", "output?"]}),
        ([{**Q, "text": "t"}], {}),
    ],
)
def test_columns_beside_a_question_are_taken_by_their_names(rows: Any, columns: dict[str, Any]) -> None:
    assert columns_of(*rows) == {"question": "question", **columns}


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        ([{"instruction": "a", "input": "b"}], {"question": "instruction", "input": "input?"}),
        (
            [{"instruction": "", "input": "b"}, {"instruction": "a"}],
            {"question": "instruction?", "input": "input?"},
        ),
        ([{"input": "b", "output": "c"}], {"question": "input", "references": "output?"}),
        ([{"text": "b"}], {"question": "text"}),
        ([{"question": "a"}, {"prompt": "b"}], {"question": ["question", "prompt"]}),
        ([{"question": "a"}, {"text": "b"}], {"question": ["question", "text"]}),
        ([{"messages": TALK, "prompt": "unused"}], {"messages": "messages"}),
        (
            [{"messages": TALK, "system": "s", "input": "unused"}],
            {"messages": "messages", "system": "system?"},
        ),
        ([{"messages": TALK}, {"question": "a"}], {"messages": "messages?", "question": "question?"}),
        ([{"messages": TALK}, {"conversations": TALK}], {"messages": ["messages", "conversations"]}),
        ([{"prompt": TALK, "completion": TALK}], {"messages": "prompt", "references": "completion?"}),
    ],
)
def test_a_weaker_name_is_a_prompt_where_a_row_has_no_stronger_one(rows: Any, columns: Any) -> None:
    assert columns_of(*rows) == columns


def test_in_metadata_a_file_name_is_the_image() -> None:
    row = {**Q, "file_name": "a.png"}
    assert columns_of(row, is_metadata=True) == {"question": "question", "image": "file_name?"}
    with pytest.raises(DataError, match="row 0: file_name and image are filled"):
        columns_of({**row, "image": "b.png"}, is_metadata=True)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([Q, {**Q, "instruction": "a"}], "t row 1: instruction and question are filled"),
        ([{**Q, "answer": "a", "answers": ["a"]}], "t row 0: answer and answers are filled"),
        ([{**Q, "Answer": "a", " answer": "b"}], "t row 0: ' answer' and Answer are filled"),
        ([{**Q, "image": "a", "images": ["b"]}], "t row 0: image and images are filled"),
        ([{**Q, "context": "a", "hint": "b"}], "t row 0: context and hint are filled"),
        ([{**Q, "options": ["a"]}, {**Q, "choices": ["a"]}], "t: choices stand in choices and options"),
        ([{**Q, "options": ["a"], "A": "a", "B": "b"}], "t: choices stand in A and options"),
        ([{"messages": TALK}, Q, {"messages": TALK, **Q}], "t row 2: messages and question are filled"),
        (
            [{"messages": TALK, "context": "c"}, Q],
            "row 0: context and messages are filled; a conversation is",
        ),
        ([{"quesiton": "a"}], "t row 0: column quesiton is not known; did you mean 'question'"),
        ([{**Q, "anwser": "a"}], "column anwser is not known; did you mean 'answer'"),
        ([{**Q, "answer": "a"}, {**Q, "anwser": "a"}], "t row 1: column anwser is not known"),
        ([{**Q, "imge": "a.png"}], "column imge is not known; did you mean 'image'"),
        ([{"words": "x", "n\n": 1}], r"t: expected a column of prompts \(messages, .*\), got words, 'n\\n'"),
        ([{"question": " ", "answer": "a"}], r"t: expected a column of prompts \(.*\), got answer"),
        ([{"question": None}], r"t: expected a column of prompts \(.*\), got none that a row fills"),
    ],
)
def test_what_could_be_two_things_or_none_is_refused(rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        columns_of(*rows)


def test_a_slip_beside_the_right_name_is_no_error() -> None:
    assert columns_of({**Q, "answer": "a", "anwser": "b"}) == {
        "question": "question",
        "references": "answer?",
    }
    assert columns_of({"messages": TALK, "contex": "b"}) == {"messages": "messages"}
