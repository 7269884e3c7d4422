"""A recipe for a table of one's own, `data: {path: FILE.jsonl}`: columns are known by their usual names.

All of its rows say which columns there are. What they were taken as, and what is not read, is a line for the
log. Which column is what: own_columns.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vlm_distill.config import decode
from vlm_distill.data.columns import Columns, shown_column
from vlm_distill.data.examples import RecipeSource
from vlm_distill.data.own_columns import Taken, column_map, take_columns
from vlm_distill.data.recipe import Recipe
from vlm_distill.data.sources import Files, ImageFolder
from vlm_distill.data.sources.image_folder import METADATA
from vlm_distill.data.split import Split
from vlm_distill.data.standard_names import Use, meant_by, use_of
from vlm_distill.data.survey import Survey, survey_table
from vlm_distill.data.tables import list_keys
from vlm_distill.errors import DataError, few

HELD_OUT = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnTable:
    """A recipe over one table, and a line that says what its columns were taken as."""

    recipe: Recipe
    line: str


def own_table(path: Path) -> OwnTable:
    """Return a recipe over one table, or a folder of images with a table of metadata; a tenth is held out.

    For anything else, such as filters and mixtures, a recipe is written.

    Raises:
        DataError: the table is missing, empty or damaged, has no prompts, or a column could be two things.
    """
    table = _metadata(path) if path.is_dir() else path
    state = table.stat() if table.is_file() else None
    return _read(path, table, state and (state.st_size, state.st_mtime_ns))


# A run asks when it looks at its parts and when it prepares its data, and a table may be large.
@lru_cache(maxsize=1)
def _read(path: Path, table: Path, state: object) -> OwnTable:
    """Return what a table holds; a change of the table changes `state`."""
    list_key = _list_key(table)
    survey = survey_table(table, list_key=list_key)
    taken = take_columns(survey, where=str(table), is_metadata=table.name in METADATA)
    used = {name for names in taken.values() for name in names}
    left = [name for name in survey.filled if name not in used]
    columns = decode(Columns, column_map(taken, survey) | {"ignore": left}, where=str(table))
    source: Files | ImageFolder
    if path.is_dir() and "file_name" in taken["image"]:
        # Its rows are called as those of the table alone are.
        source = ImageFolder(name=table.stem, path=str(path), columns=columns)
    else:
        source = Files(paths=str(table), list_key=list_key, columns=columns)
    name = path.absolute().stem
    recipe = Recipe(name=name, sources=[RecipeSource(source=source)], split=Split(held_out=HELD_OUT))
    named = f"{name}, list {shown_column(list_key)}" if list_key else name
    return OwnTable(recipe=recipe, line=f"{named}: {_line(taken, left, survey)}")


def _line(taken: Taken, left: Sequence[str], survey: Survey) -> str:
    uses = few([_as(name, use) for use, names in taken.items() for name in names])
    unread = [shown_column(name) + _remark(name, survey, taken) for name in left]
    return f"columns taken: {uses}" + (f"; not read: {few(unread)}" if unread else "")


def _as(name: str, use: Use) -> str:
    return name if name == use else f"{shown_column(name)} as {use}"


def _remark(name: str, survey: Survey, taken: Taken) -> str:
    """Return how many rows fill a column that is not read, and why it is not where its name is known."""
    remarks = []
    if survey.filled[name] < survey.num_rows:
        remarks.append(f"{survey.filled[name]:,} of {survey.num_rows:,} rows")
    if use_of(name) == "id" and not taken["id"]:
        remarks.append("not another one in every row: rows are numbered")
    if meant_by(name):
        remarks.append(f"did you mean {meant_by(name)!r}?")
    return f" ({'; '.join(remarks)})" if remarks else ""


def _metadata(folder: Path) -> Path:
    tables = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(tables) != 1:
        raise DataError(
            f"{folder}: expected a table, or a folder of images with one of {', '.join(METADATA)} in it; "
            "images without such a table need a recipe (data.recipe)"
        )
    return tables[0]


def _list_key(table: Path) -> str | None:
    keys = list_keys(table)
    if len(keys) > 1:
        named = ", ".join(map(shown_column, keys))
        remedy = "keep one, or name it as list_key in a recipe (data.recipe)"
        raise DataError(f"{table}: rows stand under several keys, {named}; {remedy}")
    return keys[0] if keys else None
