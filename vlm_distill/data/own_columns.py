"""Which column of a table of one's own is what, by its name and by what all rows hold.

What could be two things, and a name that is nearly a known one, are refused.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vlm_distill.data.columns import shown_column
from vlm_distill.data.standard_names import NAMES, PROMPTS, Use, letter_of, meant_by, standard_name, use_of
from vlm_distill.data.survey import Survey
from vlm_distill.errors import DataError, few

Taken = dict[Use, Sequence[str]]
"""The columns for each use. Under `question` are those of `text` and `input` too where nothing else asks."""

# Of the columns of a family a row fills one.
_FAMILIES: tuple[tuple[Use, ...], ...] = (
    ("messages", "question", "text"),
    ("image", "images"),
    ("options", "choice"),
    *((use,) for use in ("references", "context", "input", "system", "history")),
)
# What stands around a question; a conversation has it in itself.
_AROUND: tuple[Use, ...] = ("context", "input", "options", "choice", "history")
# What the cells of a column must be for it to be taken.
_KINDS: Mapping[Use, set[str]] = {
    "context": {"text"},
    "input": {"text"},
    "system": {"text"},
    "choice": {"text"},
    "history": {"list"},
    "options": {"text", "list", "record"},
}
_REMEDY = "rename or remove one, or name the columns in a recipe (data.recipe)"


def take_columns(survey: Survey, *, where: str, is_metadata: bool) -> Taken:
    """Return the columns that are read; `is_metadata` says that the table names the images of its folder.

    Raises:
        DataError: no column holds prompts, a row fills two columns for one use, or a name is misspelt.
    """
    found = _found(survey)
    found["image"] += found["file_name"] if is_metadata else []
    taken = _prompts(found, survey)
    around = _AROUND if taken["question"] else ()
    for use in (*around, "system", "image", "images", "references"):
        fitting = [name for name in found[use] if use not in _KINDS or survey.kinds[name] <= _KINDS[use]]
        taken[use] = [name for name in fitting if name not in taken["question"]]
    taken["id"] = [name for name in found["id"] if survey.is_unique(name)][:1]
    _refuse_slips(taken, survey)
    if not taken["messages"] and not taken["question"]:
        got = few(list(map(shown_column, survey.filled))) or "none that a row fills"
        raise DataError(f"{where}: expected a column of prompts ({', '.join(PROMPTS)}), got {got}")
    _refuse_two(taken, survey, where=where)
    return taken


def column_map(taken: Taken, survey: Survey) -> dict[str, Any]:
    """Return the columns as a recipe names them, those that rows may lack marked as such."""
    question, given = set(taken["question"]), set(taken.get("input", ()))
    lacking = taken["messages"] or any(row & given and not row & question for row in survey.patterns)
    columns: dict[str, Any] = {
        "id": _column(taken["id"]),
        "question": _column(taken["question"], mark="?" if lacking else ""),
        "messages": _column(taken["messages"], mark="?" if question else ""),
        "options": _column(taken.get("options") or taken.get("choice", ()), mark="?"),
        **_pictures([*taken["image"], *taken["images"]], survey),
    }
    for use in ("context", "input", "system", "history", "references"):
        columns[use] = _column(taken.get(use, ()), mark="?")
    return {use: column for use, column in columns.items() if column}


def _pictures(names: Sequence[str], survey: Survey) -> dict[str, Any]:
    """Return a column of one picture or of lists as such, and all else as columns of one or several each."""
    kinds = [survey.kinds[name] for name in names]
    if len(names) == 1 and "list" not in kinds[0] and use_of(names[0]) != "images":
        return {"image": f"{names[0]}?"}
    return {"images": f"{names[0]}?" if kinds == [{"list"}] else [f"{name}?" for name in names]}


def _column(names: Sequence[str], *, mark: str = "") -> str | list[str]:
    columns = [name + mark for name in names]
    return columns[0] if len(columns) == 1 else columns


def _found(survey: Survey) -> dict[Use, list[str]]:
    """Return the columns that some row fills, by the use and in the order of their standard names."""
    found: dict[Use, list[str]] = {"choice": list(_from_a(survey.filled))}
    for use, names in NAMES.items():
        found[use] = [one for name in names for one in survey.filled if standard_name(one) == name]
    # TRL has whole conversations under `prompt`.
    talks = [name for name in found["question"] if survey.kinds[name] == {"list"}]
    found["messages"] += talks
    found["question"] = [name for name in found["question"] if name not in talks]
    return found


def _from_a(names: Iterable[str]) -> Iterator[str]:
    """Yield the columns of one choice each, from A to the last before a letter is missing; not A alone."""
    by_letter = {letter_of(name): name for name in names}
    if {"A", "B"} <= set(by_letter):
        for letter in map(chr, range(ord("A"), ord("Z") + 1)):
            if letter not in by_letter:
                return
            yield by_letter[letter]


def _prompts(found: Mapping[Use, Sequence[str]], survey: Survey) -> Taken:
    """Return the columns of prompts: those of a weaker name where rows have none of a stronger one."""
    taken: Taken = {"messages": [], "question": []}
    for use in ("messages", "question", "text", "input"):
        asked = {*taken["messages"], *taken["question"]}
        lacking = any(row & set(found[use]) and not row & asked for row in survey.patterns)
        # Beside a question `input` is a part of the prompt, not another one.
        if lacking and not (use == "input" and taken["question"]):
            kind: Use = "messages" if use == "messages" else "question"
            taken[kind] = [*taken[kind], *found[use]]
    return taken


def _names(uses: Iterable[Use], taken: Taken) -> set[str]:
    """Return the columns of some uses, of the columns of one choice each the first, which stands for all."""
    found = ((use, taken.get(use, ())) for use in uses)
    return {name for use, names in found for name in (names[:1] if use == "choice" else names)}


def _refuse_slips(taken: Taken, survey: Survey) -> None:
    """Refuse a name that is nearly a known one, where a row has nothing under the known one."""
    for row, where in survey.patterns.items():
        for name, meant in ((name, meant_by(name)) for name in sorted(row)):
            use = use_of(meant) if meant else None
            family = next((one for one in _FAMILIES if use in one), ())
            is_asked = taken["question"] or not set(family) <= set(_AROUND)
            if family and is_asked and not row & _names(family, taken):
                remedy = f"did you mean {meant!r}? rename it, or remove it"
                raise DataError(f"{where}: column {shown_column(name)} is not known; {remedy}")


def _refuse_two(taken: Taken, survey: Survey, *, where: str) -> None:
    choices = _names(("options", "choice"), taken)
    if len(choices) > 1:
        raise DataError(f"{where}: choices stand in {_listed(choices)}; {_REMEDY}")
    around = _names(_AROUND, taken) if taken["messages"] else set()
    for row, first in survey.patterns.items():
        for family in _FAMILIES:
            filled = row & _names(family, taken)
            if len(filled) > 1:
                raise DataError(f"{first}: {_listed(filled)} are filled, which hold the same; {_REMEDY}")
        talk, beside = row & set(taken["messages"]), row & around
        if talk and beside:
            reason = "a conversation is a whole prompt"
            raise DataError(f"{first}: {_listed(talk | beside)} are filled; {reason}; {_REMEDY}")


def _listed(names: Iterable[str]) -> str:
    return " and ".join(map(shown_column, sorted(names)))
