"""Clustered errors against oracles: the double sum over pairs, a cluster bootstrap, scipy's t-tests."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.evaluation.golden_values import golden_values
from vlm_distill.evaluation.statistics import clustered_mean, paired_difference


def clustered_sample(seed: int, *, num_clusters: int = 60) -> tuple[list[float], list[str]]:
    """Return correlated 0/1 scores in clusters of 1 to 12."""
    random = np.random.default_rng(seed)
    values, clusters = [], []
    for cluster in range(num_clusters):
        level = random.beta(1.0, 1.0)
        for _ in range(random.integers(1, 13)):
            values.append(float(random.random() < level))
            clusters.append(f"image-{cluster}")
    return values, clusters


def exact_error(values: list[float], clusters: list[str]) -> float:
    """Return the CR1 error in rational arithmetic, as a sum over all pairs of items that share a cluster."""
    exact = [Fraction(value) for value in values]
    mean = sum(exact) / len(exact)
    pairs = [
        (a - mean) * (b - mean)
        for a, cluster_a in zip(exact, clusters, strict=True)
        for b, cluster_b in zip(exact, clusters, strict=True)
        if cluster_a == cluster_b
    ]
    num_clusters = len(set(clusters))
    return math.sqrt(sum(pairs) * Fraction(num_clusters, num_clusters - 1) / len(exact) ** 2)


@pytest.mark.parametrize("seed", range(3))
def test_the_clustered_error_is_the_sum_over_pairs_within_clusters(seed: int) -> None:
    values, clusters = clustered_sample(seed, num_clusters=20)
    estimate = clustered_mean(values, clusters)
    assert estimate.standard_error == pytest.approx(exact_error(values, clusters), rel=1e-12)
    assert estimate.mean == pytest.approx(sum(values) / len(values), rel=1e-12)
    assert (estimate.num_items, estimate.num_clusters) == (len(values), 20)


def test_the_clustered_error_agrees_with_a_cluster_bootstrap() -> None:
    values, clusters = clustered_sample(7)
    names = sorted(set(clusters))
    sums = np.array([sum(v for v, c in zip(values, clusters, strict=True) if c == name) for name in names])
    sizes = np.array([clusters.count(name) for name in names])
    drawn = np.random.default_rng(0).integers(0, len(names), size=(20_000, len(names)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    error = clustered_mean(values, clusters).standard_error
    assert error == pytest.approx(means.std(ddof=1), rel=0.05)
    # The same data as if independent: too narrow by far more than the tolerance above.
    naive = clustered_mean(values, [str(i) for i in range(len(values))]).standard_error
    assert naive is not None
    assert error is not None
    assert naive < 0.8 * error


def test_clusters_of_one_give_the_independent_error_and_the_t_interval() -> None:
    values = list(np.random.default_rng(1).normal(size=40))
    estimate = clustered_mean(values, [str(i) for i in range(40)])
    assert estimate.standard_error == pytest.approx(np.std(values, ddof=1) / math.sqrt(40), rel=1e-12)
    interval = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


@pytest.mark.parametrize("golden", golden_values("mean_stderr"))
def test_clusters_of_one_give_the_error_of_other_harnesses(golden: dict[str, Any]) -> None:
    values = [float(value) for value in golden["inputs"]["xs"]]
    estimate = clustered_mean(values, [str(i) for i in range(len(values))])
    assert estimate.mean == pytest.approx(golden["expected"]["mean"], abs=1e-9)
    assert estimate.standard_error == pytest.approx(golden["expected"]["stderr"], abs=1e-9)


def test_the_order_of_items_and_the_names_of_clusters_do_not_matter() -> None:
    values, clusters = clustered_sample(3)
    order = np.random.default_rng(0).permutation(len(values))
    shuffled = clustered_mean([values[i] for i in order], ["x" + clusters[i] for i in order])
    assert shuffled.standard_error == pytest.approx(
        clustered_mean(values, clusters).standard_error, rel=1e-12
    )


def test_no_items_have_no_mean() -> None:
    estimate = clustered_mean([], [])
    assert (estimate.mean, estimate.standard_error, estimate.low, estimate.num_clusters) == (
        None,
        None,
        None,
        0,
    )
    assert paired_difference([], [], []).p_value is None


def test_one_cluster_has_a_mean_but_no_error() -> None:
    estimate = clustered_mean([0.0, 1.0], ["a", "a"])
    assert (estimate.mean, estimate.standard_error, estimate.high, estimate.num_clusters) == (
        0.5,
        None,
        None,
        1,
    )
    assert paired_difference([0.0, 0.0], [0.0, 1.0], ["a", "a"]).p_value is None


def test_equal_values_have_an_error_of_exactly_zero() -> None:
    estimate = clustered_mean([0.1] * 7, list("aabbbcd"))
    assert estimate.standard_error == 0.0
    assert estimate.low == estimate.mean == estimate.high == pytest.approx(0.1)


def test_pairs_in_clusters_of_one_give_the_paired_t_test() -> None:
    random = np.random.default_rng(5)
    a = list(random.normal(size=30))
    b = list(np.array(a) + random.normal(0.3, 0.5, size=30))
    result = paired_difference(a, b, [str(i) for i in range(30)])
    assert result.p_value == pytest.approx(stats.ttest_rel(b, a).pvalue, rel=1e-9)
    assert result.difference.mean == pytest.approx(np.mean(b) - np.mean(a), rel=1e-9)


def test_equal_clusters_give_the_t_test_of_cluster_means() -> None:
    random = np.random.default_rng(6)
    a, b = random.random((25, 4)), random.random((25, 4))
    clusters = [str(row) for row in range(25) for _ in range(4)]
    result = paired_difference(a.ravel().tolist(), b.ravel().tolist(), clusters)
    assert result.p_value == pytest.approx(stats.ttest_1samp((b - a).mean(axis=1), 0.0).pvalue, rel=1e-9)


def test_exchanging_the_models_changes_the_sign_only() -> None:
    a, clusters = clustered_sample(1)
    b = list(np.random.default_rng(2).integers(0, 2, size=len(a)).astype(float))
    forward, backward = paired_difference(a, b, clusters), paired_difference(b, a, clusters)
    assert forward.difference.mean == -backward.difference.mean
    assert forward.p_value == pytest.approx(backward.p_value)


def test_two_equal_models_have_a_p_value_of_one() -> None:
    values, clusters = clustered_sample(4)
    assert paired_difference(values, values, clusters).p_value == 1.0


def test_the_same_difference_everywhere_gives_the_sign_flip_p_value() -> None:
    # 0.9 - 0.6 and 0.3 - 0.0 differ by rounding, which is not a spread.
    result = paired_difference([0.6, 0.0, 0.6, 0.0], [0.9, 0.3, 0.9, 0.3], list("abcd"))
    assert result.difference.standard_error == 0.0
    assert result.p_value == 2.0**-3


def test_false_alarms_are_as_rare_as_the_p_value_says() -> None:
    random = np.random.default_rng(11)
    clusters = [str(image) for image in range(40) for _ in range(5)]
    alarms = 0
    for _ in range(400):
        shift = np.repeat(random.normal(size=40), 5)
        a, b = random.normal(size=200), random.normal(size=200) + shift
        p_value = paired_difference(a.tolist(), b.tolist(), clusters).p_value
        assert p_value is not None
        alarms += p_value < 0.05
    assert 0.02 < alarms / 400 < 0.09
