import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlm_distill.data.columns import Columns
from vlm_distill.data.sources import Files
from vlm_distill.errors import DataError

COLUMNS = Columns(image="file", question="q", references="a", meta={"type": "type"})


def files(path: Path | str, **changes: Any) -> Files:
    return Files(paths=str(path), **{"columns": COLUMNS, **changes})


def test_rows_have_the_values_of_their_columns(questions: Path, picture: Callable[..., bytes]) -> None:
    rows = list(files(questions).rows())
    assert len(rows) == 12
    row = rows[4]
    assert (row.id, row.question, row.references, row.meta) == (
        "questions-4",
        "question 4?",
        ("yes",),
        {"type": "t0"},
    )
    assert [load() for load in row.images] == [picture(1)]
    assert row.where == f"{questions} row 4"


def test_ids_without_an_id_column_are_stable_and_begin_with_the_name(questions: Path) -> None:
    first = [row.id for row in files(questions, name="mine").rows()]
    assert first == [row.id for row in files(questions, name="mine").rows()]
    assert first[:2] == ["mine-0", "mine-1"]
    assert len(set(first)) == 12


def test_an_id_may_be_a_template(questions: Path) -> None:
    source = files(questions, columns=Columns(id="q-{n}", question="q"))
    assert [row.id for row in source.rows()][3] == "q-3"


def test_a_pattern_reads_files_in_the_order_of_their_names(
    tmp_path: Path, write_jsonl: Callable[[str, list[Any]], Path]
) -> None:
    for name in ("b", "a"):
        write_jsonl(f"parts/{name}.jsonl", [{"q": name}])
    source = files(tmp_path / "parts" / "*.jsonl", name="p", columns=Columns(question="q"))
    assert [(row.id, row.question) for row in source.rows()] == [("p-0", "a"), ("p-1", "b")]


def test_image_paths_start_at_image_root(
    tmp_path: Path, questions: Path, picture: Callable[..., bytes]
) -> None:
    moved = tmp_path / "elsewhere" / "q.jsonl"
    moved.parent.mkdir()
    questions.rename(moved)
    with pytest.raises(DataError, match=r"row 0: no image file .* set image_root"):
        next(iter(files(moved).rows())).images[0]()
    row = next(iter(files(moved, image_root=str(tmp_path)).rows()))
    assert row.images[0]() == picture(0)


def test_parquet_holds_images_as_hugging_face_stores_them(
    tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    path = tmp_path / "t.parquet"
    pictures = [{"bytes": picture(shade), "path": None} for shade in range(2)]
    table = {"pictures": [pictures], "q": ["which?"], "answers": [[{"answer": "left"}, {"answer": "right"}]]}
    pq.write_table(pa.table(table), path)
    row = next(
        iter(files(path, columns=Columns(images="pictures", question="q", references="answers")).rows())
    )
    assert [load() for load in row.images] == [picture(0), picture(1)]
    assert row.references == ("left", "right")


def test_several_image_columns_may_be_empty_where_marked(
    write_jsonl: Callable[[str, list[Any]], Path], questions: Path
) -> None:
    path = write_jsonl(
        "m.jsonl",
        [
            {"i1": "images/0.png", "i2": None, "q": "a"},
            {"i1": "images/0.png", "i2": "images/1.png", "q": "b"},
        ],
    )
    source = files(path, columns=Columns(images=["i1", "i2?"], question="q"))
    assert [len(row.images) for row in source.rows()] == [1, 2]
    bad, good = files(path, columns=Columns(images=["i1", "i2"], question="q")).rows()
    assert re.search(r"row 0: column 'i2' .images. is empty; write 'i2\?'", str(bad))
    assert len(good.images) == 2


def test_a_column_of_one_image_or_a_list_stands_among_several(
    write_jsonl: Callable[[str, list[Any]], Path], questions: Path
) -> None:
    rows = [
        {"i": "images/0.png"},
        {"l": ["images/0.png", "images/1.png"]},
        {"i": None, "l": []},
        {"l": ["", "a"]},
    ]
    source = files(write_jsonl("m.jsonl", rows), columns=Columns(images=["i?", "l?"]))
    *good, bad = source.rows()
    assert [len(row.images) for row in good] == [1, 2, 0]
    assert "row 3: an image in column 'l?' (images) is empty" in str(bad)


def test_llava_conversations_give_messages_and_the_last_answer(
    write_jsonl: Callable[[str, list[Any]], Path],
) -> None:
    turns = [{"from": "human", "value": "Name a colour."}, {"from": "gpt", "value": "Red."}]
    path = write_jsonl("llava.jsonl", [{"id": "7", "conversations": turns}])
    source = files(path, columns=Columns(id="id", image="image?", messages="conversations"))
    row = next(iter(source.rows()))
    assert (row.id, row.images, row.references, row.asked) == ("7", (), ("Red.",), "Name a colour.")


@pytest.mark.parametrize(
    ("value", "references"),
    [
        ("a", ("a",)),
        (3, ("3",)),
        (0, ("0",)),
        (False, ("false",)),
        (["a", "b"], ("a", "b")),
        ([{"answer": "a", "n": 1}], ("a",)),
        ([], ()),
        ([None, "a", "", " ", float("nan")], ("a",)),
        ([{"answer": None, "n": 1}, {"answer": "b"}], ("b",)),
    ],
)
def test_references_have_three_forms(
    write_jsonl: Callable[[str, list[Any]], Path], value: Any, references: tuple[str, ...]
) -> None:
    source = files(write_jsonl("r.jsonl", [{"a": value}]), columns=Columns(references="a"))
    assert next(iter(source.rows())).references == references


@pytest.mark.parametrize("value", [None, "", " \n", float("nan"), [], [None], ["", None], [{"answer": None}]])
def test_an_absent_answer_is_no_reference(write_jsonl: Callable[[str, list[Any]], Path], value: Any) -> None:
    source = files(write_jsonl("r.jsonl", [{"a": value}]), columns=Columns(references="a?"))
    assert next(iter(source.rows())).references == ()


@pytest.mark.parametrize("value", [{"text": "a"}, [{"text": "a"}], [["a"]], float("inf")])
def test_other_forms_of_references_are_errors(
    write_jsonl: Callable[[str, list[Any]], Path], value: Any
) -> None:
    source = files(write_jsonl("r.jsonl", [{"a": value}, {"a": "b"}]), columns=Columns(references="a"))
    bad, good = source.rows()
    assert (bad.reason, good.references) == ("wrong_cell", ("b",))
    assert "row 0: expected " in str(bad)


def test_a_missing_column_is_an_error_that_names_row_and_nearest_column(questions: Path) -> None:
    first, *_ = files(questions, columns=Columns(image="fiel", question="q")).rows()
    assert first.reason == "missing_cell"
    assert "questions.jsonl row 0: no column 'fiel' (image); did you mean 'file'" in str(first)


def test_the_state_of_a_source_changes_with_its_file(questions: Path) -> None:
    before = files(questions).state()
    assert before == files(questions).state()
    with questions.open("a") as handle:
        handle.write("\n")
    assert files(questions).state() != before


def test_the_state_of_a_source_changes_with_a_file_that_keeps_size_and_time(questions: Path) -> None:
    for path, old, new in (
        (questions, b"question 4", b"question 5"),
        (next(questions.parent.rglob("*.png")), b"P", b"Q"),
    ):
        before, found = files(questions).state(), path.stat()
        path.write_bytes(path.read_bytes().replace(old, new))
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
        assert path.stat().st_size == found.st_size
        assert files(questions).state() != before


def test_a_missing_file_is_an_error_that_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing.json.*looked at /"):
        list(files(tmp_path / "nothing.json").rows())
