"""Prompts whose parts stand in columns of their own, put together as the field does.

`instruction` and `input` as Alpaca and LLaMA-Factory join them, `system` and `history` as LLaMA-Factory reads
them, a passage before its question as in SQuAD, and the hint and choices of MMBench and ScienceQA as LLaVA
asks them: each part on a line of its own. Which columns hold the parts is in columns.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vlm_distill.data.absent import is_absent
from vlm_distill.data.bad_rows import RowError
from vlm_distill.data.columns import Columns, as_text, cell, one_of
from vlm_distill.data.conversations import parse_messages
from vlm_distill.data.tables import RawRow
from vlm_distill.data.text_lists import unpacked
from vlm_distill.records import Message

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The choices of a row; without labels `texts` is what the table says of all of them together."""

    labels: tuple[str, ...]
    texts: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """Yield a line a choice, `A. text`, and texts that bring their labels as they are."""
        if not self.labels or all(map(_is_labelled, self.labels, self.texts)):
            yield from self.texts
        else:
            yield from map("{}. {}".format, self.labels, self.texts)


def read_question(row: RawRow, columns: Columns, options: Options | None, *, where: str) -> str | None:
    """Return context, question, input and options on lines of their own, None for a row without a question.

    Raises:
        RowError: a part is no text, or a cell that must be filled is empty.
    """
    question = _text(row, columns, "question", where=where)
    given = _text(row, columns, "input", where=where)
    if question is None and given is None:
        return None
    context = _text(row, columns, "context", where=where)
    parts = [part for part in (context, question, given) if part is not None]
    return "\n".join([*parts, *(options.lines() if options else ())])


def read_options(row: RawRow, columns: Columns, *, where: str) -> Options | None:
    """Return the choices of a row, None where it has none.

    Raises:
        RowError: a choice is no text.
    """
    if isinstance(columns.options, list):
        cells = [cell(row, column, use="options", where=where) for column in columns.options]
        return _options(zip(_labels(len(cells)), cells, strict=True), where=where)
    value = unpacked(one_of(row, columns.options, use="options", where=where))
    if value is None:
        return None
    if isinstance(value, dict):
        # {A: x, B: y}, or the two lists of ARC: {label: [A, B], text: [x, y]}.
        labels, texts = value.get("label"), value.get("text")
        if isinstance(labels, list) and isinstance(texts, list):
            return _options(zip(labels, texts, strict=False), where=where)
        return _options(value.items(), where=where)
    if isinstance(value, (list, tuple)):
        return _options(zip(_labels(len(value)), value, strict=True), where=where)
    return Options(labels=(), texts=(as_text(value, use="options", where=where),))


def read_answers(value: Any, *, where: str) -> list[Any]:
    """Return the answers in a cell: one, `{answer: x}`, `{text: [x]}` of SQuAD, a message, or a list of such.

    Raises:
        RowError: one is a record of another form.
    """
    items = value if isinstance(value, (list, tuple)) else [value]
    return [answer for item in items for answer in _answers(item, where=where)]


def _answers(item: Any, *, where: str) -> list[Any]:
    if not isinstance(item, dict):
        return [item]
    if "answer" in item:
        return [item["answer"]]
    if isinstance(item.get("text"), list):
        return list(item["text"])
    if "role" in item and "content" in item:
        return [item["content"]]
    message = f"{where}: expected references with a key 'answer', got {', '.join(map(str, item))}"
    raise RowError(message, reason="wrong_cell")


def name_choice(value: Any, options: Options | None, *, where: str) -> Any:
    """Return the label of the choice that a whole number as answer stands for, other answers as they are.

    ScienceQA and MMLU count from 0.

    Raises:
        RowError: there is no such choice, or a choice is that number itself.
    """
    if options is None or not options.labels or isinstance(value, bool) or not isinstance(value, int):
        return value
    if str(value) in options.texts:
        message = f"{where}: the answer {value} may be a choice or its position; write its label"
        raise RowError(message, reason="wrong_cell")
    if not 0 <= value < len(options.labels):
        message = (
            f"{where}: expected an answer below {len(options.labels)}, as there are choices, got {value}"
        )
        raise RowError(message, reason="wrong_cell")
    return options.labels[value]


def read_earlier(row: RawRow, columns: Columns, *, where: str) -> tuple[Message, ...]:
    """Return the system message and the turns that stand before the question of a row.

    Raises:
        RowError: they are no conversation.
    """
    turns: list[Any] = []
    system = _text(row, columns, "system", where=where)
    if system is not None:
        turns.append({"role": "system", "content": system})
    history = unpacked(one_of(row, columns.history, use="history", where=where))
    if not isinstance(history, (list, tuple, type(None))):
        message = f"{where}: expected a list of turns as history, got {type(history).__name__}"
        raise RowError(message, reason="wrong_cell")
    for turn in history or ():
        if isinstance(turn, (list, tuple)) and len(turn) == 2:
            turns += (
                {"role": role, "content": text}
                for role, text in zip(("user", "assistant"), turn, strict=True)
            )
        else:
            turns.append(turn)
    if not turns:
        return ()
    # A question stands in for that of the row, so that whole turns are checked.
    messages, _ = parse_messages([*turns, {"role": "user", "content": "?"}], where=f"{where} history")
    return messages[:-1]


def _text(row: RawRow, columns: Columns, use: str, *, where: str) -> str | None:
    value = one_of(row, getattr(columns, use), use=use, where=where)
    return None if value is None else as_text(value, use=use, where=where)


def _options(cells: Any, *, where: str) -> Options | None:
    found = [(label, text) for label, text in cells if not is_absent(text)]
    texts = tuple(as_text(text, use="options", where=where) for _, text in found)
    return Options(labels=tuple(str(label) for label, _ in found), texts=texts) if found else None


def _labels(count: int) -> list[str]:
    return list(_LETTERS[:count]) if count <= len(_LETTERS) else [str(1 + n) for n in range(count)]


def _is_labelled(label: str, text: str) -> bool:
    """Return whether a text begins with its label: "A. x", "A) x", "A: x" or "(A) x"."""
    return text.lstrip(" (").startswith((f"{label}.", f"{label})", f"{label}:"))
