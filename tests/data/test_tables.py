import csv
import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlm_distill.data.tables import list_keys, read_table
from vlm_distill.errors import DataError

ROWS = [{"q": "what, then?", "n": "1"}, {"q": 'say "so"\nagain', "n": "2"}, {"q": "größer", "n": "3"}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", ["json", "jsonl", "ndjson", "csv", "tsv", "parquet"])
def test_every_kind_of_table_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"t.{suffix}", ROWS)
    assert [row for _, row in read_table(path)] == ROWS
    assert [where for where, _ in read_table(path)][2] == f"{path} row 2"


def test_json_rows_may_be_lists(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text('[["what?", "red", 0]]')
    assert [row for _, row in read_table(path)] == [["what?", "red", 0]]


def test_the_list_of_a_json_object_is_named_by_its_key(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text('{"info": 1, "questions": [{"q": 1}]}')
    assert [row for _, row in read_table(path, list_key="questions")] == [{"q": 1}]
    with pytest.raises(DataError, match=r"expected a list of rows.*list_key: questions"):
        list(read_table(path))
    with pytest.raises(DataError, match="did you mean 'questions'"):
        list(read_table(path, list_key="question"))


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("t.csv", "q;n\nwhat, then?;1\ngrößer;2\n", "utf-8"),
        ("t.csv", "q\tn\r\nwhat, then?\t1\r\ngrößer\t2", "utf-8"),
        ("t.tsv", 'q,n\n"what, then?",1\ngrößer,2\n', "utf-8"),
        ("t.csv", 'q, n\n"what, then?", 1\ngrößer, 2\n', "utf-8"),
        ("t.csv", '\n"q", "n"\n"what, then?", "1"\n\ngrößer, 2\n', "utf-8-sig"),
        ("t.tsv", "q\tn\nwhat, then?\t1\ngrößer\t2\n", "utf-16"),
        ("t.csv", "q;n\nwhat, then?;1\ngrößer;2\n", "utf-32"),
        ("t.jsonl", '{"q": "what, then?", "n": "1"}\n{"q": "größer", "n": "2"}', "utf-16"),
        ("t.json", '[{"q": "what, then?", "n": "1"}, {"q": "größer", "n": "2"}]', "utf-16"),
    ],
)
def test_the_first_line_and_bytes_say_how_a_table_is_written(
    tmp_path: Path, name: str, text: str, encoding: str
) -> None:
    (tmp_path / name).write_bytes(text.encode(encoding))
    rows = [row for _, row in read_table(tmp_path / name)]
    assert rows == [{"q": "what, then?", "n": "1"}, {"q": "größer", "n": "2"}]


def test_a_space_after_a_comma_is_text_where_the_first_line_has_none(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("q,n\nwhat, then\n")
    assert [row for _, row in read_table(tmp_path / "t.csv")] == [{"q": "what", "n": " then"}]


def test_columns_without_a_name_are_numbered_where_there_are_several(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text(",q\n0,a\n")
    (tmp_path / "two.csv").write_text(",q,\n0,a,\n")
    assert [row for _, row in read_table(tmp_path / "one.csv")] == [{"": "0", "q": "a"}]
    expected = [{"Unnamed: 0": "0", "q": "a", "Unnamed: 2": ""}]
    assert [row for _, row in read_table(tmp_path / "two.csv")] == expected


def test_two_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([[1], [2]], names=["a", "a"]), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t.parquet: two columns are called 'a'"):
        list(read_table(tmp_path / "t.parquet"))


def test_the_keys_of_rows_in_a_json_object_are_known(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text('{"info": {"a": 1}, "names": ["a"], "none": [], "questions": [{"q": 1}]}')
    assert list_keys(path) == ["questions"]
    path.write_text('[{"q": 1}]')
    assert list_keys(path) == list_keys(tmp_path / "t.csv") == list_keys(tmp_path / "nothing.json") == []


def test_csv_cells_may_be_larger_than_the_default_limit(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    path = write(tmp_path / "t.csv", [{"image": "a" * 300_000}])
    assert len(next(iter(read_table(path)))[1]["image"]) == 300_000
    assert csv.field_size_limit() == before


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfq\nwhat?\n")
    assert [row for _, row in read_table(path)] == [{"q": "what?"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.json", b"[{", "not valid JSON"),
        ("t.json", b"3", "expected a list of rows, each an object, got int"),
        ("t.json", b"[" * 100_000, "not valid JSON"),
        ("t.json", b"[" + b"1" * 5000 + b"]", "not valid JSON"),
        ("t.json", b'[{"a": "\xff"}]', "expected UTF-8"),
        ("t.csv", b"\xff,b\n1,2\n", "line 1: expected UTF-8"),
        ("t.csv", b'a,b\n"1,2\n3,4\n', "damaged after row 0: unexpected end of data"),
        ("t.csv", b"a,a\n1,2\n", "the column name 'a' stands twice in the first line"),
        ("t.csv", b"a, a\n1,2\n", "the column name 'a' stands twice in the first line"),
        ("t.csv", "a,b\n1,2\n".encode("utf-16-le"), "line 1: expected UTF-8 text; save the file in that"),
        ("t.json", b'[{"a": {"b": 1, "b": 2}}]', "not valid JSON: the key 'b' stands twice in one object"),
        ("t.json", b'{"a": 1}\n{"a": 2}\n', "a file with an object on every line is a .jsonl file"),
        ("t.parquet", b"PAR1 and then nothing", "damaged"),
        ("t.xlsx", b"", "unknown kind of file; expected one of .json"),
    ],
)
def test_a_damaged_table_is_an_error_that_names_file_and_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        list(read_table(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.json", b'[3, {"a": "1"}]', "row 0: expected an object or a list of cells, got int"),
        ("t.jsonl", b'{"a": \n{"a": "1"}', "line 1: not valid JSON"),
        ("t.jsonl", b'{"a": "\xff"}\n\n{"a": "1"}', "line 1: expected UTF-8"),
        ("t.jsonl", b'{"a": 1, "a": 2}\n{"a": "1"}', "line 1: not valid JSON: the key 'a' stands twice"),
        ("t.jsonl", b"[" * 100_000 + b'\n{"a": "1"}', "line 1: not valid JSON"),
        ("t.jsonl", b"1" * 5000 + b'\n{"a": "1"}', "line 1: not valid JSON"),
        ("t.csv", b"a\n1,2\n1\n", "line 2: expected 1 cells, got 2"),
        ("t.csv", b"a\n\xff\n1\n", "line 2: expected UTF-8"),
    ],
)
def test_a_row_that_cannot_be_read_is_what_is_wrong_with_it_and_the_next_one_is_read(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    (_, bad), (where, good) = read_table(path)
    assert (bad.reason, good, where) == ("broken_row", {"a": "1"}, f"{path} row 1")
    assert f"{path} {message}" in str(bad)


def test_a_parquet_value_without_a_python_form_is_wrong_with_its_row_alone(tmp_path: Path) -> None:
    days = pa.array([0, 10_000_000, 1], pa.int32()).cast(pa.date32())
    pq.write_table(pa.table({"day": days}), tmp_path / "t.parquet")
    first, bad, last = [row for _, row in read_table(tmp_path / "t.parquet")]
    assert (first, last) == ({"day": date(1970, 1, 1)}, {"day": date(1970, 1, 2)})
    assert f"{tmp_path / 't.parquet'} row 1: a cell cannot be read: " in str(bad)


@pytest.mark.parametrize("kind", [pa.float32(), pa.float16()])
def test_short_floats_of_parquet_read_as_they_are_written(tmp_path: Path, kind: pa.DataType) -> None:
    values = pa.array(np.array([0.1, 3], kind.to_pandas_dtype()), kind)
    column = pa.concat_arrays([values, pa.nulls(1, kind)])
    pq.write_table(pa.table({"a": column}), tmp_path / "t.parquet")
    assert [row for _, row in read_table(tmp_path / "t.parquet")] == [{"a": 0.1}, {"a": 3.0}, {"a": None}]


def test_in_csv_a_number_that_is_none_is_null(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\nnan,1\nNaN,nano\n")
    assert [row for _, row in read_table(path)] == [{"a": None, "b": "1"}, {"a": None, "b": "nano"}]


def test_a_missing_file_is_named_with_its_absolute_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file \(looked at /"):
        list(read_table(tmp_path / "t.json"))
