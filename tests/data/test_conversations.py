from typing import Any

import pytest

from vlm_distill.data.conversations import parse_messages, place_images, split_markers
from vlm_distill.errors import DataError
from vlm_distill.records import Image, Message, Text

LLAVA = [
    {"from": "human", "value": "<image>\nWhat is this?"},
    {"from": "gpt", "value": "A cat."},
    {"from": "human", "value": "Its colour?"},
    {"from": "gpt", "value": "Black."},
]
CHAT = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "Its colour?"},
    {"role": "assistant", "content": [{"type": "text", "text": "Black."}]},
]


def user(*content: Text | Image) -> Message:
    return Message(role="user", content=content)


@pytest.mark.parametrize("value", [LLAVA, CHAT])
def test_llava_and_chat_forms_give_the_same_prompt_and_the_last_answer(value: Any) -> None:
    messages, answer = parse_messages(value, where="row 2")
    assert answer == "Black."
    assert messages == (
        user(Image(), Text(text="What is this?")),
        Message(role="assistant", content=(Text(text="A cat."),)),
        user(Text(text="Its colour?")),
    )


def test_a_prompt_without_an_answer_has_none() -> None:
    assert parse_messages(CHAT[:1], where="row 2")[1] is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hello", "expected a list of messages, got str"),
        ([], "expected a list of messages"),
        ([{"role": "bot", "content": "a"}], "message 0: unknown role 'bot'; known: system, user, human"),
        ([{"role": "user", "content": None}], "message 0: expected text or a list of parts"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "got image_url"),
        ([CHAT[0], CHAT[2]], "in turn, the user first, got user, user"),
        ([CHAT[1]], "in turn"),
        ([CHAT[0], {"role": "system", "content": "x"}], "system message may only stand first"),
    ],
)
def test_what_is_no_conversation_is_an_error_that_names_the_row(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^row 2.*{message}"):
        parse_messages(value, where="row 2")


def test_markers_never_stay_text() -> None:
    assert split_markers("left <image>\nand\n<image>") == (
        Text(text="left "),
        Image(),
        Text(text="and"),
        Image(),
    )
    assert split_markers("none") == (Text(text="none"),)


def test_images_come_first_in_the_first_user_turn() -> None:
    system = Message(role="system", content=(Text(text="be brief"),))
    placed = place_images((system, user(Text(text="which?"))), num_images=2, where="row 2")
    assert placed == (system, user(Image(), Image(), Text(text="which?")))


def test_places_in_the_messages_win() -> None:
    messages = (user(Text(text="this: "), Image()),)
    assert place_images(messages, num_images=1, where="row 2") == messages


@pytest.mark.parametrize("num_images", [0, 2])
def test_another_number_of_places_than_images_is_an_error(num_images: int) -> None:
    with pytest.raises(DataError, match=f"row 2: 1 places for images .*, but {num_images} images"):
        place_images((user(Image()),), num_images=num_images, where="row 2")
