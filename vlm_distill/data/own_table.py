"""A recipe for a table of one's own, `data: {path: FILE.jsonl}`: columns are known by their usual names."""

from collections.abc import Iterator
from pathlib import Path

from vlm_distill.config import decode
from vlm_distill.data.bad_rows import RowError
from vlm_distill.data.columns import Columns
from vlm_distill.data.examples import RecipeSource
from vlm_distill.data.recipe import Recipe
from vlm_distill.data.sources import Files
from vlm_distill.data.split import Split
from vlm_distill.data.tables import RawRow, read_table
from vlm_distill.errors import DataError

NAMES = {
    "messages": ("messages", "conversations"),
    "question": ("question", "prompt", "instruction", "query", "text"),
    "image": ("image", "image_path"),
    "images": ("images",),
    "references": ("references", "answers", "answer", "response", "output"),
    "id": ("id", "question_id"),
}
HELD_OUT = 0.1


def recipe_for_table(path: Path) -> Recipe:
    """Return a recipe over one table, a tenth of it held out; its first row says which columns there are.

    A column that later rows lack is a DataError there, except images and references, which may be missing.
    For anything else, such as filters and mixtures, a recipe is written.

    Raises:
        DataError: the table is missing, empty, or has neither messages nor a question.
    """
    where, row = next(_readable(path), (str(path), None))
    if row is None:
        raise DataError(f"{path}: expected rows with prompts, found none")
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected named columns, got a list; write a recipe with `columns`")
    found = {use: next((name for name in names if name in row), None) for use, names in NAMES.items()}
    prompt = "messages" if found["messages"] else "question"
    if found[prompt] is None:
        wanted = ", ".join([*NAMES["messages"], *NAMES["question"]])
        raise DataError(f"{where}: expected a column of prompts ({wanted}), got {', '.join(row)}")
    image = "image" if found["image"] else "images"
    columns = {use: name for use, name in found.items() if name and use in ("id", prompt)}
    columns |= {use: f"{name}?" for use, name in found.items() if name and use in (image, "references")}
    source = Files(paths=str(path), columns=decode(Columns, columns, where=where))
    return Recipe(
        name=path.stem,
        sources=[RecipeSource(source=source)],
        split=Split(held_out=HELD_OUT),
    )


def _readable(path: Path) -> Iterator[tuple[str, RawRow]]:
    """Yield the rows that can be read; RowError where there is none."""
    broken: list[RowError] = []
    for where, row in read_table(path):
        if isinstance(row, RowError):
            broken.append(row)
        else:
            yield where, row
    if broken:
        raise broken[0]
