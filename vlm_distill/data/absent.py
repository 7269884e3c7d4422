"""What counts as no value in a cell, whatever the format of its table writes for that."""

from datetime import date
from decimal import Decimal
from typing import Any

# Marks that editors and copied pages leave: a byte order mark, a space without width, a word joiner.
_UNSEEN = "\ufeff\u200b\u2060"


def is_null(value: Any) -> bool:
    """Return whether a cell is null: None, NaN or, where pandas read a date, NaT."""
    # Only these differ from themselves.
    return value is None or (isinstance(value, (float, Decimal, date)) and value != value)


def is_blank(text: str) -> bool:
    """Return whether nothing in a text can be seen."""
    return all(character.isspace() or character in _UNSEEN for character in text)


def is_absent(value: Any) -> bool:
    """Return whether a cell says nothing: null, blank text, or a list or record of nothing else."""
    if isinstance(value, str):
        return is_blank(value)
    if isinstance(value, (list, tuple, dict)):
        return all(map(is_absent, value.values() if isinstance(value, dict) else value))
    return is_null(value)


def is_unsaid(value: Any) -> bool:
    """Return whether a list is absent; an empty one is there and says that there are none."""
    return is_absent(value) and value not in ([], ())
