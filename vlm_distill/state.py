"""The small JSON files that say what a folder holds: each is a record, written and read back here alone.

A file carries a checksum of what it says, so that one that was cut, flipped or edited is a line with its name
and what to do, whoever reads it. The records lie beside their owners. No torch.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from vlm_distill.errors import DataError, one_line
from vlm_distill.faults import explained
from vlm_distill.files import hash_json, read_json, refuse_pipe, write_json

T = TypeVar("T")


class OtherVersionError(DataError):
    """A file of another version of this package, whose content cannot be judged."""


CHECKSUM = "checksum"


def write_state(path: Path, record: Any) -> None:
    """Write a record, which is a dataclass, atomically and with its checksum."""
    values = asdict(record)
    write_json(path, {**values, CHECKSUM: hash_json(values)})


def read_state(kind: type[T], path: Path, *, remedy: str) -> T:
    """Return the record in a file; `remedy` says what to do about one that cannot be used.

    A file without a checksum is that of an earlier version.

    Raises:
        DataError: it is missing, cannot be read, or is not what was written.
    """
    with _readable(path, remedy=remedy):
        values = read_json(path)
    checksum = values.pop(CHECKSUM, None) if isinstance(values, dict) else None
    record = _decoded(kind, values, path, remedy=remedy)
    if checksum is not None and checksum != hash_json(values):
        raise damaged(path, "its checksum differs", remedy=remedy)
    return record


def find_state(kind: type[T], path: Path, *, remedy: str) -> T | None:
    """Return the record in a file, None where there is no such file; DataError as `read_state`."""
    return read_state(kind, path, remedy=remedy) if path.exists() else None


def read_rows(kind: type[T], path: Path, *, remedy: str) -> list[T]:
    """Return the records in the lines of a JSONL file; DataError where it is missing or a line is none."""
    refuse_pipe(path)
    with _readable(path, remedy=remedy), path.open(encoding="utf-8") as handle:
        lines = [json.loads(line) for line in handle]
    return [
        _decoded(kind, values, Path(f"{path}:{number}"), remedy=remedy)
        for number, values in enumerate(lines, start=1)
    ]


@contextmanager
def _readable(path: Path, *, remedy: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: missing; {remedy}") from None
    except OSError as error:
        raise DataError(str(explained(error))) from None  # Nothing is to be deleted.
    except (ValueError, RecursionError) as error:
        raise damaged(path, one_line(error), remedy=remedy) from None


def damaged(path: Path, reason: str, *, remedy: str) -> DataError:
    """Return the line about a file of a run that is not what was written."""
    return DataError(f"{path}: damaged ({reason.removeprefix(f'{path}: ')}); {remedy}")


def _decoded(kind: type[T], values: Any, path: Path, *, remedy: str) -> T:
    try:
        record: T = _adapter(kind).validate_python(values)  # type: ignore[arg-type]
    except ValidationError as error:
        found = error.errors(include_url=False)
        for item in found:
            # The format is the one field with a single known value: another is that of another version.
            if item["type"] == "literal_error" and "format" in str(item["loc"][0]):
                raise OtherVersionError(
                    f"{path}: expected {_words(item)} {item['ctx']['expected']}, got {item['input']!r}: "
                    f"another version of this package wrote it; {remedy}"
                ) from None
        raise damaged(path, _explained(found[0]), remedy=remedy) from None
    if unknown := sorted(values.keys() - {field.name for field in fields(kind)}):  # type: ignore[arg-type]
        raise damaged(path, f"unknown key {unknown[0]!r}", remedy=remedy)
    return record


@cache
def _adapter(kind: Any) -> Any:
    return TypeAdapter(kind)


def _words(item: Any) -> str:
    return str(item["loc"][0]).replace("_", " ")


def _explained(item: Any) -> str:
    place = ".".join(map(str, item["loc"]))
    message = f"{item['msg'][0].lower()}{item['msg'][1:]}"
    return f"{place}: {message}" if place else "expected a JSON object"
