from typing import Any, ClassVar

import pytest

from tests.tiny import tiny_llava
from vlm_distill.errors import DataError
from vlm_distill.generation.references import encode_references
from vlm_distill.records import Example, Message, Text


class LetterTokenizer:
    """Every letter is a token, and special tokens are added unless they are refused."""

    added_tokens_decoder: ClassVar[dict[int, Any]] = {}
    all_special_tokens: ClassVar[list[str]] = []

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        start = [1] if add_special_tokens else []
        return {"input_ids": [[*start, *map(ord, text)] for text in texts]}

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def example(name: str, *references: str) -> Example:
    return Example(
        id=name, messages=(Message(role="user", content=(Text(text="?"),)),), references=references
    )


def test_the_most_frequent_reference_becomes_a_stopped_response() -> None:
    first, second = encode_references(
        [example("a", "red", "blue", "blue"), example("b", "no", "yes")],
        LetterTokenizer(),
        stop_ids=(2,),
        fingerprint="f",
    )
    assert first.text == "blue"
    assert first.token_ids == (*map(ord, "blue"), 2)
    assert second.text == "no"
    assert (second.author, second.finish, second.reencoded, second.example_id) == (
        "reference",
        "stop",
        True,
        "b",
    )
    assert first.id != second.id


def test_an_example_without_references_is_named() -> None:
    with pytest.raises(DataError, match=r"'b'.*1 of 2"):
        encode_references(
            [example("a", "x"), example("b")], LetterTokenizer(), stop_ids=(2,), fingerprint="f"
        )


def test_no_examples_give_no_responses() -> None:
    assert encode_references([], LetterTokenizer(), stop_ids=(2,), fingerprint="f") == []


def test_a_reference_that_holds_an_image_placeholder_is_refused_and_its_example_named() -> None:
    examples = [example("a", "red"), example("b", "a * shape")]
    with pytest.raises(DataError, match=r"'b'.*'a \* shape'.*1 of 2"):
        encode_references(
            examples, LetterTokenizer(), stop_ids=(2,), fingerprint="f", image_token_ids=(ord("*"), 3)
        )
    kept = encode_references(
        examples, LetterTokenizer(), stop_ids=(2,), fingerprint="f", image_token_ids=(ord("+"),)
    )
    assert [response.text for response in kept] == ["red", "a * shape"]


def test_a_reference_that_names_special_tokens_is_trained_as_text() -> None:
    loaded = tiny_llava()
    label = "write <image>, then <|end|> here"
    [response] = encode_references(
        [example("a", label)],
        loaded.tokenizer,
        stop_ids=loaded.stop_ids,
        fingerprint="f",
        image_token_ids=loaded.image_token_ids,
    )
    assert (response.text, loaded.tokenizer.decode(response.token_ids[:-1])) == (label, label)
    special = set(loaded.tokenizer.added_tokens_decoder)
    assert [one for one in response.token_ids if one in special] == [loaded.stop_ids[0]]


@pytest.mark.parametrize("text", ["red", "red#", "red##", "red+", "red#+\n", "red# #\n"])
def test_a_label_ends_once_with_the_first_stop_id_whatever_it_brings(text: str) -> None:
    [response] = encode_references(
        [example("a", text)], LetterTokenizer(), stop_ids=(ord("+"), ord("#")), fingerprint="f"
    )
    assert response.text == "red"
    assert response.token_ids == (*map(ord, "red"), ord("+"))


def test_what_stands_before_an_end_or_ends_nothing_stays_in_the_label() -> None:
    for text in ("red \n", "a # b", " red", "red #\nmore"):
        [response] = encode_references(
            [example("a", text)], LetterTokenizer(), stop_ids=(ord("#"),), fingerprint="f"
        )
        assert response.text == text


def test_a_label_that_is_nothing_but_an_end_is_refused_and_its_example_named() -> None:
    examples = [example("a", "red"), example("b", "##")]
    with pytest.raises(DataError, match=r"'b': expected a reference to train on.*1 of 2"):
        encode_references(examples, LetterTokenizer(), stop_ids=(ord("#"),), fingerprint="f")


def test_where_bad_rows_are_skipped_examples_without_a_label_are_missing() -> None:
    examples = [example("a", "red"), example("b", "##"), example("c")]
    [response] = encode_references(
        examples, LetterTokenizer(), stop_ids=(ord("#"),), fingerprint="f", skips_bad=True
    )
    assert response.example_id == "a"
