"""Rows of JSON, JSONL, CSV, TSV and Parquet files as they stand there. Columns are in columns.py."""

import codecs
import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_distill.data.bad_rows import RowError
from vlm_distill.data.unicode_text import KEEP_BYTES, is_unicode
from vlm_distill.errors import DataError, did_you_mean, few, one_line

RawRow = dict[str, Any] | list[Any]
TABLE_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
# Images in base64 make cells far larger than the csv module's default of 128 KiB.
_CELL_LIMIT = 1 << 30
_NOT_A_NUMBER = ("nan", "NaN")
# What spreadsheets separate cells by, which follows the language of the machine and not the name of the file.
_DELIMITERS = (",", "\t", ";")
# The longer mark first: that of UTF-16 is how the one of UTF-32 begins.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_table(path: Path, *, list_key: str | None = None) -> Iterator[tuple[str, RawRow | RowError]]:
    """Yield (where, row) for every row of a file; `where` names file and row, counted from 0, in errors.

    A row is a mapping of columns, or in JSON a list of cells; one that cannot be read is what is wrong with
    it. `list_key` is the key of the list in a JSON file whose top level is an object.

    Raises:
        DataError: the file is missing, of an unknown kind, or damaged.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise DataError(f"{path}: unknown kind of file; expected one of {', '.join(TABLE_SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file (looked at {path.absolute()})")
    if list_key is not None and suffix != ".json":
        raise DataError(f"{path}: list_key is for .json files, whose top level may be an object")
    rows = _rows(path, suffix=suffix, list_key=list_key)
    number = 0
    try:
        for number, row in enumerate(rows):
            yield f"{path} row {number}", row
    except UnicodeDecodeError:
        raise DataError(f"{path}: expected UTF-8 text after row {number}") from None
    except (pa.ArrowException, csv.Error, OSError) as error:
        raise DataError(f"{path}: damaged after row {number}: {one_line(error)}") from None


def _rows(path: Path, *, suffix: str, list_key: str | None) -> Iterator[RawRow | RowError]:
    if suffix == ".parquet":
        return _parquet_rows(path)
    if suffix == ".json":
        return _json_rows(path, list_key=list_key)
    if suffix in (".jsonl", ".ndjson"):
        return _jsonl_rows(path)
    return _csv_rows(path, delimiter="\t" if suffix == ".tsv" else ",")


def list_keys(path: Path) -> list[str]:
    """Return the keys of a JSON file whose top level is an object that hold rows, none for other files.

    Raises:
        DataError: it is not valid JSON.
    """
    if path.suffix.lower() != ".json" or not path.is_file():
        return []
    with path.open(encoding=_encoding(path), errors=KEEP_BYTES) as handle:
        start = handle.read(1 << 10)
    # A list of rows may be large; it is not read for this.
    if not start.lstrip().startswith("{"):
        return []
    return _row_keys(_json_value(path))


def _row_keys(value: dict[str, Any]) -> list[str]:
    return [
        key for key, rows in value.items() if isinstance(rows, list) and rows and isinstance(rows[0], dict)
    ]


def _json_rows(path: Path, *, list_key: str | None) -> Iterator[RawRow | RowError]:
    value = _json_value(path)
    if list_key is not None:
        if not isinstance(value, dict) or list_key not in value:
            known = did_you_mean(list_key, value) if isinstance(value, dict) else "the top level is no object"
            raise DataError(f"{path}: no key {list_key!r} (list_key); {known}")
        value = value[list_key]
    if not isinstance(value, list):
        keys = _row_keys(value) if isinstance(value, dict) else []
        hint = f"; a recipe names the key of the list as list_key: {few(keys)}" if keys else ""
        raise DataError(f"{path}: expected a list of rows, each an object, got {type(value).__name__}{hint}")
    for number, row in enumerate(value):
        yield _checked(row, where=f"{path} row {number}")


def _json_value(path: Path) -> Any:
    text = path.read_text(encoding=_encoding(path))
    try:
        return _loads(text)
    except (ValueError, RecursionError) as error:
        lines = "; a file with an object on every line is a .jsonl file" if "Extra data" in str(error) else ""
        raise DataError(f"{path}: not valid JSON: {error}{lines}") from None


def _loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, in which of two equal keys one would win without a word."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"the key {_twice([key for key, _ in pairs])!r} stands twice in one object")
    return found


def _twice(names: list[str]) -> str | None:
    """Return the first name that stands twice."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _encoding(path: Path) -> str:
    """Return the encoding that the first bytes of a file name, UTF-8 if they name none."""
    with path.open("rb") as handle:
        start = handle.read(4)
    return next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8-sig")


def _jsonl_rows(path: Path) -> Iterator[RawRow | RowError]:
    with path.open(encoding=_encoding(path), errors=KEEP_BYTES) as handle:
        for number, line in enumerate(handle, start=1):
            if line.strip():
                yield _jsonl_row(line, where=f"{path} line {number}")


def _jsonl_row(line: str, *, where: str) -> RawRow | RowError:
    if not is_unicode(line):
        return _broken(f"{where}: expected UTF-8 text")
    try:
        row = _loads(line)
    except (ValueError, RecursionError) as error:
        lines = "; a list over several lines is a .json file" if line.lstrip().startswith("[") else ""
        return _broken(f"{where}: not valid JSON: {error}{lines}")
    return _checked(row, where=where)


def _checked(row: Any, *, where: str) -> RawRow | RowError:
    if not isinstance(row, (dict, list)):
        return _broken(f"{where}: expected an object or a list of cells, got {type(row).__name__}")
    return row


def _broken(message: str) -> RowError:
    return RowError(message, reason="broken_row")


def _csv_rows(path: Path, *, delimiter: str) -> Iterator[RawRow | RowError]:
    before = csv.field_size_limit(_CELL_LIMIT)
    try:
        with path.open(encoding=_encoding(path), errors=KEEP_BYTES, newline="") as handle:
            delimiter, spaced = _dialect(handle, path, delimiter=delimiter)
            reader = csv.reader(handle, delimiter=delimiter, skipinitialspace=spaced, strict=True)
            names = _column_names(_first_line(reader), path=path)
            for cells in reader:
                if cells:
                    yield _csv_row(names, cells, where=f"{path} line {reader.line_num}")
    finally:
        csv.field_size_limit(before)


def _dialect(handle: TextIO, path: Path, *, delimiter: str) -> tuple[str, bool]:
    """Return what separates the names in the first line, and whether a space follows it there.

    The expected delimiter is tried first: a file of one column has none.
    """
    for tried in sorted(_DELIMITERS, key=lambda one: one != delimiter):
        names = _first_line(csv.reader(handle, delimiter=tried))
        handle.seek(0)
        if len(names) > 1:
            return tried, any(name.startswith(" ") for name in names[1:])
    return delimiter, False


def _first_line(lines: Iterable[list[str]]) -> list[str]:
    """Return the cells of the first line that is not blank, none of an empty file."""
    return next((cells for cells in lines if cells), [])


def _column_names(names: list[str], *, path: Path) -> list[str]:
    """Return the names in the first line; several columns without a name are numbered from 0."""
    if not is_unicode("".join(names)) or "\0" in "".join(names):
        raise DataError(f"{path} line 1: expected UTF-8 text; save the file in that encoding")
    if names.count("") > 1:
        names = [name or f"Unnamed: {number}" for number, name in enumerate(names)]
    if twice := _twice(names):
        raise DataError(f"{path}: the column name {twice!r} stands twice in the first line")
    return names


def _csv_row(names: list[str], cells: list[str], *, where: str) -> RawRow | RowError:
    if len(cells) != len(names):
        return _broken(f"{where}: expected {len(names)} cells, got {len(cells)}")
    if not is_unicode("".join(cells)):
        return _broken(f"{where}: expected UTF-8 text")
    # A number that is none has no other form here than the text that others write for it.
    return {name: None if text in _NOT_A_NUMBER else text for name, text in zip(names, cells, strict=True)}


def _parquet_rows(path: Path) -> Iterator[RawRow | RowError]:
    number = 0
    with pq.ParquetFile(path) as file:
        if twice := _twice(file.schema_arrow.names):
            raise DataError(f"{path}: two columns are called {twice!r}")
        # Small batches: rows may hold whole images.
        for batch in file.iter_batches(batch_size=64):
            yield from _batch_rows(batch, path=path, first=number)
            number += batch.num_rows


def _with_shown_floats(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch whose floats of 32 and 16 bits read as they are written: 0.1 has more digits in 64."""
    for number, field in enumerate(batch.schema):
        if pa.types.is_float32(field.type) or pa.types.is_float16(field.type):
            short = field.type.to_pandas_dtype()
            values = [one and float(str(short(one))) for one in batch.column(number).to_pylist()]
            batch = batch.set_column(number, field.name, pa.array(values, pa.float64()))
    return batch


def _batch_rows(batch: pa.RecordBatch, *, path: Path, first: int) -> list[RawRow | RowError]:
    """Return the rows of a batch; where a value has no Python form (the year 10,000), the others are read."""
    try:
        rows: list[RawRow | RowError] = _with_shown_floats(batch).to_pylist()
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            return [_broken(f"{path} row {first}: a cell cannot be read: {one_line(error)}")]
        singles = ((batch.slice(row, 1), first + row) for row in range(batch.num_rows))
        return [row for one, number in singles for row in _batch_rows(one, path=path, first=number)]
    return rows
