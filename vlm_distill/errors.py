"""Errors that a user can cause, and how their words are shown. Our own bugs are assertions."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

_LONGEST_LINE, _LONGEST_NAME = 4000, 80
# A suggestion is copied, and may be the path of a file.
_LONGEST_HINT = 400


class UserError(ValueError):
    """One line: where, what was expected, what was found and what to do; the CLI exits with code 2."""

    def __init__(self, text: str) -> None:
        super().__init__(cut(printable(" ".join(text.split())), _LONGEST_LINE))


class ConfigError(UserError):
    """A YAML file, an override or a value in them is wrong."""


class DataError(UserError):
    """Examples, images or stored responses are missing, damaged or contradict each other."""


class StorageError(DataError):
    """A file or folder cannot be written: what was there before is there still."""


class AdapterError(UserError):
    """A model cannot be loaded, does not belong to a checkpoint, or two models do not fit together."""


class EngineError(UserError):
    """A generation back end is missing or failed."""


class PluginError(UserError):
    """A part that another installed package brings cannot be used."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the tail of an error message: the nearest known name if one is near, then all known names."""
    names = sorted(known)
    near = get_close_matches(name[:_LONGEST_HINT], names, n=1, cutoff=0.5)
    hint = f"did you mean {cut(repr(near[0]), _LONGEST_HINT)}? " if near else ""
    return f"{hint}known: {few([cut(one, _LONGEST_NAME) for one in names], most=60) or 'none'}"


def few(words: Sequence[str], *, most: int = 20) -> str:
    """Return words in a line, or the first of them and how many more there are."""
    more = f" and {len(words) - most:,} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def one_line(error: BaseException) -> str:
    """Return the message of another library's error on one line of bounded length."""
    return cut(" ".join(str(error).split()), 300)


def shown(value: object) -> str:
    """Return how a value of a user is written into a message: as Python writes it, of bounded length."""
    try:
        return cut(repr(value), _LONGEST_NAME)
    except ValueError:  # Python writes no more.
        return "an integer of more than 4,300 digits"


def cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def printable(text: str) -> str:
    """Return a text that stays in its line on a terminal and in a log.

    Line ends, escape sequences, marks that change the direction and lone surrogates are written as escapes.
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
