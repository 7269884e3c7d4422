"""Chat messages in data sets: the role/content form of Hugging Face and the from/value form of LLaVA."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vlm_distill.errors import DataError
from vlm_distill.records import Image, Message, Role, Text

IMAGE_MARKER = "<image>"
_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


def parse_messages(value: Any, *, where: str) -> tuple[tuple[Message, ...], str | None]:
    """Return the turns up to the last one of the user, and the assistant's text after it, if any.

    Earlier turns of the assistant stay in the prompt.

    Raises:
        DataError: a turn has no known role or content, or the turns are no conversation.
    """
    if not isinstance(value, (list, tuple)) or not value:
        raise DataError(f"{where}: expected a list of messages, got {type(value).__name__}")
    turns = [_turn(turn, where=f"{where} message {number}") for number, turn in enumerate(value)]
    answer = None
    if turns[-1].role == "assistant":
        answer = "".join(part.text for part in turns.pop().content if isinstance(part, Text))
    spoken = [turn.role for turn in turns if turn.role != "system"]
    if spoken != ["user", "assistant"] * (len(spoken) // 2) + ["user"]:
        raise DataError(
            f"{where}: expected user and assistant in turn, the user first, got {', '.join(spoken) or 'none'}"
        )
    if any(turn.role == "system" for turn in turns[1:]):
        raise DataError(f"{where}: a system message may only stand first")
    return tuple(turns), answer


def _turn(turn: Any, *, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where}: expected {{role, content}} or {{from, value}}, got {type(turn).__name__}")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if role not in _ROLES:
        raise DataError(f"{where}: unknown role {role!r}; known: {', '.join(_ROLES)}")
    if isinstance(content, str):
        return Message(role=_ROLES[role], content=split_markers(content))
    if not isinstance(content, (list, tuple)):
        raise DataError(f"{where}: expected text or a list of parts as content, got {type(content).__name__}")
    return Message(role=_ROLES[role], content=tuple(_part(part, where=where) for part in content))


def _part(part: Any, *, where: str) -> Text | Image:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind == "image":
        return Image()
    if kind == "text" and isinstance(part.get("text"), str):
        return Text(text=part["text"])
    raise DataError(
        f"{where}: expected parts {{type: text, text: ...}} or {{type: image}} (pictures stand in the image "
        f"column), got {kind}"
    )


def split_markers(text: str) -> tuple[Text | Image, ...]:
    """Return text with every `<image>`, and line breaks around it, turned into the place of an image.

    Literal markers would reach tokenizers that read them as image tokens, so they never stay text.
    """
    parts: list[Text | Image] = []
    for number, piece in enumerate(re.split(rf"\n?{IMAGE_MARKER}\n?", text)):
        if number:
            parts.append(Image())
        if piece:
            parts.append(Text(text=piece))
    return tuple(parts)


def place_images(messages: tuple[Message, ...], *, num_images: int, where: str) -> tuple[Message, ...]:
    """Return messages with a place for each image: in front of the first user turn if there are none.

    Raises:
        DataError: the messages have another number of places.
    """
    num_places = sum(isinstance(part, Image) for message in messages for part in message.content)
    if num_places == num_images:
        return messages
    if num_places:
        raise DataError(f"{where}: {num_places} places for images ({IMAGE_MARKER}), but {num_images} images")
    first = next(number for number, message in enumerate(messages) if message.role == "user")
    content = (Image(),) * num_images + messages[first].content
    return (*messages[:first], replace(messages[first], content=content), *messages[first + 1 :])
