import pytest
import torch

from vlm_distill.conformance.findings import (
    FLOOR,
    GRADIENT_UNITS,
    VALUE_UNITS,
    compare_gradients,
    compare_values,
)

EPS = torch.finfo(torch.float32).eps


@pytest.mark.parametrize(("units", "outcome"), [(VALUE_UNITS / 2, "passed"), (VALUE_UNITS * 2, "failed")])
def test_values_are_compared_relative_to_the_largest(units: float, outcome: str) -> None:
    found = compare_values("x", torch.tensor([4.0, 4 * units * EPS]), torch.tensor([4.0, 0.0]))
    assert found.outcome == outcome
    assert found.error == pytest.approx(units * EPS)


@pytest.mark.parametrize("wrong", [torch.tensor([1.0, torch.nan]), torch.ones(3)])
def test_values_that_are_no_numbers_or_of_another_shape_fail(wrong: torch.Tensor) -> None:
    assert compare_values("x", wrong, torch.ones(2)).outcome == "failed"


def test_a_gradient_that_only_one_side_has_fails_and_is_named() -> None:
    both, one = {"a": torch.ones(2), "b": torch.ones(2)}, {"a": torch.ones(2)}
    for found in (compare_gradients("x", both, one), compare_gradients("x", one, both)):
        assert found.outcome == "failed"
        assert "gradient of b" in found.line


def test_a_gradient_that_is_no_number_is_not_hidden_by_another() -> None:
    expected = {"a": torch.ones(1), "b": torch.ones(1)}
    found = compare_gradients("x", {"a": torch.tensor([torch.nan]), "b": torch.ones(1)}, expected)
    assert found.outcome == "failed"


def test_a_parameter_without_effect_is_held_to_a_share_of_the_largest_gradient() -> None:
    expected = {"large": torch.ones(1), "none": torch.zeros(1)}
    for units, outcome in ((GRADIENT_UNITS / 2, "passed"), (GRADIENT_UNITS * 2, "failed")):
        found = {"large": torch.ones(1), "none": torch.tensor([units * EPS * FLOOR])}
        assert compare_gradients("x", found, expected).outcome == outcome
