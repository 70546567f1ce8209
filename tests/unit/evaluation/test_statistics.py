"""Statistics against scipy.stats, and H against a published table."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gram_jax.evaluation import (
    harmonic_mean,
    harmonic_of_means,
    mean_of_harmonics,
    paired_difference,
    summarize,
)


@pytest.mark.parametrize("n", [2, 3, 5, 50])
def test_summary_equals_scipy(n):
    values = np.random.default_rng(n).normal(0.7, 0.1, n)
    summary = summarize(values)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert summary.mean == pytest.approx(stats.tmean(values))
    assert summary.std == pytest.approx(stats.tstd(values))
    assert summary.ci95 == pytest.approx((expected.low, expected.high))
    assert summary.n == n


def test_interval_covers_the_truth_in_95_of_100():
    draws = np.random.default_rng(0).normal(3.0, 1.0, (4000, 4))
    covered = [low <= 3.0 <= high for low, high in (summarize(row).ci95 for row in draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors


def test_one_value_has_no_spread():
    summary = summarize([0.5])
    assert (summary.mean, summary.n) == (0.5, 1)
    assert all(math.isnan(value) for value in (summary.std, *summary.ci95))


def test_paired_difference_equals_scipy():
    generator = np.random.default_rng(1)
    b = generator.normal(0.5, 0.2, 8)
    a = b + generator.normal(0.03, 0.02, 8)
    difference = paired_difference(a, b)
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert difference.ci95 == pytest.approx((interval.low, interval.high))
    assert (difference.ci95[0] > 0) == (expected.pvalue < 0.05)


@pytest.mark.parametrize("n", [2, 3, 8, 40])
@pytest.mark.parametrize("shift", [0.0, 0.01, -0.05, 0.5])
def test_p_value_equals_scipy(n, shift):
    generator = np.random.default_rng(n)
    b = generator.normal(0.5, 0.2, n)
    a = b + generator.normal(shift, 0.02, n)
    difference = paired_difference(a, b)
    assert difference.p_value == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-6)
    assert paired_difference(b, a).p_value == difference.p_value  # two-sided
    low, high = difference.ci95
    assert (difference.p_value < 0.05) == (not low <= 0 <= high)


def test_p_value_is_uniform_if_nothing_differs():
    draws = np.random.default_rng(0).normal(0.0, 1.0, (4000, 3))
    p_values = np.array([paired_difference(row, 0 * row).p_value for row in draws])
    for level in (0.05, 0.5, 0.95):
        assert np.mean(p_values < level) == pytest.approx(level, abs=3.5 * math.sqrt(level * (1 - level) / 4000))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([0.5], [0.3]),
        ([0.5, 0.6], [0.5, 0.6]),
        ([0.6, 0.7], [0.5, 0.6]),
        ([0.1 + 0.2, 0.3, 0.3], [0.3, 0.3, 0.3]),  # which differ in their last bit
    ],
)
def test_without_spread_there_is_no_p_value(a, b):
    assert math.isnan(paired_difference(a, b).p_value)


@given(st.floats(1e-3, 100), st.floats(1e-3, 100))
def test_harmonic_mean_is_the_reciprocal_of_the_mean_reciprocal(base, new):
    assert float(harmonic_mean(base, new)) == pytest.approx(1 / np.mean([1 / base, 1 / new]))


def test_harmonic_mean_with_zeros():
    np.testing.assert_array_equal(harmonic_mean([0.0, 0.0, 0.5], [0.0, 0.7, 0.5]), [0.0, 0.0, 0.5])


# Base/new accuracies of the eleven datasets as published for CLIP and CoOp (MaPLe, CVPR 2023, table 3).
PUBLISHED = {
    "clip": (
        [72.43, 96.84, 91.17, 63.37, 72.08, 90.10, 27.19, 69.36, 53.24, 56.48, 70.53],
        [68.14, 94.00, 97.26, 74.89, 77.80, 91.22, 36.29, 75.35, 59.90, 64.05, 77.50],
        71.70,  # as printed
        71.59,  # the mean of the eleven H, from the H column as printed
    ),
    "coop": (
        [76.47, 98.00, 93.67, 78.12, 97.60, 88.33, 40.44, 80.60, 79.44, 92.19, 84.69],
        [67.88, 89.81, 95.29, 60.40, 59.67, 82.26, 22.30, 65.89, 41.18, 54.74, 56.05],
        71.66,
        70.83,
    ),
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_both_averages_of_a_published_table(method):
    base, new, of_means, of_harmonics = PUBLISHED[method]
    assert harmonic_of_means(base, new) == pytest.approx(of_means, abs=0.01)
    assert mean_of_harmonics(base, new) == pytest.approx(of_harmonics, abs=0.01)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=12))
def test_mean_of_harmonics_is_never_above(pairs):
    base, new = zip(*pairs, strict=True)
    assert mean_of_harmonics(base, new) <= harmonic_of_means(base, new) + 1e-9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: summarize([]), "at least one value"),
        (lambda: summarize([[1.0]]), r"shape \(1, 1\)"),
        (lambda: summarize([1.0, math.inf]), "found inf"),
        (lambda: paired_difference([1.0, 2.0], [1.0]), r"\(2,\) and \(1,\)"),
        (lambda: harmonic_mean(-0.1, 0.5), "found -0.1"),
    ],
)
def test_errors_name_what_was_found(call, message):
    with pytest.raises(ValueError, match=message):
        call()
