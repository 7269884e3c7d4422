import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tiny import picture
from vlm_distill.config import apply_overrides, decode
from vlm_distill.data.own_table import own_table
from vlm_distill.data.recipe import Recipe, prepare
from vlm_distill.errors import DataError
from vlm_distill.records import Example, Text


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, folder: Path, *overrides: str) -> tuple[list[Example], str]:
    """Return the examples of a table of which nothing is held out, and the line about its columns."""
    found = own_table(path)
    values = apply_overrides(found.recipe.model_dump(mode="json"), ["split.held_out=0", *overrides])
    return prepare(
        decode(Recipe, values, where="table"), folder / "data", lambda line: None
    ).train, found.line


def test_a_table_of_prompts_becomes_training_and_held_out_examples(tmp_path: Path) -> None:
    table = write(tmp_path / "own.jsonl", [{"prompt": f"Question {number}?"} for number in range(60)])
    recipe = own_table(table).recipe
    assert recipe.name == "own"
    dataset = prepare(recipe, tmp_path / "data", print)
    assert len(dataset.train) + len(dataset.held_out) == 60
    assert 0 < len(dataset.held_out) < 20
    assert all(example.messages[0].content[0].text.startswith("Question") for example in dataset.train)


def test_images_and_references_may_be_missing_in_some_rows(tmp_path: Path) -> None:
    picture("red").save(tmp_path / "red.png")
    rows = [
        {"id": "b", "question": "Hello?"},
        {"id": "a", "question": "What color?", "image": "red.png", "answer": "red"},
        {"id": "c", "question": "And these?", "images": ["red.png", "red.png"]},
    ]
    examples, line = read(write(tmp_path / "own.jsonl", rows), tmp_path)
    assert [(one.id, len(one.images), one.references) for one in examples] == [
        ("b", 0, ()),
        ("a", 1, ("red",)),
        ("c", 2, ()),
    ]
    assert line == "own: columns taken: question, image, images, answer as references, id"


def csv(delimiter: str, encoding: str = "utf-8") -> Callable[[Path, list[dict[str, Any]]], None]:
    def write_it(path: Path, rows: list[dict[str, Any]]) -> None:
        lines = [delimiter.join(rows[-1])]
        lines += [delimiter.join(str(row.get(name) or "") for name in rows[-1]) for row in rows]
        path.write_bytes("\r\n".join(lines).encode(encoding))

    return write_it


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    names = list(rows[-1])
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)


@pytest.mark.parametrize(
    ("name", "write_it"),
    [
        ("t.json", lambda path, rows: path.write_text(json.dumps(rows))),
        ("t.json", lambda path, rows: path.write_text(json.dumps({"info": 1, "data": rows}))),
        ("t.jsonl", write),
        ("t.csv", csv(",")),
        ("t.csv", csv(", ")),
        ("t.csv", csv(";")),
        ("t.csv", csv(",", "utf-8-sig")),
        ("t.tsv", csv("\t")),
        ("t.tsv", csv("\t", "utf-16")),
        ("t.parquet", parquet),
    ],
)
def test_columns_that_only_the_last_row_fills_are_read_in_every_format(
    tmp_path: Path, name: str, write_it: Callable[[Path, list[dict[str, Any]]], None]
) -> None:
    picture("red").save(tmp_path / "red.png")
    rows = [{"question": f"Name number {n}!"} for n in range(3)]
    last = {"question": "Größer?", "image": "red.png", "answer": "ja", "system": "Kurz!", "note": "n"}
    write_it(tmp_path / name, [*rows, last])
    examples, line = read(tmp_path / name, tmp_path)
    assert [len(one.images) for one in examples] == [0, 0, 0, 1]
    assert [one.references for one in examples] == [(), (), (), ("ja",)]
    assert [part.text for part in (*examples[3].messages[0].content, examples[3].messages[1].content[1])] == [
        "Kurz!",
        "Größer?",
    ]
    assert line.endswith(
        "columns taken: question, system, image, answer as references; not read: note (1 of 4 rows)"
    )


def test_a_folder_of_images_is_read_by_its_metadata(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    picture("red").save(tmp_path / "photos" / "red.png")
    rows = [{"file_name": "red.png", "question": "Why?", "answer": "so"}]
    write(tmp_path / "photos" / "metadata.jsonl", rows)
    (example,), line = read(tmp_path / "photos", tmp_path)
    assert (len(example.images), example.references) == (1, ("so",))
    assert line == "photos: columns taken: question, file_name as image, answer as references"
    assert read(tmp_path / "photos" / "metadata.jsonl", tmp_path)[0] == [example]
    with pytest.raises(DataError, match="expected a table, or a folder of images with one of metadata"):
        own_table(tmp_path)


def test_repeated_ids_number_the_rows_and_the_line_says_so(tmp_path: Path) -> None:
    rows = [{"id": "000000033471", "question": f"Question {number}?"} for number in range(4)]
    table = write(tmp_path / "own.jsonl", rows)
    examples, line = read(table, tmp_path)
    assert [one.id for one in examples] == ["own-0", "own-1", "own-2", "own-3"]
    assert line.endswith("not read: id (not another one in every row: rows are numbered)")
    # Whoever wants it nevertheless is told a way out, which works.
    with pytest.raises(DataError, match=r"has the id '000000033471' too; name .* as columns.id, or null"):
        read(table, tmp_path, "sources.0.source.columns.id=id")
    assert len(read(table, tmp_path, "sources.0.source.columns.id=null")[0]) == 4


def test_the_line_names_what_is_not_read_and_why(tmp_path: Path) -> None:
    row = {"question": "a", "answer": "b", "anwser": "c", "": 0, "no\nte": 1} | {
        f"c{n}": 1 for n in range(30)
    }
    line = own_table(write(tmp_path / "own.jsonl", [row])).line
    assert "; not read: anwser (did you mean 'answer'?), '', 'no\\nte', c0, c1," in line
    assert line.endswith("c16 and 13 more")


def test_what_the_line_says_is_not_said_again_while_rows_are_read(tmp_path: Path) -> None:
    lines: list[str] = []
    rows = [{"question": f"Question {number}?", "note": "n"} for number in range(20)]
    prepare(own_table(write(tmp_path / "own.jsonl", rows)).recipe, tmp_path / "data", lines.append)
    assert lines == [lines[0]]
    assert "read 20" in lines[0]


def test_a_changed_table_is_read_again(tmp_path: Path) -> None:
    table = write(tmp_path / "own.jsonl", [{"question": "a"}])
    assert own_table(table) is own_table(table)
    write(table, [{"question": "a", "answer": "b"}])
    assert own_table(table).recipe.sources[0].source.columns.references == "answer?"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.jsonl", "", "expected rows with prompts, found none"),
        ("t.csv", "question,answer\n", "expected rows with prompts, found none"),
        ("t.csv", "", "expected rows with prompts, found none"),
        ("t.jsonl", '["a", "b"]', "expected named columns"),
        ("t.jsonl", '{"words": "x"}', r"expected a column of prompts \(messages, .*\), got words"),
        ("t.json", '{"a": [{"question": 1}], "b": [{"question": 1}]}', "rows stand under several keys, a, b"),
        ("t.json", '{"question": {"0": "a"}}', "expected a list of rows, each an object, got dict"),
        ("t.csv", "question,question\na,b\n", "'question' stands twice"),
        ("t.txt", "question\n", "unknown kind of file"),
    ],
)
def test_a_table_without_prompts_says_what_was_expected(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        own_table(tmp_path / name)


@pytest.mark.parametrize("images", ['"[""0.png"", ""1.png""]"', "\"['0.png', '1.png']\""])
@pytest.mark.parametrize("name", ["image", "images"])
def test_lists_in_cells_of_csv_are_lists(tmp_path: Path, name: str, images: str) -> None:
    for number in range(2):
        picture(size=(8 + number, 8)).save(tmp_path / f"{number}.png")
    header = f"question,{name},history,options\n"
    history, options = '"[[""Hi"", ""Hello""]]"', '"[""red"", ""blue""]"'
    (tmp_path / "t.csv").write_text(f"{header}Which?,{images},{history},{options}\nAnd?,,[],\n")
    (first, second), _ = read(tmp_path / "t.csv", tmp_path)
    assert [len(first.images), len(second.images)] == [2, 0]
    assert [one.role for one in first.messages] == ["user", "assistant", "user"]
    assert first.messages[2].content == (Text(text="Which?\nA. red\nB. blue"),)


@pytest.mark.parametrize(
    ("picture_of", "is_text"), [({}, True), ({"img": "0.png"}, False), ({"note": "a"}, True)]
)
def test_a_marker_on_its_own_line_is_a_word_where_no_column_may_hold_its_image(
    tmp_path: Path, picture_of: dict[str, str], is_text: bool
) -> None:
    table = write(tmp_path / "t.jsonl", [{"question": "<image>\nWhich tag is this?", **picture_of}])
    if is_text:
        assert len(read(table, tmp_path)[0]) == 1
    else:
        with pytest.raises(DataError, match=r"row 0: 1 places for images .* 0 images"):
            read(table, tmp_path)


@pytest.mark.parametrize("name", ["{}.png", "./{}.png", ".\\{}.PNG", "{folder}/{}.png"])
def test_pictures_of_a_folder_are_found_by_the_names_of_its_table(tmp_path: Path, name: str) -> None:
    for number in range(2):
        picture(size=(8 + number, 8)).save(tmp_path / f"{number}.png")
    rows = [{"file_name": name.format(n, folder=tmp_path), "question": f"Q{n}?"} for n in range(2)]
    write(tmp_path / "metadata.jsonl", [*rows, {"file_name": None, "question": "No picture?"}])
    found, _ = read(tmp_path, tmp_path / "prepared")
    assert [(one.id, len(one.images)) for one in found] == [
        ("metadata-0", 1),
        ("metadata-1", 1),
        ("metadata-2", 0),
    ]


def test_pictures_of_a_folder_that_its_table_does_not_name_are_said(tmp_path: Path) -> None:
    for number in range(2):
        picture(size=(8 + number, 8)).save(tmp_path / f"{number}.png")
    write(tmp_path / "metadata.jsonl", [{"file_name": "0.png", "question": "Which?"}])
    with pytest.raises(
        DataError, match=r"1 images of the folder have no row, one is 1\.png .*on_bad_row=skip"
    ):
        read(tmp_path, tmp_path / "prepared")
