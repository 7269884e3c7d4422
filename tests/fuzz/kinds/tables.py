"""Tables of one's own, in every format, with odd cells, columns, bytes and conversations."""

import datetime
import os
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.case import Case
from tests.fuzz.damage import damage_bytes, damaged_text, replace_file, write_text
from tests.fuzz.kinds.rows import (
    FORMATS,
    Row,
    run_on,
    take_table,
    valid_conversations,
    valid_rows,
    write_rows,
)
from tests.fuzz.values import TEXTS, mutated, odd_value

NAMES = (
    "Question",
    "question ",
    "questoin",
    "prompt",
    "instruction",
    "input",
    "system",
    "context",
    "options",
    "text",
    "images",
    "image_path",
    "picture",
    "response",
    "output",
    "answers",
    "label",
    "question_id",
    "ID",
    "messages",
    "conversations",
    "",
    "a.b",
    "{x}",
    "x?",
    "0",
    "<image>",
)
ROLES = (
    "system",
    "user",
    "assistant",
    "human",
    "gpt",
    "tool",
    "function",
    "",
    "User",
    None,
    ["user"],
    {"role": "user"},
    7,
)
SPECIAL = (
    "<image>",
    "<|im_end|>",
    "<|im_start|>user\n",
    "</s>",
    "<pad>",
    "<|image_pad|>",
    "[INST]",
    "<unk>",
    "\u2581",
)


def cells(random: Random, folder: Path, material: Path) -> Case:
    """Put odd values into cells, of one column through all rows or here and there."""
    rows = valid_rows()
    for _ in range(random.randrange(1, 4)):
        name = random.choice(list(rows[0]))
        value = random.choice((odd_value(random), datetime.date(2024, 1, 2).isoformat()))
        for row in rows if random.random() < 0.2 else random.sample(rows, 2):
            row[name] = value
    return _written(random, folder, material, rows)


def typed_cells(random: Random, folder: Path, material: Path) -> Case:
    """Write Parquet columns of types that text formats do not have."""
    rows = valid_rows()
    values: tuple[Any, ...] = (
        datetime.date(2024, 1, 2),
        datetime.datetime(2024, 1, 2, 3, 4, 5),
        datetime.timedelta(days=1),
        float("nan"),
        b"\x00\xff",
        b"",
        2**62,
        True,
        ["a", None],
        {"bytes": b"x", "path": None},
        {"bytes": None, "path": None},
    )
    name, value = random.choice(list(rows[0])), random.choice(values)
    for row in rows if random.random() < 0.5 else rows[:2]:
        row[name] = value
    for row in random.sample(rows, random.randrange(3)):
        row[name] = None
    take_table(material, folder)
    path = folder / "table.parquet"
    write_rows(path, rows)
    return run_on(path, random, rows=len(rows))


def columns(random: Random, folder: Path, material: Path) -> Case:
    """Rename, drop, add and double columns, in all rows or from some row on."""
    rows = valid_rows()
    for _ in range(random.randrange(1, 3)):
        name, other = random.choice(list(rows[0])), random.choice(NAMES)
        start = random.choice((0, 0, 1, 3))
        match random.choice(("renamed", "gone", "added", "copied")):
            case "renamed":
                rows[start:] = [_renamed(row, name, other) for row in rows[start:]]
            case "gone":
                rows[start:] = [{key: row[key] for key in row if key != name} for row in rows[start:]]
            case "added":
                value = odd_value(random)
                rows[start:] = [{**row, other: value} for row in rows[start:]]
            case _:
                rows[start:] = [{**row, other: row.get(name)} for row in rows[start:]]
    return _written(random, folder, material, rows)


def repeated(random: Random, folder: Path, material: Path) -> Case:
    """Repeat rows, or ids of rows that differ."""
    rows = valid_rows()
    for row in random.sample(rows, random.randrange(1, 4)):
        again = {**row}
        if random.random() < 0.5:
            again["question"] += random.choice((" ", "?", "\u200b"))
        if random.random() < 0.5:
            again["id"] = random.choice((f" {row['id']}", row["id"].upper(), f"{row['id']}-2"))
        rows.insert(random.randrange(len(rows) + 1), again)
    return _written(random, folder, material, rows)


def conversations(random: Random, folder: Path, material: Path) -> Case:
    """Change turns, roles and contents of conversations."""
    rows = valid_conversations()
    for row in random.sample(rows, random.randrange(1, 4)):
        match random.choice(("mutated", "role", "order", "gone", "twice", "style", "parts")):
            case "mutated":
                row["conversations"] = mutated(random, row["conversations"], times=2)
            case "role":
                random.choice(row["conversations"])["from"] = random.choice(ROLES)
            case "order":
                random.shuffle(row["conversations"])
            case "gone":
                row["conversations"] = row["conversations"][: random.randrange(4)]
            case "twice":
                row["conversations"] *= 2
            case "style":
                turns = row.pop("conversations")
                row["messages"] = [{"role": turn["from"], "content": turn["value"]} for turn in turns]
            case _:
                random.choice(row["conversations"])["value"] = [
                    {"type": "text", "text": "x"},
                    odd_value(random),
                ]
    return _written(random, folder, material, rows)


def texts(random: Random, folder: Path, material: Path) -> Case:
    """Put markers, special tokens and other odd texts into questions and answers."""
    rows = random.choice((valid_rows, valid_conversations))()
    for row in random.sample(rows, random.randrange(1, 5)):
        piece = random.choice((random.choice(SPECIAL), random.choice(TEXTS)))
        _insert(random, row, piece)
    return _written(random, folder, material, rows)


def table_bytes(random: Random, folder: Path, material: Path) -> Case:
    """Damage the bytes of a table, or put something else in its place."""
    take_table(material, folder)
    path = folder / f"table{random.choice(FORMATS)}"
    write_rows(path, valid_rows())
    match random.choice(("bytes", "bytes", "text", "other", "suffix", "encoding")):
        case "text" if path.suffix != ".parquet":
            write_text(path, damaged_text(random, path.read_text()))
        case "other":
            replace_file(random, path)
        case "suffix":
            path = path.rename(path.with_suffix(random.choice((*FORMATS, ".txt", ".gz", ""))))
        case "encoding" if path.suffix != ".parquet":
            path.write_bytes(
                path.read_text().encode(random.choice(("utf-16", "utf-32", "cp037", "utf-8-sig")))
            )
        case _:
            damage_bytes(random, path)
    return run_on(path, random)


def table_names(random: Random, folder: Path, material: Path) -> Case:
    """Give tables names that mean something to globs, shells, Markdown or file systems."""
    take_table(material, folder)
    name = random.choice(
        ("a[1].jsonl", "*.jsonl", "a b.jsonl", "`x`.jsonl", "-x.jsonl", ".jsonl", "\u00e9.jsonl", "a\n.jsonl")
    )
    path = folder / name
    write_rows(path, valid_rows())
    if random.random() < 0.3:
        os.link(path, folder / "other.jsonl")
    return run_on(path, random, rows=6)


def _written(random: Random, folder: Path, material: Path, rows: list[Row]) -> Case:
    take_table(material, folder)
    path = folder / f"table{random.choice(FORMATS)}"
    write_rows(path, rows)
    return run_on(path, random, rows=len(rows))


def _renamed(row: Row, name: str, other: str) -> Row:
    return {other if key == name else key: value for key, value in row.items()}


def _insert(random: Random, row: Row, piece: str) -> None:
    turn, key = (
        (random.choice(row["conversations"]), "value")
        if "conversations" in row
        else (row, random.choice(("question", "answer")))
    )
    text = turn[key]
    at = random.randrange(len(text) + 1)
    turn[key] = random.choice((piece, text[:at] + piece + text[at:]))
