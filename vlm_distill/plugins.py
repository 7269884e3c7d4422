"""Parts that other installed packages bring: entry points, found by name and loaded only when they are named.

A group is one of `vlm_distill.{adapters,sources,scorers,divergences,objectives,engines}`. Looking names up
imports nothing. What a part of each group must be is said where it is used.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from vlm_distill.errors import PluginError, one_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What an entry point gives; `origin` names distribution, group and entry point, for messages."""

    value: Any
    origin: str


def installed_names(group: str) -> Collection[str]:
    """Return the names that installed packages add to a group."""
    return _entry_points(group).keys()


@cache
def find_part(group: str, name: str, *, instead_of: str | None) -> Part | None:
    """Return the part of that name which an installed package brings, None where none does.

    The log says that it takes the place of a built-in one, `instead_of`.

    Raises:
        PluginError: it cannot be loaded, or several distributions bring one of this name.
    """
    points = _entry_points(group).get(name, [])
    if not points:
        return None
    if len(points) > 1:
        owners = " and ".join(sorted(_distribution(point) for point in points))
        raise PluginError(f"{group}: {name!r} is brought by {owners}: uninstall one of them")
    origin = f"{_distribution(points[0])} ({group}: {name})"
    part = Part(value=_load(points[0], origin), origin=origin)
    if instead_of is not None:
        logger.warning("%s takes the place of the built-in %s", origin, instead_of)
    return part


@cache
def _entry_points(group: str) -> dict[str, list[EntryPoint]]:
    """Return the entry points of a group by name; reading what is installed takes some milliseconds."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        found.setdefault(point.name, []).append(point)
    return found


def _load(point: EntryPoint, origin: str) -> Any:
    try:
        return point.load()
    # Another package's code runs here, so anything can be raised.
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise PluginError(f"{origin} cannot be loaded: {reason}; mend or uninstall it") from None


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "a distribution without a name"
