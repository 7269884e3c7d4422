import json
from typing import Any

import pytest

from vlm_distill.data.bad_rows import RowError
from vlm_distill.data.conversations import parse_messages, place_images
from vlm_distill.records import Image, Message, Text

LLAVA = [
    {"from": "human", "value": "What is this?"},
    {"from": "gpt", "value": "A cat."},
    {"from": "human", "value": "Its colour?"},
    {"from": "gpt", "value": "Black."},
]
CHAT = [
    {"role": "user", "content": [{"type": "text", "text": "What is this?"}]},
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
        user(Text(text="What is this?")),
        Message(role="assistant", content=(Text(text="A cat."),)),
        user(Text(text="Its colour?")),
    )


@pytest.mark.parametrize("value", [json.dumps(LLAVA), LLAVA])
def test_a_conversation_may_be_text_that_holds_it_as_json(value: Any) -> None:
    assert parse_messages(value, where="row 2") == parse_messages(LLAVA, where="row 2")


def test_keys_and_parts_that_a_table_has_for_other_rows_may_stand_empty() -> None:
    part = {"type": "text", "text": "What is this?", "image": None}
    turns = [
        {"role": None, "content": None, "from": "Human", "value": [part], "tool_calls": None},
        {"role": None, "content": None, "from": "GPT", "value": "A cat.", "tool_calls": []},
    ]
    assert parse_messages(turns, where="row 2") == parse_messages(LLAVA[:2], where="row 2")


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_answer_is_none(text: str) -> None:
    turns = [CHAT[0], {"role": "assistant", "content": text}]
    assert parse_messages(turns, where="row 2") == ((user(Text(text="What is this?")),), None)


def test_a_prompt_without_an_answer_has_none() -> None:
    assert parse_messages(CHAT[:1], where="row 2")[1] is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hello", "expected a list of messages, or one in JSON, got the text 'hello'"),
        ("3", "expected a list of messages, or one in JSON, got the text '3'"),
        ("[]", "expected a list of messages, got an empty one"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "contnet": "b"}],
            "message 1: expected text",
        ),
        ([CHAT[0], {"role": "assistant", "content": None}, CHAT[2]], "message 1: expected text"),
        ("[" * 100_000, "expected a list of messages, or one in JSON"),
        ([], "expected a list of messages, got an empty one"),
        (["a"], "message 0: expected {role, content} or {from, value}, got str"),
        ([{"role": ["user"], "content": "a"}], r"message 0: unknown role \['user'\]"),
        ([{"role": None, "content": "a"}], "message 0: unknown role None"),
        ([CHAT[0], {"role": "tool", "content": "a"}], "message 1: unknown role 'tool'"),
        ([{"from": "human", "value": "a"}, {"from": "observation", "value": "b"}], "unknown role 'observ"),
        ([{"role": "bot", "content": "a"}], "message 0: unknown role 'bot'; known: system, user, human"),
        ([{"role": "user", "content": None}], "message 0: expected text or a list of parts"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "got 'image_url'"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "got 'text'"),
        ([{"role": "user", "content": ["a"]}], "expected parts .*, got 'str'"),
        ([CHAT[0], {"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}], "got tool_calls"),
        ([CHAT[0], {"role": "assistant", "content": [{"type": "image"}]}], "an image in the last turn"),
        ([CHAT[1], *CHAT[:2]], "in turn, the user first, got assistant, user"),
        ([CHAT[0], CHAT[2]], "in turn, the user first, got user, user"),
        ([CHAT[1]], "in turn"),
        ([CHAT[0], {"role": "system", "content": "x"}], "system message may only stand first"),
    ],
)
def test_what_is_no_conversation_is_an_error_that_names_the_row(value: Any, message: str) -> None:
    with pytest.raises(RowError, match=f"^row 2.*{message}") as caught:
        parse_messages(value, where="row 2")
    assert (caught.value.reason, len(str(caught.value)) < 250) == ("bad_conversation", True)


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_a_last_answer_and_a_system_message_may_be_null(nothing: object) -> None:
    turns = [{"from": "system", "value": nothing}, CHAT[0], {"role": "assistant", "content": nothing}]
    assert parse_messages(turns, where="row 2") == parse_messages(CHAT[:1], where="row 2")


def test_a_marker_of_the_user_is_the_place_of_an_image_without_the_line_breaks_around_it() -> None:
    turn = user(Text(text="left <image>\nand\n<image>"))
    (placed,) = place_images((turn,), num_images=2, lacks_images=True, where="row 2")
    assert placed == user(Text(text="left "), Image(), Text(text="and"), Image())


@pytest.mark.parametrize(
    "text", ["What is <image> in SVG?", "<image> is a tag?", "Is it a tag, <image>", "See\n<image>\nhere"]
)
def test_without_an_image_a_marker_is_a_word_like_others(text: str) -> None:
    messages = (user(Text(text=text)),)
    assert place_images(messages, num_images=0, lacks_images=True, where="row 2") == messages


@pytest.mark.parametrize(
    "text", ["<image>\nWhat is this?", "What is this?\n<image>", " <image> ", "\n<image>\n a"]
)
def test_a_marker_alone_on_the_first_or_last_line_is_the_place_of_an_image_that_is_missing(text: str) -> None:
    with pytest.raises(RowError, match=r"row 2: 1 places for images .<image>., but 0 images"):
        place_images((user(Text(text=text)),), num_images=0, lacks_images=True, where="row 2")


def test_in_a_row_of_a_table_without_images_a_marker_is_a_word_wherever_it_stands() -> None:
    messages = (user(Text(text="<image>\nWhich tag is this?")),)
    assert place_images(messages, num_images=0, lacks_images=False, where="row 2") == messages


def test_where_markers_are_more_than_images_those_alone_on_their_lines_are_the_places() -> None:
    turn = user(Text(text="<image>\n<image>\nWhat does <image> mean?\n <image>"))
    placed = place_images((turn,), num_images=3, lacks_images=True, where="row 2")
    assert placed == (user(Image(), Image(), Text(text="What does <image> mean?"), Image()),)
    with pytest.raises(RowError, match="row 2: 4 places for images"):
        place_images((turn,), num_images=2, lacks_images=True, where="row 2")


def test_a_marker_in_an_answer_or_a_system_message_is_a_word_beside_an_image_too() -> None:
    system = Message(role="system", content=(Text(text="Write <image> for a bitmap."),))
    answer = Message(role="assistant", content=(Text(text="Use\n<image>\nhere."),))
    messages = (system, user(Text(text="<image>\nHow?")), answer, user(Text(text="And in HTML?")))
    placed = place_images(messages, num_images=1, lacks_images=True, where="row 2")
    assert placed == (system, user(Image(), Text(text="How?")), answer, messages[3])


def test_where_image_parts_serve_all_images_a_marker_is_a_word() -> None:
    messages = (user(Image(), Text(text="Is this an <image> element?")),)
    assert place_images(messages, num_images=1, lacks_images=True, where="row 2") == messages


def test_the_last_answer_is_kept_to_the_letter() -> None:
    text = "Use the\n<image>\nelement inside <svg>. "
    turns = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": text}]
    assert parse_messages(turns, where="row 2")[1] == text


def test_images_come_first_in_the_first_user_turn() -> None:
    system = Message(role="system", content=(Text(text="be brief"),))
    placed = place_images((system, user(Text(text="which?"))), num_images=2, lacks_images=True, where="row 2")
    assert placed == (system, user(Image(), Image(), Text(text="which?")))


def test_places_in_the_messages_win() -> None:
    messages = (user(Text(text="this: "), Image()),)
    assert place_images(messages, num_images=1, lacks_images=True, where="row 2") == messages


@pytest.mark.parametrize("num_images", [0, 2])
def test_another_number_of_places_than_images_is_an_error(num_images: int) -> None:
    with pytest.raises(RowError, match=f"row 2: 1 places for images .*, but {num_images} images"):
        place_images((user(Image()),), num_images=num_images, lacks_images=True, where="row 2")
