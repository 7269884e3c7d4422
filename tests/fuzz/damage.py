"""Files that are cut, flipped, replaced by other things or gone."""

import json
import os
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.values import mutated, odd_value

PIECES = (
    "\t",
    "- ",
    ": ",
    "{",
    "]",
    '"',
    "'",
    "&a ",
    "*a",
    "!!python/object:os.system ",
    "%",
    "#",
    "? ",
    "\x00",
    "\n\n",
)
LARGE = ("9" * 5_000, "[" * 10_000, "{a: " * 2_000, "x" * 1_000_000)


def damaged_bytes(random: Random, data: bytes) -> bytes:
    """Return bytes with one damage."""
    at = random.randrange(len(data) + 1)
    match random.choice(("flip", "flip", "cut", "empty", "insert", "zeros", "twice", "mark")):
        case "flip" if at < len(data):
            return data[:at] + bytes([data[at] ^ (1 << random.randrange(8))]) + data[at + 1 :]
        case "cut":
            return data[:at]
        case "empty":
            return b""
        case "zeros":
            return data[:at] + bytes(min(64, len(data) - at)) + data[at + 64 :]
        case "twice":
            return data + data
        case "mark":
            return random.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"PK\x03\x04", b"\x80")) + data
        case _:
            return data[:at] + random.randbytes(random.randrange(1, 9)) + data[at:]


def damaged_text(random: Random, text: str) -> str:
    """Return text with one change of its lines."""
    lines = text.splitlines(keepends=True) or [""]
    at = random.randrange(len(lines))
    match random.choice(("gone", "twice", "cut", "insert", "indent", "large", "shuffled")):
        case "gone":
            del lines[at]
        case "twice":
            lines.insert(at, lines[at])
        case "cut":
            lines[at:] = [lines[at][: random.randrange(len(lines[at]) + 1)]]
        case "indent":
            lines[at] = random.choice(("  ", "\t", " ")) + lines[at]
        case "large":
            lines[at] = lines[at].rstrip("\n") + random.choice(LARGE) + "\n"
        case "shuffled":
            random.shuffle(lines)
        case _:
            column = random.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:column] + random.choice(PIECES) + lines[at][column:]
    return "".join(lines)


def write_text(path: Path, text: str) -> None:
    """Write text that may hold what is no UTF-8."""
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def damage_bytes(random: Random, path: Path) -> None:
    path.write_bytes(damaged_bytes(random, path.read_bytes()))


def damage_json(random: Random, path: Path) -> None:
    """Change a value of a file of JSON or, line by line, of JSONL."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".jsonl":
        write_text(path, json.dumps(mutated(random, json.loads(text), times=random.choice((1, 1, 2)))))
        return
    rows: list[Any] = [json.loads(line) for line in text.splitlines()]
    if rows:
        at = random.randrange(len(rows))
        rows[at] = random.choice((mutated(random, rows[at]), odd_value(random)))
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def replace_file(random: Random, path: Path) -> None:
    """Put something that is no such file where a file stands, or nothing."""
    path.unlink()
    match random.choice(("gone", "directory", "loop", "pipe", "dangling", "device")):
        case "directory":
            path.mkdir()
        case "loop":
            path.symlink_to(path.name)
        case "pipe":
            os.mkfifo(path)
        case "dangling":
            path.symlink_to("nothing")
        case "device":
            path.symlink_to("/dev/null")
        case _:
            pass


def files_below(folder: Path) -> list[Path]:
    """Return the regular files of a folder in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
