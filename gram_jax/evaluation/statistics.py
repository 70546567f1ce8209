"""Means with confidence intervals, paired differences, and the two averages of harmonic means in the literature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from gram_jax.errors import InputError

_ROUNDING = 1e-12  # well below the weight of one image in an accuracy, well above the errors of float64


class Summary(NamedTuple):
    """A mean and its uncertainty.

    Attributes:
      mean, n: the sample mean, and the number of values.
      std: the sample standard deviation, with n - 1 in the denominator; NaN for one value.
      ci95: (low, high) of the 95 % confidence interval of the mean; NaN for one value.
      p_value: for paired differences, that of the two-sided paired t-test; otherwise NaN.
    """

    mean: float
    std: float
    ci95: tuple[float, float]
    n: int
    p_value: float = math.nan


def summarize(values: ArrayLike) -> Summary:
    """Returns mean, standard deviation and 95 % confidence interval of independent values, e.g. over seeds.

    mean +- t_{0.975, n-1} std / sqrt(n), with Student's t, because a few seeds are far from normal.

    Args:
      values: [n], n >= 1, finite.

    Example:
      >>> summary = summarize([0.6, 0.7, 0.8])
      >>> round(summary.mean, 4), round(summary.std, 4), [round(bound, 3) for bound in summary.ci95], summary.n
      (0.7, 0.1, [0.452, 0.948], 3)
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise InputError(f"expected one axis with at least one value, found shape {values.shape}")
    if not np.all(np.isfinite(values)):
        raise InputError(f"expected finite values, found {values[~np.isfinite(values)][0]}")
    mean, n = float(values.mean()), values.size
    if n == 1:
        return Summary(mean, math.nan, (math.nan, math.nan), 1)
    from scipy import stats  # slow to import

    std = float(values.std(ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return Summary(mean, std, (mean - half, mean + half), n)


def paired_difference(a: ArrayLike, b: ArrayLike) -> Summary:
    """Returns the mean of a - b over the same draws, so that their common variation cancels, and the paired t-test.

    Args:
      a, b: [n], one value for each draw (seed, dataset, task), in one order.

    Returns:
      The summary of a - b. Its p-value is below 0.05 exactly if the interval excludes zero, and NaN for one draw and
      for differences that are equal up to rounding.

    Example:
      >>> difference = paired_difference([0.6, 0.7, 0.8], [0.5, 0.62, 0.69])
      >>> round(difference.mean, 4), difference.ci95[0] > 0, round(difference.p_value, 4)
      (0.0967, True, 0.0082)
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise InputError(f"paired values must have the same shape, found {a.shape} and {b.shape}")
    summary = summarize(a - b)
    if summary.n < 2 or summary.std <= _ROUNDING * max(1.0, abs(summary.mean)):
        return summary
    from scipy import stats

    return summary._replace(p_value=float(stats.ttest_rel(a, b).pvalue))


def harmonic_mean(base: ArrayLike, new: ArrayLike) -> np.ndarray:
    """Returns the harmonic mean H of base- and new-class accuracies, element by element.

    H = 2 b n / (b + n), and 0 if both are 0.

    Args:
      base, new: accuracies >= 0 in one unit, of shapes that broadcast.

    Returns:
      float64, the broadcast shape, in the unit of the arguments.

    Example:
      >>> float(harmonic_mean(75.0, 50.0))
      60.0

    Reference:
      Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022, table 1.
    """
    base, new = np.broadcast_arrays(np.asarray(base, np.float64), np.asarray(new, np.float64))
    if np.any(base < 0) or np.any(new < 0):
        raise InputError(f"accuracies must not be negative, found {min(base.min(), new.min())}")
    total = base + new
    return np.divide(2 * base * new, total, out=np.zeros_like(total), where=total > 0)


def harmonic_of_means(base: Sequence[float] | np.ndarray, new: Sequence[float] | np.ndarray) -> float:
    """Returns H(mean base, mean new), the average in the published tables.

    Args:
      base, new: [n] accuracies over datasets or seeds, in one order.

    Example:
      >>> round(harmonic_of_means([90.0, 60.0], [30.0, 60.0]), 4)
      56.25

    Reference:
      Recomputed from CoCoOp's table 1, whose averages are of this form.
    """
    return float(harmonic_mean(np.mean(base), np.mean(new)))


def mean_of_harmonics(base: Sequence[float] | np.ndarray, new: Sequence[float] | np.ndarray) -> float:
    """Returns the mean of H over datasets or seeds, which is never above `harmonic_of_means`.

    Args:
      base, new: [n] accuracies over datasets or seeds, in one order.
    """
    return float(np.mean(harmonic_mean(base, new)))
