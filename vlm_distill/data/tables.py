"""Rows of JSON, JSONL, CSV, TSV and Parquet files as they stand there. Columns are in columns.py."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_distill.data.bad_rows import RowError
from vlm_distill.data.unicode_text import KEEP_BYTES, is_unicode
from vlm_distill.errors import DataError, did_you_mean, one_line

RawRow = dict[str, Any] | list[Any]
TABLE_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
# Images in base64 make cells far larger than the csv module's default of 128 KiB.
_CELL_LIMIT = 1 << 30
_NOT_A_NUMBER = ("nan", "NaN")


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
        raise DataError(f"{path}: damaged after row {number}: {' '.join(str(error).split())}") from None


def _rows(path: Path, *, suffix: str, list_key: str | None) -> Iterator[RawRow | RowError]:
    if suffix == ".parquet":
        return _parquet_rows(path)
    if suffix == ".json":
        return _json_rows(path, list_key=list_key)
    if suffix in (".jsonl", ".ndjson"):
        return _jsonl_rows(path)
    return _csv_rows(path, delimiter="\t" if suffix == ".tsv" else ",")


def _json_rows(path: Path, *, list_key: str | None) -> Iterator[RawRow | RowError]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None
    if list_key is not None:
        if not isinstance(value, dict) or list_key not in value:
            known = did_you_mean(list_key, value) if isinstance(value, dict) else "the top level is no object"
            raise DataError(f"{path}: no key {list_key!r} (list_key); {known}")
        value = value[list_key]
    if not isinstance(value, list):
        hint = (
            f"; name the key of the list as list_key: {', '.join(value)}" if isinstance(value, dict) else ""
        )
        raise DataError(f"{path}: expected a list of rows, got {type(value).__name__}{hint}")
    for number, row in enumerate(value):
        yield _checked(row, where=f"{path} row {number}")


def _jsonl_rows(path: Path) -> Iterator[RawRow | RowError]:
    with path.open(encoding="utf-8-sig", errors=KEEP_BYTES) as handle:
        for number, line in enumerate(handle, start=1):
            if line.strip():
                yield _jsonl_row(line, where=f"{path} line {number}")


def _jsonl_row(line: str, *, where: str) -> RawRow | RowError:
    if not is_unicode(line):
        return _broken(f"{where}: expected UTF-8 text")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return _broken(f"{where}: not valid JSON: {error}")
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
        with path.open(encoding="utf-8-sig", errors=KEEP_BYTES, newline="") as handle:
            reader = csv.reader(handle, delimiter=delimiter, strict=True)
            names = next(reader, [])
            if not is_unicode("".join(names)):
                raise DataError(f"{path} line 1: expected UTF-8 text")
            if len(set(names)) != len(names):
                raise DataError(f"{path}: column names stand twice in the first line: {', '.join(names)}")
            for cells in reader:
                if cells:
                    yield _csv_row(names, cells, where=f"{path} line {reader.line_num}")
    finally:
        csv.field_size_limit(before)


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
        # Small batches: rows may hold whole images.
        for batch in file.iter_batches(batch_size=64):
            yield from _batch_rows(batch, path=path, first=number)
            number += batch.num_rows


def _batch_rows(batch: pa.RecordBatch, *, path: Path, first: int) -> list[RawRow | RowError]:
    """Return the rows of a batch; where a value has no Python form (the year 10,000), the others are read."""
    try:
        rows: list[RawRow | RowError] = batch.to_pylist()
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            return [_broken(f"{path} row {first}: a cell cannot be read: {one_line(error)}")]
        singles = ((batch.slice(row, 1), first + row) for row in range(batch.num_rows))
        return [row for one, number in singles for row in _batch_rows(one, path=path, first=number)]
    return rows
