"""What the columns of a table hold, by all of its rows. What they are taken as is in own_columns.py."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_distill.data.absent import is_absent
from vlm_distill.data.bad_rows import RowError
from vlm_distill.data.standard_names import meant_by, use_of
from vlm_distill.data.tables import read_table
from vlm_distill.data.text_lists import unpacked
from vlm_distill.errors import DataError

# Objects whose keys are data are no table, and what is remembered of columns stays small.
_MAX_COLUMNS = 10_000
_KINDS = {str: "text", int: "text", float: "text", list: "list", dict: "record"}


@dataclass(kw_only=True, slots=True)
class Survey:
    """How many rows fill each column, in the order in which columns appear.

    Of columns with a known name, or one like it: `kinds` says what the cells hold (text, which numbers are
    too, lists, records or other), `patterns` which of them rows fill together, with the first such row, and
    `ids` which texts an id column gave, None once it gave one twice.
    """

    num_rows: int = 0
    filled: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, set[str]] = field(default_factory=dict)
    patterns: dict[frozenset[str], str] = field(default_factory=dict)
    ids: dict[str, set[str] | None] = field(default_factory=dict)

    def is_unique(self, column: str) -> bool:
        """Return whether a column with the name of an id gives every row another text or number."""
        return len(self.ids[column] or ()) == self.num_rows

    def add(self, row: dict[str, Any], *, where: str) -> None:
        """Take in one row."""
        filled = [name for name, value in row.items() if not is_absent(value)]
        self.num_rows += 1
        self.filled.update(filled)
        if len(self.filled) > _MAX_COLUMNS:
            raise DataError(f"{where}: expected at most {_MAX_COLUMNS:,} columns, the rows have more")
        known = frozenset(name for name in filled if use_of(name) or meant_by(name))
        for name in known:
            # A history is a list, whatever the format has for one.
            value = unpacked(row[name]) if use_of(name) == "history" else row[name]
            self.kinds.setdefault(name, set()).add(_KINDS.get(type(value), "other"))
            if use_of(name) == "id":
                self._add_id(name, row[name])
        self.patterns.setdefault(known, where)

    def _add_id(self, column: str, value: Any) -> None:
        seen = self.ids.setdefault(column, set())
        if seen is None:
            return
        if not isinstance(value, (str, int, float)) or str(value) in seen:
            self.ids[column] = None
        else:
            seen.add(str(value))


def survey_table(path: Path, *, list_key: str | None) -> Survey:
    """Return what the rows of a table hold.

    Rows that cannot be read are passed over here; who reads them counts them.

    Raises:
        DataError: the table is missing, empty or damaged, or its rows have no named columns.
    """
    survey = Survey()
    broken: RowError | None = None
    for where, row in read_table(path, list_key=list_key):
        if isinstance(row, RowError):
            broken = broken or row
        elif isinstance(row, list):
            message = f"{where}: expected named columns, got a list; write a recipe with `columns`"
            broken = broken or RowError(message, reason="broken_row")
        else:
            try:
                survey.add(row, where=where)
            except RecursionError:
                broken = broken or RowError(f"{where}: a cell is nested too deeply", reason="wrong_cell")
    if not survey.num_rows:
        raise broken or DataError(f"{path}: expected rows with prompts, found none")
    return survey
