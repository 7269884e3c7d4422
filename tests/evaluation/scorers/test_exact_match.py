import pytest

from vlm_distill.evaluation.scorers import ExactMatch


@pytest.mark.parametrize(
    ("options", "prediction", "reference", "expected"),
    [
        ({}, " Red\n", "red", 1.0),
        ({"ignore_case": False}, "Red", "red", 0.0),
        ({"strip": False}, "red ", "red", 0.0),
        ({}, "red.", "red", 0.0),
        ({"ignore_punctuation": True}, "red.", "red", 1.0),
        ({"ignore_punctuation": True}, "red .", "red", 1.0),
        ({"ignore_punctuation": True, "strip": False}, "red .", "red", 0.0),
        ({"ignore_punctuation": True}, "t-shirt", "tshirt", 1.0),
        ({"ignore_punctuation": True}, "t shirt", "tshirt", 0.0),
        ({"ignore_punctuation": True}, "a dog", "dog", 0.0),
        ({}, "", "red", 0.0),
    ],
)
def test_exact_match_follows_its_options(
    options: dict[str, bool], prediction: str, reference: str, expected: float
) -> None:
    assert ExactMatch(**options)(prediction, (reference,)) == expected


def test_any_reference_may_match() -> None:
    assert ExactMatch()("teal", ("blue", "Teal")) == 1.0
