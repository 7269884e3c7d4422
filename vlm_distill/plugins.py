"""Parts that other installed packages bring: entry points, found by name and loaded only when they are named.

A group is one of `vlm_distill.{adapters,sources,scorers,divergences,objectives,engines}`. Looking names up
imports nothing. What a part of each group must be is said where it is used.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any

from packaging.utils import canonicalize_name

from vlm_distill.errors import PluginError, one_line, printable

logger = logging.getLogger(__name__)
PREFIX = "vlm_distill."


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What an entry point gives; `origin` names distribution, group and entry point, for messages."""

    value: Any
    origin: str


def installed_names(group: str) -> Collection[str]:
    """Return the names that installed packages add to a group."""
    return _entry_points().get(group, {}).keys()


@cache
def find_part(group: str, name: str, *, instead_of: str | None) -> Part | None:
    """Return the part of that name which an installed package brings, None where none does.

    The log says that it takes the place of a built-in one, `instead_of`.

    Raises:
        PluginError: it cannot be loaded, or several distributions bring one of this name.
    """
    points = _entry_points().get(group, {}).get(name, [])
    if not points:
        return None
    if len(points) > 1:
        owners = " and ".join(sorted(_label(point.dist) for point in points))
        raise PluginError(f"{group}: {name!r} is brought by {owners}: uninstall one of them")
    origin = printable(f"{_label(points[0].dist)} ({group}: {name})")
    part = Part(value=_load(points[0], origin), origin=origin)
    if instead_of is not None:
        logger.warning("%s takes the place of the built-in %s", origin, instead_of)
    return part


@cache
def _entry_points() -> dict[str, dict[str, list[EntryPoint]]]:
    """Return the entry points by group and name; reading what is installed takes some milliseconds.

    Only files that mention a group are taken apart, so that no other package's mistake is met here.
    """
    found: dict[str, dict[str, list[EntryPoint]]] = {}
    owners: set[str] = set()
    for distribution in distributions():
        try:
            if PREFIX not in (distribution.read_text("entry_points.txt") or ""):
                continue
            owner, points = canonicalize_name(distribution.name), distribution.entry_points
        # Files of other packages, of which any may be torn: metadata without a name, no metadata at all.
        except Exception as error:
            reason = one_line(error)
            logger.warning("%s: its entry_points.txt cannot be read: %s", _label(distribution), reason)
            continue
        # Of one distribution that stands twice on the path the first is the installed one.
        for point in points if owner not in owners else ():
            found.setdefault(point.group, {}).setdefault(point.name, []).append(point)
        owners.add(owner)
    return found


def _load(point: EntryPoint, origin: str) -> Any:
    try:
        return point.load()
    except KeyboardInterrupt:
        raise
    # Another package's code runs here, so anything can be raised, also what would end the command.
    except BaseException as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise PluginError(f"{origin} cannot be loaded: {reason}; mend or uninstall it") from None


def _label(distribution: Distribution | None) -> str:
    if distribution is None:
        return "a distribution without a name"
    try:
        known = f"{distribution.name} {distribution.version}" if distribution.name else None
    except Exception:  # As above.
        known = None
    return printable(known or f"a distribution in {distribution.locate_file('')}")
