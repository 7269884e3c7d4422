"""Distributions as importlib.metadata sees them: a folder with a name, a version and entry points."""

from pathlib import Path

from vlm_distill import plugins


def declare(folder: Path, name: str, group: str, **entries: str) -> None:
    """Write version 0.3 of a distribution that adds to a group the names and targets of its entry points."""
    metadata = folder / f"{name}-0.3.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.3\n")
    lines = [f"{entry} = {target}\n" for entry, target in entries.items()]
    (metadata / "entry_points.txt").write_text("".join([f"[{group}]\n", *lines]))


def forget() -> None:
    """Let this process look again at what is installed."""
    plugins._entry_points.cache_clear()
    plugins.find_part.cache_clear()
