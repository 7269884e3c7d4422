"""The import rules: a file imports its own package and lower layers, siblings never import each other."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "vlm_distill"
LAYERS = [
    {"errors", "faults", "files", "state", "records", "shards", "progress", "packages", "plugins", "stopping"}
    | {"templates", "markdown", "config"},
    {"batches", "processes"},
    {"losses", "data", "adapters"},
    {"models"},
    {"alignment", "students"},
    {"forward"},
    {"generation"},
    {"teacher_cache"},
    {"training", "evaluation"},
    {"conformance"},
    {"runs"},
    {"reporting"},
    {"publishing"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# The files of the ground may import each other.
UNITS = [LAYERS[0]]
OWNERS = {
    "accelerate": {"training/trainer.py", "processes.py"},
    "vllm": {"generation/vllm_engine.py"},
    "open_clip": {"students/clip_weights.py", "students/vision_tower.py"},
}
FILES = sorted(path for path in ROOT.rglob("*.py") if "_bundled" not in path.parts)


def unit_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append(node.module or "")
            if re.match(r"vlm_distill$|tests\b", node.module or ""):
                found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_lower_layers(path: Path) -> None:
    unit = unit_of(path)
    if unit == "__init__":
        return  # Its imports are for type checkers alone: test_exports.py.
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] != "vlm_distill" or len(parts) == 1 or parts[1] in (unit, "__version__"):
            continue
        target = parts[1]
        assert target in LEVEL, f"{path.name} imports {name}, which has no layer"
        together = any(unit in names and target in names for names in UNITS)
        assert LEVEL[target] < LEVEL[unit] or together, (
            f"{unit} (layer {LEVEL[unit] + 1}) imports {target} (layer {LEVEL[target] + 1})"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_have_one_owner(path: Path) -> None:
    relative = path.relative_to(ROOT).as_posix()
    for name in imports_of(path):
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or relative in owners, f"{relative} imports {name}; only {owners} may"


@pytest.mark.parametrize("path", sorted((ROOT / "data").rglob("*.py")), ids=lambda path: path.name)
def test_data_imports_no_torch(path: Path) -> None:
    assert not [name for name in imports_of(path) if name.split(".")[0] in ("torch", "transformers")]


def shape(root: Path = ROOT) -> tuple[int, int, int]:
    """Return rooms, arrows between rooms, and the rooms on the longest chain of imports.

    A room is a package or file right below the root; `python -m tests.test_layers` prints the three.
    """
    arrows: dict[str, set[str]] = {}
    for path in root.rglob("*.py"):
        room = path.relative_to(root).parts[0].removesuffix(".py")
        targets = {name.split(".")[1] for name in imports_of(path) if name.startswith("vlm_distill.")}
        arrows.setdefault(room, set()).update(targets - {room, "__version__"})
    del arrows["__init__"]

    @cache
    def height(room: str) -> int:
        # The files of the ground, which import each other, are one storey.
        below = (0 if room in LAYERS[0] and other in LAYERS[0] else height(other) for other in arrows[room])
        return 1 + max(below, default=0)

    return len(arrows), sum(len(targets) for targets in arrows.values()), max(map(height, arrows))


def test_the_house_has_no_cycle() -> None:
    # A chain of rooms that came back to its start would have no length.
    rooms, _, longest = shape()
    assert longest <= rooms


def test_no_test_imports_another() -> None:
    # What several tests need stands beside them.
    tests = ROOT.with_name("tests")
    for path in tests.rglob("*.py"):
        assert not [name for name in imports_of(path) if name.rpartition(".")[2].startswith("test_")], path


if __name__ == "__main__":
    print("{} rooms, {} arrows, longest chain {}".format(*shape()))
