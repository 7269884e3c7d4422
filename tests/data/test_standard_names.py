import pytest

from vlm_distill.data.standard_names import NAMES, letter_of, meant_by, use_of


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("question", "question"),
        (" Answer ", "references"),
        ("System Prompt", "system"),
        ("imagePath", "image"),
        ("\ufeffQUESTION", "question"),
        ("question-id", "id"),
        ("answerKey", "references"),
        ("A", "choice"),
        ("Option B", "choice"),
        ("choice_c", "choice"),
        ("a", None),
        ("label", None),
        ("", None),
        ("Unnamed: 0", None),
        ("question?", None),
    ],
)
def test_a_name_is_known_whatever_its_case_spaces_and_marks(name: str, use: str | None) -> None:
    assert use_of(name) == use


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("quesiton", "question"),
        ("Qustion", "question"),
        ("questionn", "question"),
        ("qvestion", "question"),
        ("anwser", "answer"),
        ("imge", "image"),
        ("iamge", "image"),
        ("promtp", "prompt"),
        ("prompt:", "prompt"),
        ("instrucion", "instruction"),
        ("sytem", "system"),
        ("converstaions", "conversations"),
        ("question?", "question"),
    ],
)
def test_a_slip_of_one_letter_is_recognised(name: str, meant: str) -> None:
    assert meant_by(name) == meant


@pytest.mark.parametrize(
    "name",
    [
        "content",
        "responses",
        "completions",
        "response_1",
        "image2",
        "test",
        "ids",
        "hints",
        "category",
        "option",
    ],
)
def test_names_of_their_own_are_no_slips(name: str) -> None:
    assert meant_by(name) is None


def test_no_known_name_is_a_slip_of_another() -> None:
    assert all(meant_by(name) is None for names in NAMES.values() for name in names)


def test_a_column_of_one_choice_has_its_letter() -> None:
    names = ("A", " B ", "option_c", "Choice D", "E1", "b")
    assert [letter_of(name) for name in names] == ["A", "B", "C", "D", None, None]
