"""The names by which columns of one's own table are known, and names that are a slip away from them.

They are those of Hugging Face and TRL (messages, prompt, completion), Alpaca and LLaMA-Factory (instruction,
input, output, system, history), ms-swift (query, response), LLaVA (conversations, image), SQuAD (context),
ScienceQA (choices, hint), ARC (answerKey) and MMBench (A, B, C, D).
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Literal

Use = Literal[
    "messages",
    "question",
    "text",
    "input",
    "context",
    "options",
    "choice",
    "system",
    "history",
    "image",
    "images",
    "file_name",
    "references",
    "id",
]
# `text` is a prompt where nothing else is, for it may be anything; `choice` are columns of one choice each;
# `file_name` is an image in the metadata of a folder of images.
NAMES: Mapping[Use, tuple[str, ...]] = {
    "messages": ("messages", "conversations"),
    "question": ("question", "prompt", "instruction", "query"),
    "text": ("text",),
    "input": ("input",),
    "context": ("context", "passage", "hint"),
    "options": ("options", "choices"),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "image": ("image", "image_path"),
    "images": ("images",),
    "file_name": ("file_name",),
    "references": ("references", "answers", "answer", "response", "output", "completion", "answer_key"),
    "id": ("id", "question_id"),
}
PROMPTS = (*NAMES["messages"], *NAMES["question"], *NAMES["text"])
# One letter from a known name, and words of their own.
_OTHER_WORDS = {"content", "contest"}
# A slip in a shorter name makes another word.
_SHORTEST = 5


def _key(name: str) -> str:
    """Return a name without what spreadsheets and people change in it: case, spaces, underscores, hyphens."""
    return re.sub(r"[\s_\-\ufeff\u200b]", "", name).casefold()


_STANDARD = {_key(name): name for names in NAMES.values() for name in names}
_USE_OF = {name: use for use, names in NAMES.items() for name in names}


def standard_name(name: str) -> str | None:
    """Return the known name that a column bears, None for an unknown one."""
    return _STANDARD.get(_key(name))


@cache
def use_of(name: str) -> Use | None:
    """Return what a column of that name holds, None where that is not known."""
    return "choice" if letter_of(name) else _USE_OF.get(standard_name(name) or "")


def letter_of(name: str) -> str | None:
    """Return the label of the choice in a column such as `A`, `option_a` or `Choice B`."""
    found = re.fullmatch(r"\s*(?:([A-Z])|(?i:option|choice)[\s_\-]*([A-Za-z]))\s*", name)
    return (found[1] or found[2]).upper() if found else None


@cache
def meant_by(name: str) -> str | None:
    """Return the known name that a name is one slip away from: a letter too few, too many, changed or moved.

    Numbered and plural forms (`response_1`, `completions`) are names of their own.
    """
    key = _key(name)
    if use_of(name) is not None or key in _OTHER_WORDS or any(map(str.isdigit, key)):
        return None
    near = (one for one in _STANDARD if len(one) >= _SHORTEST and _is_a_slip(key, one))
    return next((_STANDARD[one] for one in near if f"{one}s" != key and f"{key}s" != one), None)


def _is_a_slip(one: str, other: str) -> bool:
    """Return whether two different names agree but for one letter, or two neighbours that changed places."""
    while one[:1] == other[:1] and one:
        one, other = one[1:], other[1:]
    swapped = one[:2] == other[:2][::-1] and one[2:] == other[2:]
    return swapped or one[1:] == other or one == other[1:] or one[1:] == other[1:]
