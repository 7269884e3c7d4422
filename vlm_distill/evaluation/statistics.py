"""Means with standard errors that respect clusters, and paired comparisons of two models.

Several questions share an image, so their scores are not independent; an interval that ignores this is too
narrow. All numbers are float64. The formulas: with n items in G clusters, mean m and cluster residual sums
r_g = sum over items of g of (y_i - m),

    SE^2 = G / (G - 1) * sum_g r_g^2 / n^2        (CR1; Liang and Zeger 1986, MacKinnon et al. 2023)

which is the usual s^2 / n where every cluster is one item. Intervals and p-values use Student's t with G - 1
degrees of freedom.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

CONFIDENCE = 0.95
# A relative error below this is the rounding of float64: equal cluster means, not a tiny spread.
ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean with its 95 % interval.

    Without items `mean` is None; with fewer than two clusters the error and the interval are None, because
    one cluster says nothing about the spread between clusters. Where all cluster means are equal the error is
    0 and the interval one point: that describes the sample and does not bound what a rarer case would do.
    """

    mean: float | None
    standard_error: float | None
    low: float | None
    high: float | None
    num_items: int
    num_clusters: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """The mean of b - a over the same items, and the two-sided p-value (None where there is no error)."""

    difference: Estimate
    p_value: float | None


def clustered_mean(values: Sequence[float], clusters: Sequence[str]) -> Estimate:
    """Return the mean of `values` with a clustered error; `clusters` names the cluster of each value."""
    assert len(values) == len(clusters)
    if not values:
        return Estimate(mean=None, standard_error=None, low=None, high=None, num_items=0, num_clusters=0)
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    _, members = np.unique(np.asarray(clusters), return_inverse=True)
    residual_sums = np.bincount(members, weights=array - mean)
    num_items, num_clusters = len(values), len(residual_sums)
    if num_clusters == 1:
        return Estimate(
            mean=mean, standard_error=None, low=None, high=None, num_items=num_items, num_clusters=1
        )
    error = float(np.sqrt(num_clusters / (num_clusters - 1) * np.square(residual_sums).sum())) / num_items
    if error < ROUNDING * float(np.abs(array).max()):
        error = 0.0
    half_width = float(special.stdtrit(num_clusters - 1, 0.5 + CONFIDENCE / 2)) * error
    return Estimate(
        mean=mean,
        standard_error=error,
        low=mean - half_width,
        high=mean + half_width,
        num_items=num_items,
        num_clusters=num_clusters,
    )


def paired_difference(a: Sequence[float], b: Sequence[float], clusters: Sequence[str]) -> PairedDifference:
    """Return how much better `b` is than `a` on the same items in the same order.

    The p-value is that of the clustered t-test. Where all clusters differ equally, t is undefined: the
    p-value is then 1 for a difference of 0, else that of the exact sign-flip test over clusters, 2^(1 - G).
    """
    assert len(a) == len(b)
    difference = clustered_mean([second - first for first, second in zip(a, b, strict=True)], clusters)
    mean, error = difference.mean, difference.standard_error
    if mean is None or error is None:
        return PairedDifference(difference=difference, p_value=None)
    if error == 0:
        is_equal = abs(mean) <= ROUNDING * max(abs(value) for value in (*a, *b))
        return PairedDifference(
            difference=difference, p_value=1.0 if is_equal else 2.0 ** (1 - difference.num_clusters)
        )
    p_value = 2 * float(special.stdtr(difference.num_clusters - 1, -abs(mean) / error))
    return PairedDifference(difference=difference, p_value=p_value)
