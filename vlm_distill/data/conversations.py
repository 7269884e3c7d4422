"""Chat messages in data sets: the role/content form of Hugging Face and the from/value form of LLaVA."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from vlm_distill.data.absent import is_absent, is_blank, is_null
from vlm_distill.data.bad_rows import RowError
from vlm_distill.data.text_lists import list_in
from vlm_distill.errors import shown
from vlm_distill.records import Image, Message, Role, Text

IMAGE_MARKER = "<image>"
# Where LLaVA writes it: alone on the first or the last line of a turn.
_AT_AN_END = re.compile(rf"\A\s*{IMAGE_MARKER}\s*(\n|\Z)|\n\s*{IMAGE_MARKER}\s*\Z")
# What may stand for an image, with the line breaks around it: every marker, or those alone on their lines.
_PLACES = (rf"\n?{IMAGE_MARKER}\n?", rf"(?m)\n?^[ \t]*{IMAGE_MARKER}[ \t]*(?:\n|\Z)")
_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
# An answer that calls a tool is no text; the keys stand empty where a table has them for other rows.
_CALLS = ("tool_calls", "function_call")


def parse_messages(value: Any, *, where: str) -> tuple[tuple[Message, ...], str | None]:
    """Return the turns up to the last one of the user, and the assistant's text after it, if any.

    Earlier turns of the assistant stay in the prompt. `value` may be a list, or text that holds it as JSON.

    Raises:
        RowError: a turn has no known role or content, or the turns are no conversation.
    """
    value = _from_text(value, where=where) if isinstance(value, str) else value
    if not isinstance(value, (list, tuple)) or not value:
        found = "an empty one" if value in ([], ()) else type(value).__name__
        raise _no_conversation(f"{where}: expected a list of messages, got {found}")
    last = len(value) - 1
    read = (
        _turn(turn, is_last=number == last, where=f"{where} message {number}")
        for number, turn in enumerate(value)
    )
    turns = [turn for turn in read if turn is not None]
    spoken = [turn.role for turn in turns if turn.role != "system"]
    if not spoken or spoken != (["user", "assistant"] * len(spoken))[: len(spoken)]:
        found = ", ".join(spoken[:8]) or "none"
        raise _no_conversation(f"{where}: expected user and assistant in turn, the user first, got {found}")
    if any(turn.role == "system" for turn in turns[1:]):
        raise _no_conversation(f"{where}: a system message may only stand first")
    answer = _answer(turns.pop(), where=where) if spoken[-1] == "assistant" else None
    return tuple(turns), answer


def _no_conversation(message: str) -> RowError:
    return RowError(message, reason="bad_conversation")


def _from_text(text: str, *, where: str) -> list[Any]:
    found = list_in(text)
    if found is None:
        raise _no_conversation(
            f"{where}: expected a list of messages, or one in JSON, got the text {shown(text)}"
        )
    return found


def _answer(turn: Message, *, where: str) -> str | None:
    if any(isinstance(part, Image) for part in turn.content):
        raise _no_conversation(f"{where}: expected an answer of text, got an image in the last turn")
    text = "".join(part.text for part in turn.content if isinstance(part, Text))
    return None if is_blank(text) else text


def _turn(turn: Any, *, is_last: bool, where: str) -> Message | None:
    """Return a turn, None for a system message that is null; an answer at the end may be null too."""
    if not isinstance(turn, Mapping):
        found = type(turn).__name__
        raise _no_conversation(f"{where}: expected {{role, content}} or {{from, value}}, got {found}")
    name = turn.get("role") or turn.get("from")
    role = _ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise _no_conversation(f"{where}: unknown role {shown(name)}; known: {', '.join(_ROLES)}")
    calls = [key for key in _CALLS if not is_absent(turn.get(key))]
    if calls:
        raise _no_conversation(f"{where}: expected text, got {calls[0]}: calls of tools are not learned")
    given = [turn[key] for key in ("content", "value") if key in turn]
    content = next((one for one in given if not is_null(one)), None)
    # Without its key it may stand under a misspelt one.
    if given and content is None and role != "user":
        if role == "system":
            return None
        content = "" if is_last else None
    return Message(role=role, content=tuple(_parts(content, where=where)))


def _parts(content: Any, *, where: str) -> Iterator[Text | Image]:
    if isinstance(content, str):
        content = [{"type": "text", "text": content}] if content else []
    if not isinstance(content, (list, tuple)):
        found = type(content).__name__
        raise _no_conversation(f"{where}: expected text or a list of parts as content, got {found}")
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind == "image":
            yield Image()
        elif kind == "text" and isinstance(part.get("text"), str):
            yield Text(text=part["text"])
        else:
            raise _no_conversation(
                f"{where}: expected parts {{type: text, text: ...}} or {{type: image}} (pictures stand in "
                f"the image column), got {shown(kind)}"
            )


def place_images(
    messages: tuple[Message, ...], *, num_images: int, lacks_images: bool, where: str
) -> tuple[Message, ...]:
    """Return messages with a place for each image: in front of the first user turn if there are none.

    Where places are no parts of their own, `<image>` in a turn of the user is one; if there are more of them
    than images, those alone on their lines are. In an answer it is a word like others, and where there is no
    image to place, unless the row `lacks_images` that others have and it stands alone on the first or the
    last line.

    Raises:
        RowError: the messages have another number of places.
    """
    is_word = not num_images and not (lacks_images and _has_marker_at_an_end(messages))
    if num_images == _num_places(messages) and (num_images or is_word):
        return messages
    every = alone = messages
    if has_marker_word(messages):
        every, alone = (_marked(messages, pattern) for pattern in _PLACES)
    if num_images:
        for marked in (every, alone):
            if _num_places(marked) == num_images:
                return marked
    if num_places := _num_places(every):
        raise RowError(
            f"{where}: {num_places} places for images ({IMAGE_MARKER}), but {num_images} images in "
            "the image column; expected as many, or no places",
            reason="bad_image",
        )
    first = next(number for number, message in enumerate(messages) if message.role == "user")
    content = (Image(),) * num_images + messages[first].content
    return (*messages[:first], replace(messages[first], content=content), *messages[first + 1 :])


def has_marker_word(messages: tuple[Message, ...]) -> bool:
    """Return whether a turn of the user says `<image>`."""
    return any(IMAGE_MARKER in text for text in _user_texts(messages))


def _has_marker_at_an_end(messages: tuple[Message, ...]) -> bool:
    return any(_AT_AN_END.search(text) for text in _user_texts(messages))


def _user_texts(messages: tuple[Message, ...]) -> list[str]:
    spoken = (part for message in messages if message.role == "user" for part in message.content)
    return [part.text for part in spoken if isinstance(part, Text)]


def _num_places(messages: tuple[Message, ...]) -> int:
    return sum(isinstance(part, Image) for message in messages for part in message.content)


def _marked(messages: tuple[Message, ...], pattern: str) -> tuple[Message, ...]:
    return tuple(
        replace(one, content=tuple(_split_markers(one.content, pattern))) if one.role == "user" else one
        for one in messages
    )


def _split_markers(content: tuple[Text | Image, ...], pattern: str) -> Iterator[Text | Image]:
    """Yield the parts with what the pattern finds turned into places of images."""
    for part in content:
        pieces = re.split(pattern, part.text) if isinstance(part, Text) else [""]
        for number, piece in enumerate(pieces):
            if number or isinstance(part, Image):
                yield Image()
            if piece:
                yield Text(text=piece)
