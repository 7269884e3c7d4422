import pytest

from vlm_distill.evaluation.measures import LEGEND, MEASURES, score_column, score_columns
from vlm_distill.evaluation.table import p_value, points


def test_the_legend_explains_every_measure_with_its_unit() -> None:
    for measure in MEASURES.values():
        assert f"{measure.meaning} in {measure.unit}" in LEGEND


def test_every_metric_is_shown_on_the_whole_set_and_the_first_one_on_its_subsets() -> None:
    metrics = {"exact": {"all": 1, "open": 2}, "soft": {"all": 3, "open": 4}}
    assert dict(score_columns("vqa", metrics)) == {"vqa exact": 1, "vqa open": 2, "vqa soft": 3}
    assert score_column("vqa", "exact", "open") == "vqa open"


def test_the_teacher_has_no_divergence_and_always_agrees() -> None:
    found = {name: measure.of_teacher for name, measure in MEASURES.items()}
    assert found == {"token_kl": "0.0000", "own_kl": "0.0000", "top1": "100.0", "same_answer": "100.0"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "?"), (0.0, "< 0.0001"), (1e-4, "0.0001"), (0.03125, "0.0312"), (1.0, "1.0000")],
)
def test_p_values_are_short(value: float | None, shown: str) -> None:
    assert p_value(value) == shown


def test_differences_are_points_with_a_sign() -> None:
    assert [points(value) for value in (0.1, -0.25, 0.0)] == ["+10.0", "-25.0", "+0.0"]
