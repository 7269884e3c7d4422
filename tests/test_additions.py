"""CONTRIBUTING.md's table of what an addition touches: the files exist, and know the example it gives."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vlm_distill"
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PLACE = re.compile(r"`((?:[\w.-]+/)+[\w.-]*)`")


def rows() -> dict[str, tuple[str, set[str]]]:
    """Return what to touch and the names of the example, by what is added."""
    table = GUIDE.partition("## To add X, touch Y")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {what: (places, set(re.findall(r"`([^`]+)`", names))) for what, places, names in cells}


TABLE = rows()
WITH_EXAMPLE = [what for what, (_, names) in TABLE.items() if names]


def words_of(path: Path) -> Iterator[str]:
    """Yield the names and whole strings of a module's code, which are not those of its docstrings."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case (
                ast.Name(id=word)
                | ast.ClassDef(name=word)
                | ast.FunctionDef(name=word)
                | ast.alias(name=word)
            ):
                yield word
            case ast.Constant(value=str(word)):
                yield word


KNOWN_BY = {path: set(words_of(path)) for path in PACKAGE.rglob("*.py") if "_bundled" not in path.parts}


def test_the_places_that_an_addition_touches_exist() -> None:
    places = [place for cell, _ in TABLE.values() for place in PLACE.findall(cell)]
    assert len(places) > 15
    assert not [place for place in places if not any((top / place).exists() for top in (PACKAGE, ROOT))]


@pytest.mark.parametrize("what", WITH_EXAMPLE)
def test_what_is_there_already_is_known_where_the_table_says_and_nowhere_else(what: str) -> None:
    cell, names = TABLE[what]
    knowing = {path.relative_to(PACKAGE).as_posix() for path, words in KNOWN_BY.items() if words & names}
    files, folders = set(), set()
    for place in PLACE.findall(cell):
        if (PACKAGE / place).exists():
            (folders if place.endswith("/") else files).add(place)
    assert files <= knowing
    # "Its file in" a folder is one.
    others = {f"{Path(path).parent.as_posix()}/" for path in knowing - files}
    assert others == folders
    assert len(knowing) == len(files) + len(folders)


def test_most_additions_have_an_example() -> None:
    assert len(WITH_EXAMPLE) > 7
