"""Valid rows that tables are made of, and the ways to write them down."""

import csv
import io
import json
import math
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.case import OUTPUT, Case
from tests.fuzz.damage import write_text
from tests.fuzz.material import TABLE, take
from tests.tiny_run import COLORS

FORMATS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
Row = dict[str, Any]


def valid_rows(number: int = 6) -> list[Row]:
    return [
        {
            "id": f"row-{at}",
            "question": f"What color is shape {at}?",
            "image": f"images/train_{COLORS[at]}.png",
            "answer": COLORS[at],
        }
        for at in range(number)
    ]


def valid_conversations(number: int = 6) -> list[Row]:
    return [
        {
            "id": f"talk-{at}",
            "image": f"images/train_{COLORS[at]}.png",
            "conversations": [
                {"from": "human", "value": f"<image>\nWhat color is shape {at}?"},
                {"from": "gpt", "value": COLORS[at]},
                {"from": "human", "value": "Is there a red circle?"},
                {"from": "gpt", "value": "no"},
            ],
        }
        for at in range(number)
    ]


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write rows in the format of the suffix, as far as it can hold them."""
    if path.suffix == ".json":
        write_text(path, json.dumps(rows))
    elif path.suffix == ".jsonl":
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        _write_parquet(path, rows)
    else:
        _write_lines(path, rows, delimiter="\t" if path.suffix == ".tsv" else ",")


def _names(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _write_lines(path: Path, rows: list[Row], *, delimiter: str) -> None:
    names, text = _names(rows), io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(names)
    writer.writerows([[_cell(row.get(name)) for name in names] for row in rows])
    write_text(path, text.getvalue())


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (dict, list)) else value


def _write_parquet(path: Path, rows: list[Row]) -> None:
    names = _names(rows)
    columns = {name: _column([row.get(name) for row in rows]) for name in names}
    pq.write_table(pa.table(columns), path)


def _column(values: list[Any]) -> Any:
    """Return a column of one type; what has several types is written as text."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError):
        return pa.array([_plain(value) for value in values], pa.string())


def _plain(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text.encode("utf-8", "replace").decode()


def run_on(path: Path, random: Random, *, rows: int | None = None) -> Case:
    """Return the case that distils on a table of one's own, with rows that cannot be used skipped or not."""
    overrides = [f"data.path={json.dumps(path.name)}", f"output={OUTPUT}"]
    if random.random() < 0.6:
        overrides.append('data.overrides=["on_bad_row=skip"]')
    return Case(commands=(("run", TABLE, *overrides),), rows=rows)


def take_table(material: Path, folder: Path) -> None:
    """Copy what a run on a table of one's own needs beside the table."""
    take(material, folder, "teacher", "images", TABLE)
