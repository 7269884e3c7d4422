"""Prompts from several columns, in the forms that tables of the field have."""

from typing import Any

import pytest

from vlm_distill.data.bad_rows import RowError
from vlm_distill.data.columns import Columns
from vlm_distill.data.rows import Row, build_row
from vlm_distill.records import Message, Text

ALPACA = Columns(
    question="instruction?", input="input?", system="system?", history="history?", references="output?"
)
CHOICES = Columns(question="q", context="hint?", options="choices?", references="answer?")
LETTERS = Columns(question="q", options=["A", "B", "C?"])
TALK = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


def row_of(raw: dict[str, Any], columns: Columns) -> Row:
    return build_row(raw, columns, default_id="0", image_root=None, where="t row 0")


def said(*turns: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role=role, content=(Text(text=text),)) for role, text in turns)


@pytest.mark.parametrize(
    ("raw", "columns", "question"),
    [
        ({"instruction": "Translate.", "input": "Good night"}, ALPACA, "Translate.\nGood night"),
        ({"instruction": "Name one.", "input": ""}, ALPACA, "Name one."),
        ({"instruction": "", "input": "Good night"}, ALPACA, "Good night"),
        ({"instruction": None, "input": " "}, ALPACA, ""),
        ({"q": "Who won?", "hint": "Blue beat red."}, CHOICES, "Blue beat red.\nWho won?"),
        ({"q": 3, "hint": 2.5}, CHOICES, "2.5\n3"),
        ({"q": "Which?", "choices": ["apple", "stone"]}, CHOICES, "Which?\nA. apple\nB. stone"),
        ({"q": "Which?", "choices": ["A. apple", "B. stone"]}, CHOICES, "Which?\nA. apple\nB. stone"),
        ({"q": "Which?", "choices": ["(A) apple", "(B) stone"]}, CHOICES, "Which?\n(A) apple\n(B) stone"),
        ({"q": "Which?", "choices": ["A. apple", "stone"]}, CHOICES, "Which?\nA. A. apple\nB. stone"),
        (
            {"q": "Which?", "choices": {"A": "apple", "B": "stone", "C": None}},
            CHOICES,
            "Which?\nA. apple\nB. stone",
        ),
        (
            {"q": "Which?", "choices": {"text": ["apple", "stone"], "label": ["1", "2"]}},
            CHOICES,
            "Which?\n1. apple\n2. stone",
        ),
        ({"q": "Which?", "choices": "apple or stone"}, CHOICES, "Which?\napple or stone"),
        ({"q": "Which?", "choices": [1, None, 2]}, CHOICES, "Which?\nA. 1\nC. 2"),
        ({"q": "Which?", "choices": []}, CHOICES, "Which?"),
        ({"q": "Which?", "hint": "Look.", "choices": ["x"]}, CHOICES, "Look.\nWhich?\nA. x"),
        ({"q": "Which?", "A": "x", "B": "y", "C": ""}, LETTERS, "Which?\nA. x\nB. y"),
    ],
)
def test_parts_of_a_question_stand_on_lines_of_their_own(raw: Any, columns: Columns, question: str) -> None:
    assert row_of(raw, columns).question == question


def test_more_choices_than_letters_are_numbered() -> None:
    question = row_of({"q": "Which?", "choices": [f"c{n}" for n in range(27)]}, CHOICES).question
    assert question is not None
    assert question.splitlines()[1::26] == ["1. c0", "27. c26"]


@pytest.mark.parametrize(
    ("raw", "before"),
    [
        ({"system": "Be brief."}, [("system", "Be brief.")]),
        (
            {"history": [["a?", "b."], ["c?", "d."]]},
            [("user", "a?"), ("assistant", "b."), ("user", "c?"), ("assistant", "d.")],
        ),
        ({"history": TALK, "system": "s"}, [("system", "s"), ("user", "Hi"), ("assistant", "Hello")]),
        ({"history": [], "system": ""}, []),
    ],
)
def test_system_and_history_stand_before_the_question(raw: Any, before: Any) -> None:
    row = row_of({"instruction": "e?", **raw}, ALPACA)
    assert (row.before, row.question) == (said(*before), "e?")


def test_a_system_column_stands_before_a_conversation() -> None:
    columns = Columns(messages="m", system="s?")
    assert row_of({"m": TALK, "s": "Be brief."}, columns).messages == said(
        ("system", "Be brief."), ("user", "Hi")
    )
    with pytest.raises(RowError, match=r"the conversation has a system message, and column 's[?]' another"):
        row_of({"m": [{"from": "system", "value": "x"}, *TALK], "s": "y"}, columns)


@pytest.mark.parametrize(
    ("answer", "references"),
    [
        (1, ("B",)),
        ([0, 1], ("A", "B")),
        ("1", ("1",)),
        ("B", ("B",)),
        (True, ("true",)),
        ({"text": ["apple"], "answer_start": [3]}, ("apple",)),
        ([{"role": "assistant", "content": "apple"}], ("apple",)),
        ({"text": [], "answer_start": []}, ()),
    ],
)
def test_a_whole_number_among_choices_is_a_position(answer: Any, references: tuple[str, ...]) -> None:
    raw = {"q": "Which?", "choices": ["apple", "stone"], "answer": answer}
    assert row_of(raw, CHOICES).references == references


def test_without_choices_a_number_is_an_answer() -> None:
    assert row_of({"q": "How many?", "answer": 1}, CHOICES).references == ("1",)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"choices": ["a", "b"], "answer": 2}, "expected an answer below 2, as there are choices, got 2"),
        ({"choices": ["1", "2"], "answer": 1}, "the answer 1 may be a choice or its position"),
        ({"choices": [["a"]]}, "expected text or a number as options, got list"),
        ({"choices": {"label": 3, "text": ["a"]}}, "expected text or a number as options, got list"),
        ({"hint": {"a": 1}}, "expected text or a number as context, got dict"),
        ({"hint": True}, "expected text or a number as context, got bool"),
    ],
)
def test_parts_of_another_form_are_wrong_cells(raw: Any, message: str) -> None:
    with pytest.raises(RowError, match=f"t row 0: {message}") as caught:
        row_of({"q": "Which?", **raw}, CHOICES)
    assert caught.value.reason == "wrong_cell"


@pytest.mark.parametrize("history", [["a", "b"], [["a"]], [["a", None]], [TALK[0]], "a", {"a": "b"}])
def test_a_history_that_is_no_conversation_is_refused(history: Any) -> None:
    with pytest.raises(RowError, match="t row 0"):
        row_of({"instruction": "c?", "history": history}, ALPACA)


def test_a_row_has_a_question_or_a_conversation() -> None:
    columns = Columns(question="q?", messages="m?")
    assert row_of({"q": "a"}, columns).question == "a"
    assert row_of({"m": TALK}, columns).question is None
    assert row_of({}, columns).question == ""
    with pytest.raises(RowError, match="question and messages are filled; expected one of them"):
        row_of({"q": "a", "m": TALK}, columns)
