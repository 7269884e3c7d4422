from vlm_distill.evaluation.statistics import clustered_mean
from vlm_distill.evaluation.table import format_estimate, format_table


def test_an_estimate_is_shown_with_half_its_interval_in_per_cent() -> None:
    estimate = clustered_mean([0.0, 1.0, 1.0, 1.0], list("abcd"))
    assert estimate.mean is not None
    assert estimate.high is not None
    assert format_estimate(estimate) == f"75.0 ± {100 * (estimate.high - estimate.mean):.1f}"


def test_what_cannot_be_known_is_not_shown_as_a_number() -> None:
    assert format_estimate(clustered_mean([], [])) == "-"
    assert format_estimate(clustered_mean([1.0, 1.0], ["a", "a"])) == "100.0 ± ?"


def test_rows_with_other_columns_share_one_aligned_table() -> None:
    table = format_table([{"model": "teacher", "all": "97.0"}, {"model": "a|b", "open": 3}])
    assert table.split("\n") == [
        "| model   | all  | open |",
        "| ------- | ---- | ---- |",
        "| teacher | 97.0 |      |",
        "| a\\|b    |      | 3    |",
    ]
