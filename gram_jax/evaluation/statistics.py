"""Means with their uncertainty, paired differences, and the field's two averages of harmonic means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from gram_jax.errors import InputError

_ROUNDING = 1e-12  # far below what one image more or less makes of an accuracy, far above float64's error


class Summary(NamedTuple):
    """A mean and how sure it is.

    Attributes:
      mean: the sample mean.
      std: the sample standard deviation, with n - 1 in the denominator; NaN for one value.
      ci95: (low, high) of the 95 % confidence interval of the mean; NaN for one value.
      n: how many values.
    """

    mean: float
    std: float
    ci95: tuple[float, float]
    n: int


def summarize(values: ArrayLike) -> Summary:
    """Mean, standard deviation and 95 % confidence interval of independent values, e.g. over seeds.

    mean +- t_{0.975, n-1} std / sqrt(n), Student's t, since a handful of seeds is far from normal.

    Args:
      values: [n], n >= 1, finite.

    Returns:
      A :class:`Summary`; one value has a mean but no spread.

    Raises:
      InputError: there are no values, not a single axis, or some are not finite.

    Example:
      >>> summary = summarize([0.6, 0.7, 0.8])
      >>> round(summary.mean, 4), round(summary.std, 4), [round(bound, 3) for bound in summary.ci95], summary.n
      (0.7, 0.1, [0.452, 0.948], 3)

    Reference:
      Student's t interval.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise InputError(f"expected one axis with at least one value, found shape {values.shape}")
    if not np.all(np.isfinite(values)):
        raise InputError(f"expected finite values, found {values[~np.isfinite(values)][0]}")
    mean, n = float(values.mean()), values.size
    if n == 1:
        return Summary(mean, math.nan, (math.nan, math.nan), 1)
    # scipy.stats takes most of a second to import for the same number.
    from scipy.special import stdtrit

    std = float(values.std(ddof=1))
    half = float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n)
    return Summary(mean, std, (mean - half, mean + half), n)


def paired_difference(a: ArrayLike, b: ArrayLike) -> Summary:
    """The mean of a - b over the same draws, whose common variation cancels.

    Args:
      a: [n], one value for each draw (seed, dataset, task).
      b: [n], the other method on the same draws in the same order.

    Returns:
      The :class:`Summary` of a - b. An interval on one side of zero is the paired t-test at 5 %.

    Raises:
      InputError: the lengths differ, or as for :func:`summarize`.

    Example:
      >>> difference = paired_difference([0.6, 0.7, 0.8], [0.5, 0.62, 0.69])
      >>> round(difference.mean, 4), difference.ci95[0] > 0
      (0.0967, True)

    Reference:
      The paired t-test.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise InputError(f"paired values must be as many on both sides, found shapes {a.shape} and {b.shape}")
    return summarize(a - b)


def p_value(difference: Summary) -> float:
    """How likely a mean at least as far from zero is, if the true mean is zero: the paired t-test, two-sided.

    p = 2 P(T_{n-1} > |mean| sqrt(n) / std), Student's t.

    Args:
      difference: of a - b over the same draws, from :func:`paired_difference`.

    Returns:
      p, in [0, 1]; below 0.05 exactly where the 95 % interval excludes zero. NaN where there is no spread to test
      against: for one draw, and for differences that are all the same, to rounding.

    Example:
      >>> round(p_value(paired_difference([0.6, 0.7, 0.8], [0.5, 0.62, 0.69])), 4)
      0.0082

    Reference:
      The paired t-test.
    """
    if difference.n < 2 or difference.std <= _ROUNDING * max(1.0, abs(difference.mean)):
        return math.nan
    from scipy.special import stdtr

    statistic = abs(difference.mean) * math.sqrt(difference.n) / difference.std
    return float(2 * stdtr(difference.n - 1, -statistic))


def harmonic_mean(base: ArrayLike, new: ArrayLike) -> np.ndarray:
    """H of base- and new-class accuracies, element by element.

    H = 2 b n / (b + n), and 0 where both are 0.

    Args:
      base: accuracies >= 0, any shape, as fractions or percentages.
      new: accuracies in the same unit, of a shape that broadcasts.

    Returns:
      float64, the broadcast shape, in the unit of the arguments.

    Raises:
      InputError: an accuracy is negative.

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
    """H(mean base, mean new): the average that the published tables print.

    Args:
      base: [n] accuracies over datasets or seeds.
      new: [n] accuracies in the same order.

    Returns:
      The harmonic mean of the two means.

    Example:
      >>> round(harmonic_of_means([90.0, 60.0], [30.0, 60.0]), 4)
      56.25

    Reference:
      Re-computed from CoCoOp's table 1: the averages there are of this kind.
    """
    return float(harmonic_mean(np.mean(base), np.mean(new)))


def mean_of_harmonics(base: Sequence[float] | np.ndarray, new: Sequence[float] | np.ndarray) -> float:
    """The mean of H over datasets or seeds; never above :func:`harmonic_of_means`.

    Args:
      base: [n] accuracies over datasets or seeds.
      new: [n] accuracies in the same order.

    Returns:
      The mean of the harmonic means.

    Example:
      >>> round(mean_of_harmonics([90.0, 60.0], [30.0, 60.0]), 4)
      52.5

    Reference:
      Our own choice, reported beside the other and labeled.
    """
    return float(np.mean(harmonic_mean(base, new)))
