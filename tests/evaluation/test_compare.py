import pytest

from vlm_distill.evaluation.compare import same_answer


@pytest.mark.parametrize(("other", "is_same"), [(" Red\n", True), ("red.", False), ("dark red", False)])
def test_two_answers_are_one_but_for_case_and_outer_space(other: str, is_same: bool) -> None:
    assert same_answer("red", other) == is_same
