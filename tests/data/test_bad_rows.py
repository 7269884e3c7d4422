"""Rows that cannot be used, from the file to the counts of a prepared recipe."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from vlm_distill.config import Record, decode
from vlm_distill.data.bad_rows import REASONS, RowError
from vlm_distill.data.dataset import MANIFEST, Dataset
from vlm_distill.data.examples import RecipeSource
from vlm_distill.data.own_table import own_table
from vlm_distill.data.recipe import Recipe, prepare
from vlm_distill.data.rows import Row
from vlm_distill.errors import ConfigError, DataError
from vlm_distill.files import read_json
from vlm_distill.reporting.dropped import DATA_WORDS

GOOD = {"id": "good", "q": "Which colour?", "a": "red"}
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
QUESTION = {"id": "id", "question": "q", "references": "a?", "image": "p?"}
CHAT = {"messages": "m", "image": "p?"}


def recipe(path: Path, columns: dict[str, Any], on_bad_row: str = "skip", **changes: Any) -> Recipe:
    source = {"source": {"kind": "files", "paths": str(path), "columns": columns}, **changes}
    return decode(Recipe, {"name": "r", "sources": [source], "on_bad_row": on_bad_row}, where="r.yaml")


def prepared(made: Recipe, folder: Path) -> tuple[Dataset, list[str]]:
    lines: list[str] = []
    return prepare(made, folder, lines.append), lines


def lines_of(path: Path, *lines: Any) -> Path:
    texts = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    path.write_bytes(b"\n".join(texts))
    return path


@pytest.mark.parametrize(
    ("columns", "bad", "reason"),
    [
        (QUESTION, b'{"id": "b", "q": ', "broken_row"),
        (QUESTION, b"3", "broken_row"),
        (QUESTION, b'{"id": "b", "q": "\xff"}', "broken_row"),
        (QUESTION, {"id": "b"}, "missing_cell"),
        (QUESTION, {"id": "b", "q": None}, "missing_cell"),
        (QUESTION, {"id": "b", "q": " \n"}, "missing_cell"),
        (QUESTION, {"id": "b", "q": float("nan")}, "missing_cell"),
        (QUESTION, {"id": None, "q": "Which?"}, "missing_cell"),
        (QUESTION, {"id": "", "q": "Which?"}, "missing_cell"),
        (QUESTION, {"id": "b", "q": ["Which?"]}, "wrong_cell"),
        (QUESTION, {"id": ["b"], "q": "Which?"}, "wrong_cell"),
        (QUESTION, {"id": "b", "q": "Which?", "a": {"text": "red"}}, "wrong_cell"),
        (QUESTION, {"id": "b", "q": "Which?", "a": float("inf")}, "wrong_cell"),
        (QUESTION, {"id": "b", "q": "Which? \ud83d", "a": "red"}, "bad_text"),
        (QUESTION, {"id": "b", "q": "Which?", "a": "r\0d"}, "bad_text"),
        (QUESTION, {"id": "b\nc", "q": "Which?", "a": "red"}, "bad_text"),
        (QUESTION, {"id": "b\u2028c", "q": "Which?", "a": "red"}, "bad_text"),
        (QUESTION, {"id": "b", "q": " \u200b\ufeff"}, "missing_cell"),
        (QUESTION, {"id": "b", "q": "Which?", "p": "a" * 5000}, "bad_image"),
        (QUESTION, {"id": "b", "q": "Which?", "p": "a\0\ud800"}, "bad_image"),
        (QUESTION, {"id": "b", "q": "Which?", "p": "[" * 900}, "bad_image"),
        (QUESTION, {"id": "good", "q": "Which?", "a": "red"}, "repeated_id"),
        (QUESTION, {"id": "b", "q": "Which?", "p": "nowhere.png"}, "bad_image"),
        (QUESTION, {"id": "b", "q": "Which?", "p": {"bytes": "no", "path": None}}, "bad_image"),
        (QUESTION, {"id": "b", "q": "Which?", "p": ["a.png"]}, "bad_image"),
        (CHAT, {"m": []}, "missing_cell"),
        (CHAT, {"m": [{"role": "user", "content": ""}]}, "missing_cell"),
        (CHAT, {"m": TALK[1:]}, "bad_conversation"),
        (CHAT, {"m": [*TALK, {"role": "tool", "content": "x"}]}, "bad_conversation"),
        (CHAT, {"m": [{"role": ["user"], "content": "x"}]}, "bad_conversation"),
        (CHAT, {"m": [{"role": "user", "content": None}]}, "bad_conversation"),
        (CHAT, {"m": "Hi"}, "bad_conversation"),
    ],
)
def test_a_bad_row_is_refused_with_the_way_out_or_skipped_and_counted_by_reason(
    tmp_path: Path, columns: dict[str, Any], bad: Any, reason: str
) -> None:
    path = lines_of(tmp_path / "t.jsonl", {**GOOD, "m": TALK}, bad)
    with pytest.raises(DataError, match=r"t.jsonl (row|line) \S.*\(with data.overrides=\[on_bad_row=skip\]"):
        prepare(recipe(path, columns, "stop"), tmp_path / "stopped", lambda line: None)
    data, lines = prepared(recipe(path, columns), tmp_path / "data")
    assert {name: data.counts[name] for name in REASONS if name in data.counts} == {reason: 1}
    assert (data.counts["read"], data.counts["train"]) == (2, 1)
    assert read_json(tmp_path / "data" / MANIFEST)["counts"][reason] == 1
    assert f"{reason} 1" in lines[-1]


def test_a_list_among_the_rows_of_ones_own_table_is_one_bad_row(tmp_path: Path) -> None:
    made = own_table(lines_of(tmp_path / "t.jsonl", {"question": "Which?"}, ["Which?"])).recipe
    data, _ = prepared(made.model_copy(update={"on_bad_row": "skip"}), tmp_path / "data")
    assert (data.counts["read"], data.counts["missing_cell"]) == (2, 1)


def test_the_prompt_of_one_row_may_fail(tmp_path: Path) -> None:
    path = lines_of(tmp_path / "t.jsonl", {**GOOD, "o": ["a"]}, {**GOOD, "id": "b", "o": 3})
    made = recipe(
        path, {**QUESTION, "meta": {"o": "o"}}, prompt="{{ question }}{% for x in o %}{{ x }}{% endfor %}"
    )
    assert prepared(made, tmp_path / "data")[0].counts["bad_prompt"] == 1


def test_the_first_bad_row_of_a_reason_is_logged_with_its_place_and_why(
    tmp_path: Path,
) -> None:
    bad = [{"id": "b", "q": None}, {"id": "c"}, {"id": "good", "q": "Again?"}]
    _, lines = prepared(recipe(lines_of(tmp_path / "t.jsonl", GOOD, *bad), QUESTION), tmp_path / "data")
    skipped = [line for line in lines if line.startswith("skipped: ")]
    assert len(skipped) == 2
    assert "t.jsonl row 1: column 'q' (question) is empty" in skipped[0]
    assert "t.jsonl row 3: an earlier row has the id 'good' too" in skipped[1]


def test_a_row_that_is_left_out_leaves_no_image_behind(tmp_path: Path, questions: Path) -> None:
    rows = [{"id": "a", "q": "One?", "p": "images/0.png"}, {"id": "a", "q": "Two?", "p": "images/1.png"}]
    prepared(recipe(lines_of(tmp_path / "t.jsonl", *rows), QUESTION), tmp_path / "data")
    assert len([path for path in (tmp_path / "data" / "images").rglob("*") if path.is_file()]) == 1


def test_where_no_row_is_good_the_first_reason_is_the_error(tmp_path: Path) -> None:
    path = lines_of(tmp_path / "t.jsonl", GOOD, {**GOOD, "id": "b", "q": "Two?"})
    with pytest.raises(
        DataError,
        match=r"source t: none of its 2 rows can be used .missing_cell 2.: .* no column 'qq'",
    ):
        prepared(recipe(path, {**QUESTION, "question": "qq"}), tmp_path / "data")


def test_an_id_of_another_source_is_skipped_too(tmp_path: Path) -> None:
    paths = [
        lines_of(tmp_path / f"{name}.jsonl", {**GOOD, "q": name}, {"id": name, "q": name * 2})
        for name in "ab"
    ]
    sources = [{"source": {"kind": "files", "paths": str(path), "columns": QUESTION}} for path in paths]
    made = decode(Recipe, {"name": "r", "sources": sources, "on_bad_row": "skip"}, where="r.yaml")
    data, _ = prepared(made, tmp_path / "data")
    assert (data.counts["repeated_id"], data.counts["b/repeated_id"], data.counts["train"]) == (1, 1, 3)


def test_rows_that_may_lack_a_question_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [GOOD, {"id": "b", "q": None}, {"id": "c"}, {"id": "d", "q": ""}]
    path = lines_of(tmp_path / "t.jsonl", *rows)
    data, _ = prepared(recipe(path, {**QUESTION, "question": "q?"}, "stop"), tmp_path / "data")
    assert (data.counts["no_question"], len(data.train)) == (3, 1)
    asked = recipe(
        path, {**QUESTION, "question": "q?"}, "stop", prompt="{{ question or 'Name one.' }}{{ id }}"
    )
    assert len(prepared(asked, tmp_path / "asked")[0].train) == 4
    talks = lines_of(tmp_path / "m.jsonl", {"m": TALK}, {"m": None}, {"m": []})
    data, _ = prepared(recipe(talks, {"messages": "m?"}, "stop"), tmp_path / "talks")
    assert (data.counts["no_question"], len(data.train)) == (2, 1)


@pytest.mark.parametrize("answer", [None, "", "  ", float("nan"), [], [None], [""], [{"answer": ""}]])
def test_a_row_without_an_answer_is_a_prompt_without_references_and_counted(
    tmp_path: Path, answer: Any
) -> None:
    path = lines_of(tmp_path / "t.jsonl", GOOD, {"id": "b", "q": "Which?", "a": answer})
    data, _ = prepared(recipe(path, QUESTION, "stop"), tmp_path / "data")
    assert [one.references for one in data.train] == [("red",), ()]
    assert data.counts["without_references"] == 1


def test_an_empty_cell_of_csv_is_lacking_and_no_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,q,a,p,hint\n1,Which?,,,\n2,What?,nan,,\n,Who?,0, ,\n")
    columns = {**QUESTION, "id": "id?", "meta": {"hint": "hint?"}}
    data, _ = prepared(recipe(path, columns, "stop", prompt="{{ question }}{{ hint }}"), tmp_path / "data")
    assert [(one.id, one.references, one.images) for one in data.train] == [
        ("1", (), ()),
        ("2", (), ()),
        ("t-2", ("0",), ()),
    ]
    assert [one.messages[0].content[0].text for one in data.train] == ["Which?", "What?", "Who?"]


def test_a_column_that_a_row_lacks_is_no_word_in_a_prompt(tmp_path: Path) -> None:
    path = lines_of(tmp_path / "t.jsonl", {**GOOD, "h": None}, {**GOOD, "id": "b", "h": "Look."})
    made = recipe(path, {**QUESTION, "meta": {"h": "h?"}}, "stop", prompt="{{ question }} {{ h }}")
    data, _ = prepared(made, tmp_path / "data")
    assert [one.messages[0].content[0].text for one in data.train] == [
        "Which colour? ",
        "Which colour? Look.",
    ]
    assert [one.meta for one in data.train] == [{}, {"h": "Look."}]


def test_control_characters_and_the_marker_stay_as_they_are(tmp_path: Path) -> None:
    answer = "a\x0bb\x1b[0m\u2028<image>\n</s> "
    data, _ = prepared(
        recipe(lines_of(tmp_path / "t.jsonl", {**GOOD, "a": answer}), QUESTION), tmp_path / "data"
    )
    assert data.train[0].references == (answer,)


class Outside(Record):
    """A source of another package: one good row, and two that cannot be used."""

    kind: Literal["outside"] = "outside"
    label: ClassVar[str] = "outside"
    hub_id: ClassVar[None] = None

    def rows(self) -> Iterator[Row | RowError]:
        yield Row(id="a", where="a", question="Which?")
        yield RowError("b: no row", reason="broken_row")
        yield Row(id="c", where="c", question="\ud800")

    def state(self) -> Any:
        return None

    def describe(self) -> str:
        return "outside"


def test_rows_of_a_source_of_another_package_are_counted_in_the_same_way(tmp_path: Path) -> None:
    made = Recipe(name="r", sources=[RecipeSource(source=Outside())], on_bad_row="skip")
    data, _ = prepared(made, tmp_path / "data")
    assert (data.counts["broken_row"], data.counts["bad_text"], len(data.train)) == (1, 1, 1)


def test_the_key_of_before_is_answered_with_the_new_name() -> None:
    value = {
        "name": "r",
        "sources": [{"source": {"kind": "image_folder", "path": "x"}}],
        "on_bad_image": "skip",
    }
    with pytest.raises(ConfigError, match="on_bad_image: unknown key; did you mean 'on_bad_row'"):
        decode(Recipe, value, where="r.yaml")


def test_every_reason_has_its_words_in_the_report() -> None:
    assert set(REASONS) <= set(DATA_WORDS)


def test_the_error_of_a_row_can_be_sent_to_other_processes() -> None:
    sent = pickle.loads(pickle.dumps(RowError("t.jsonl row 3: bad", reason="bad_image")))
    assert (str(sent), sent.reason) == ("t.jsonl row 3: bad", "bad_image")
