"""Rows of JSON, JSONL, CSV, TSV and Parquet files as they stand there. Columns are in columns.py."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_distill.errors import DataError, did_you_mean

RawRow = dict[str, Any] | list[Any]
TABLE_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
# Images in base64 make cells far larger than the csv module's default of 128 KiB.
_CELL_LIMIT = 1 << 30


def read_table(path: Path, *, list_key: str | None = None) -> Iterator[tuple[str, RawRow]]:
    """Yield (where, row) for every row of a file; `where` names file and row, counted from 0, in errors.

    A row is a mapping of columns, or in JSON a list of cells. `list_key` is the key of the list in a JSON
    file whose top level is an object.

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


def _rows(path: Path, *, suffix: str, list_key: str | None) -> Iterator[RawRow]:
    if suffix == ".parquet":
        return _parquet_rows(path)
    if suffix == ".json":
        return _json_rows(path, list_key=list_key)
    if suffix in (".jsonl", ".ndjson"):
        return _jsonl_rows(path)
    return _csv_rows(path, delimiter="\t" if suffix == ".tsv" else ",")


def _json_rows(path: Path, *, list_key: str | None) -> Iterator[RawRow]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
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


def _jsonl_rows(path: Path) -> Iterator[RawRow]:
    with path.open(encoding="utf-8-sig") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path} line {number}: not valid JSON: {error}") from None
            yield _checked(row, where=f"{path} line {number}")


def _checked(row: Any, *, where: str) -> RawRow:
    if not isinstance(row, (dict, list)):
        raise DataError(f"{where}: expected an object or a list of cells, got {type(row).__name__}")
    return row


def _csv_rows(path: Path, *, delimiter: str) -> Iterator[RawRow]:
    before = csv.field_size_limit(_CELL_LIMIT)
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, delimiter=delimiter, strict=True)
            names = next(reader, [])
            if len(set(names)) != len(names):
                raise DataError(f"{path}: column names stand twice in the first line: {', '.join(names)}")
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(names):
                    raise DataError(
                        f"{path} line {reader.line_num}: expected {len(names)} cells, got {len(cells)}"
                    )
                yield dict(zip(names, cells, strict=True))
    finally:
        csv.field_size_limit(before)


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    with pq.ParquetFile(path) as file:
        # Small batches: rows may hold whole images.
        for batch in file.iter_batches(batch_size=64):
            yield from batch.to_pylist()
