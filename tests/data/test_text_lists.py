import pytest

from vlm_distill.data.text_lists import list_in


@pytest.mark.parametrize(
    "text",
    [
        '["a", "it\'s"]',
        """ ['a', "it's"] """,
        """[
'a',\t'it\\'s']""",
    ],
)
def test_a_list_is_read_as_json_and_as_python_write_it(text: str) -> None:
    assert list_in(text) == ["a", "it's"]


@pytest.mark.parametrize(
    "text", ["[a]", "[1].png", "a", '{"a": 1}', "[0] + [1]", "[" * 100_000 + "]" * 100_000]
)
def test_other_texts_hold_no_list(text: str) -> None:
    assert list_in(text) is None


def test_backslashes_are_read_without_a_warning() -> None:
    assert list_in(r"['a\d']") == [r"a\d"]
