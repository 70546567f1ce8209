"""How two measures of many tuned prompts go together, with an interval over the draws that they were tuned on."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from gram_jax.errors import InputError

_STILL = 1e-5  # what varies by less than this share of its size does not vary but for rounding in float32


class Correlation(NamedTuple):
    """A coefficient and how sure it is.

    Attributes:
      r: the coefficient; NaN where one of the two does not vary within the groups.
      ci95: (low, high) of its 95 % interval; None without r, or where a stratum has one draw only.
      n: how many values there are of each.
      draws: how many draws they are of.
    """

    r: float
    ci95: tuple[float, float] | None
    n: int
    draws: int


def correlate(
    x: ArrayLike,
    y: ArrayLike,
    draws: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    ranks: bool = False,
    samples: int = 2000,
    seed: int = 0,
) -> Correlation:
    """Pearson's coefficient, or Spearman's, pooled or within groups, with a bootstrap interval over whole draws.

    r = sum_g sum_i (x_i - x_g)(y_i - y_g) / sqrt( sum_g sum_i (x_i - x_g)^2  sum_g sum_i (y_i - y_g)^2 )

    with x_g, y_g the means of group g: within one group Pearson's coefficient, within several the partial correlation
    given the group. Prompts that were tuned on the same images are no independent evidence: the bootstrap draws such
    sets, all their values together, from each stratum as many as it has; the interval is that of percentiles.

    Args:
      x: float [n].
      y: float [n].
      draws: [n], labels: what shares one is drawn together.
      groups: [n], labels; None for one group.
      strata: [n], labels of which each draw has one; None for one stratum.
      ranks: Spearman's: the ranks within the group, divided by its size, take the place of the values. They are not
        taken anew in each sample.
      samples: of the bootstrap, at least 1.
      seed: of the bootstrap.

    Returns:
      The `Correlation`.

    Raises:
      InputError: the lengths differ or are 0, a value is not finite, or a draw is of two strata.

    Example:
      >>> x, draws = [1.0, 2.0, 3.0, 11.0, 12.0, 13.0], [0, 1, 2, 3, 4, 5]
      >>> found = correlate(x, [6.0, 5.0, 4.0, 3.0, 2.0, 1.0], draws, groups=[0, 0, 0, 1, 1, 1])
      >>> round(found.r, 6), found.n
      (-1.0, 6)

    Reference:
      The partial correlation is standard, the bootstrap over clusters that of Field and Welsh, "Bootstrapping
      clustered data"; ranks that stay are our own choice.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    every = [_labels(x, each) for each in (draws, groups, strata)]
    if x.ndim != 1 or x.shape != y.shape or not x.size or any(len(each) != len(x) for each in every):
        raise InputError(
            f"expected values and labels of one length, at least 1; found shapes {x.shape} and {y.shape}, and "
            f"{', '.join(str(len(each)) for each in every)} labels"
        )
    if not (np.all(np.isfinite(x)) and np.all(np.isfinite(y))):
        raise InputError("expected finite values; leave out what is not")
    draw, group, stratum = every
    of_draw = np.zeros(draw.max() + 1, np.int64)
    of_draw[draw] = stratum
    if np.any(of_draw[draw] != stratum):
        raise InputError("a draw is of two strata; give each draw labels of its own")
    count = len(of_draw)
    varies = all(_spread(values, group) > _STILL * math.sqrt(np.mean(values**2)) for values in (x, y))
    if not varies:
        return Correlation(math.nan, None, len(x), count)
    if ranks:
        x, y = _ranks(x, group), _ranks(y, group)
    # Centered first, since sums of squares far from 0 lose digits.
    x, y = _centre(x, group), _centre(y, group)
    sums = np.zeros((count, group.max() + 1, 6))
    np.add.at(sums, (draw, group), np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1))
    r = float(_coefficients(sums, np.ones((1, count)))[0])
    sizes = np.bincount(of_draw)
    if sizes.min() < 2:
        return Correlation(r, None, len(x), count)
    rng = np.random.default_rng(seed)
    weights = np.zeros((samples, count))
    for number, size in enumerate(sizes):
        weights[:, of_draw == number] = rng.multinomial(size, np.full(size, 1 / size), size=samples)
    low, high = np.nanquantile(_coefficients(sums, weights), [0.025, 0.975])
    return Correlation(r, (float(low), float(high)), len(x), count)


def _coefficients(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """r for each line of weights [samples, draws], of sums [draws, groups, (1, x, y, xx, yy, xy)]."""
    n, x, y, xx, yy, xy = np.moveaxis(np.tensordot(weights, sums, axes=1), -1, 0)
    n = np.where(n > 0, n, 1.0)
    both, of_x, of_y = ((each - one * other / n).sum(1) for each, one, other in ((xy, x, y), (xx, x, x), (yy, y, y)))
    size = of_x * of_y
    varies = size > 1e-24 * size.max()  # a sample may hold one draw alone, over and over
    return np.divide(both, np.sqrt(np.where(varies, size, 1.0)), out=np.full(len(both), np.nan), where=varies)


def _labels(values: np.ndarray, labels: Any) -> np.ndarray:
    """Labels as numbers from 0; one for all where there are none."""
    if labels is None:
        return np.zeros(len(np.atleast_1d(values)), np.int64)
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return np.array([numbers[label] for label in labels], np.int64)


def _centre(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    return values - (np.bincount(group, values) / np.bincount(group))[group]


def _spread(values: np.ndarray, group: np.ndarray) -> float:
    return math.sqrt(np.mean(_centre(values, group) ** 2))


def _ranks(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Ranks within the group, ties sharing their mean, divided by the group's size."""
    found = np.zeros(len(values))
    for number in range(group.max() + 1):
        _, place, ties = np.unique(values[group == number], return_inverse=True, return_counts=True)
        found[group == number] = (np.cumsum(ties) - (ties - 1) / 2)[place] / len(place)
    return found
