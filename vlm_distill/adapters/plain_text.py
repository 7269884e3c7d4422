"""Text is text: what a person wrote is never read as a special token or as the place of an image.

A chat template puts texts and special tokens into one string, and a tokenizer reads every name of a special
token in it. So names that stand in texts are broken by a mark before the template runs; in the string that
comes out, the whole names are the template's own. These are exchanged for other names, the marks are taken
away, and a copy of the tokenizer that knows the special tokens by their other names reads all else as text.
Prompts without such names go the usual way.
"""

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from vlm_distill.errors import AdapterError, shown

# Noncharacters, which Unicode keeps for use inside of programs.
BREAK, OTHER = "\ufdd0", "\ufdd1"
# More than any model has; looking for them takes quadratic time to prepare.
_MOST_NAMES = 1 << 16
# Tokenizers are large and only a few are open at once.
_OPEN = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """The names of special tokens and placeholders, the longest first; `start` matches where one begins."""

    names: tuple[str, ...]
    whole: re.Pattern[str]
    start: re.Pattern[str]

    def broken(self, text: str) -> str:
        """Return the text with a mark behind the first character of every name, overlapping ones too."""
        if BREAK in text:
            raise AdapterError(
                f"its text holds the noncharacter {BREAK!r} beside the name of a special token"
            )
        return self.start.sub(rf"\1{BREAK}", text)

    def exchanged(self, text: str) -> str:
        """Return a text in which whole names are exchanged for other ones and broken ones are whole."""
        return self.whole.sub(lambda found: _other(found[0]), text).replace(BREAK, "")


def _other(name: str) -> str:
    # Its first and last characters stay, at which tokenizers look around special tokens.
    return f"{name[0]}{OTHER}{name[1:]}"


@lru_cache(maxsize=_OPEN)
def names_of(processor: Any) -> Names:
    """Return the names that a processor or tokenizer does not read as text."""
    tokenizer = getattr(processor, "tokenizer", processor)
    found = _special(tokenizer)
    # What stands for images is not always marked as special.
    own = vars(processor).items()
    found.update(value for key, value in own if key.endswith("_token") and isinstance(value, str))
    # A line break is a special token of some, and text.
    names = sorted((name for name in found if len(name) > 1 and not name.isspace()), key=len, reverse=True)
    if len(names) > _MOST_NAMES:
        raise AdapterError(
            f"expected at most {_MOST_NAMES:,} special tokens, its tokenizer has {len(names):,}"
        )
    either = "|".join(map(re.escape, names)) or r"(?!)"
    return Names(
        names=tuple(names), whole=re.compile(either), start=re.compile(f"(?=(?:{either}))(.)", re.DOTALL)
    )


def _special(tokenizer: Any) -> set[str]:
    try:
        added = tokenizer.added_tokens_decoder.values()
    except NotImplementedError:
        # Tokenizers of mistral-common take texts and special tokens apart by themselves.
        return set()
    return {token.content for token in added if token.special}.union(tokenizer.all_special_tokens)


class PlainTextTokenizer:
    """A tokenizer for strings in which the names that are text are broken; in all else the one it wraps."""

    def __init__(self, tokenizer: Any, names: Names) -> None:
        self._tokenizer, self._names = tokenizer, names
        self._other = _with_other_names(tokenizer, names.names)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._tokenizer, attribute)

    def __call__(self, text: Any, **settings: Any) -> Any:
        """Return the encoding of one string, or of a list of them, with the tokenizer's own settings.

        Raises:
            AdapterError: a name is read as a special token all the same.
        """
        texts = [text] if isinstance(text, str) else text
        exchanged = [self._names.exchanged(one) for one in texts]
        for one, other in zip(texts, exchanged, strict=True):
            if self._special_ids(self._tokenizer, one) != self._special_ids(self._other, other):
                raise AdapterError(_unreadable(self._tokenizer))
        # Each prompt is encoded alone, and the other names have no padding token.
        return self._other(
            exchanged[0] if isinstance(text, str) else exchanged, **{**settings, "padding": False}
        )

    def apply_chat_template(self, *chat: Any, **settings: Any) -> Any:
        # The wrapped tokenizer's own, which asks this object for ids.
        return type(self._tokenizer).apply_chat_template(self, *chat, **settings)

    def _special_ids(self, tokenizer: Any, text: str) -> list[int]:
        known = {*map(self._tokenizer.convert_tokens_to_ids, self._names.names)} - {
            self._tokenizer.unk_token_id
        }
        ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return [token_id for token_id in ids if token_id in known]


@lru_cache(maxsize=_OPEN)
def _with_other_names(tokenizer: Any, names: tuple[str, ...]) -> Any:
    """Return a copy of a tokenizer that knows special tokens, at their ids, by other names."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise AdapterError(_unreadable(tokenizer))
    state = json.loads(backend.to_str())
    other = {name: _other(name) for name in names}
    for token in state["added_tokens"]:
        token["content"] = other.get(token["content"], token["content"])
    model = state["model"]
    # A name that merges make is one of the vocabulary's words as well.
    made = {
        "".join(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in model.get("merges", ())
    }
    if not made.isdisjoint(names):
        raise AdapterError(_unreadable(tokenizer))
    if isinstance(model["vocab"], dict):
        model["vocab"] = {other.get(word, word): number for word, number in model["vocab"].items()}
    else:
        model["vocab"] = [[other.get(word, word), score] for word, score in model["vocab"]]
    if model.get("unk_token") in other:
        model["unk_token"] = other[model["unk_token"]]
    renamed = copy.copy(tokenizer)
    renamed._tokenizer = type(backend).from_str(json.dumps(state))
    return renamed


def _unreadable(tokenizer: Any) -> str:
    return (
        f"its text holds the name of a special token, which {type(tokenizer).__name__} of "
        f"{tokenizer.name_or_path or 'this model'} cannot read as text; change it or leave the example out"
    )


def with_plain_text(processor: Any, chat: Sequence[dict[str, Any]]) -> tuple[Any, list[dict[str, Any]]]:
    """Return a processor or tokenizer, and a chat for its template whose texts it reads as text.

    Both are what was given where no text holds the name of a special token.

    Raises:
        AdapterError: a text holds one and the tokenizer is none of the tokenizers library.
    """
    names = names_of(processor)
    joined = [{**turn, "content": _joined(turn["content"])} for turn in chat]
    if not any(names.whole.search(text) for turn in joined for text in _texts(turn["content"])):
        return processor, list(chat)
    if not hasattr(processor, "tokenizer"):
        reader: Any = PlainTextTokenizer(processor, names)
    else:
        reader = copy.copy(processor)
        reader.tokenizer = PlainTextTokenizer(processor.tokenizer, names)
    return reader, [{**turn, "content": _broken(turn["content"], names)} for turn in joined]


def encode_texts(processor: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of texts that no template surrounds: no special tokens are added, and none are read.

    Raises:
        AdapterError: as for a chat.
    """
    names, tokenizer = names_of(processor), getattr(processor, "tokenizer", processor)
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    for number, text in enumerate(texts):
        if names.whole.search(text):
            encoded[number] = _encode_broken(tokenizer, text, names)
    return encoded


def _encode_broken(tokenizer: Any, text: str, names: Names) -> list[int]:
    try:
        reader = PlainTextTokenizer(tokenizer, names)
        ids: list[int] = reader(names.broken(text), add_special_tokens=False)["input_ids"]
    except AdapterError as error:
        raise AdapterError(f"{shown(text)}: {error}") from None
    return ids


def _joined(content: Any) -> Any:
    """Return the content of a turn with neighbouring texts as one: a name may begin in one of them."""
    if isinstance(content, str):
        return content
    parts: list[dict[str, Any]] = []
    for part in content:
        if parts and part["type"] == parts[-1]["type"] == "text":
            parts[-1] = {**part, "text": parts[-1]["text"] + part["text"]}
        else:
            parts.append(part)
    return parts


def _texts(content: Any) -> list[str]:
    return (
        [content]
        if isinstance(content, str)
        else [part["text"] for part in content if part["type"] == "text"]
    )


def _broken(content: Any, names: Names) -> Any:
    if isinstance(content, str):
        return names.broken(content)
    return [
        {**part, "text": names.broken(part["text"])} if part["type"] == "text" else part for part in content
    ]
