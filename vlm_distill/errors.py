"""Errors that a user can cause. Our own bugs are assertions and never end up here."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """One line: where, what was expected, what was found and what to do; the CLI exits with code 2."""


class ConfigError(UserError):
    """A YAML file, an override or a value in them is wrong."""


class DataError(UserError):
    """Examples, images or stored responses are missing, damaged or contradict each other."""


class AdapterError(UserError):
    """A model cannot be loaded, does not belong to a checkpoint, or two models do not fit together."""


class EngineError(UserError):
    """A generation back end is missing or failed."""


class PluginError(UserError):
    """A part that another installed package brings cannot be used."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the tail of an error message: the nearest known name if one is near, then all known names."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known: {', '.join(names) or 'none'}"


def one_line(error: BaseException) -> str:
    """Return the message of another library's error on one line of bounded length."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."
