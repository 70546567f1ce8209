"""Correlations over many tuned prompts, with an interval over the draws that they were tuned on."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from gram_jax.errors import InputError

_CONSTANT = 1e-5  # a smaller relative spread is rounding in float32


class Correlation(NamedTuple):
    """A coefficient and its 95 % interval (low, high), with the numbers of values and of draws.

    `r` is NaN if one of the two quantities is constant within the groups; `ci95` is None then, and if a stratum has one
    draw only.
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
    """Returns Pearson's or Spearman's coefficient, pooled or within groups, with a bootstrap interval over draws.

    r = sum_g sum_i (x_i - x_g)(y_i - y_g) / sqrt( sum_g sum_i (x_i - x_g)^2  sum_g sum_i (y_i - y_g)^2 )

    with x_g, y_g the means of group g: for one group Pearson's coefficient, for several the partial correlation given
    the group. Prompts tuned on the same images are not independent, so the bootstrap resamples whole draws: from each
    stratum as many as it has. The interval is between percentiles.

    `draws`, `groups` and `strata` are labels [n], groups and strata None for one; a draw belongs to one stratum. With
    `ranks`, values are replaced by their ranks within the group, divided by its size; ranks are not recomputed in each
    of the bootstrap `samples`.

    Example:
      >>> x, draws = [1.0, 2.0, 3.0, 11.0, 12.0, 13.0], [0, 1, 2, 3, 4, 5]
      >>> correlation = correlate(x, [6.0, 5.0, 4.0, 3.0, 2.0, 1.0], draws, groups=[0, 0, 0, 1, 1, 1])
      >>> round(correlation.r, 6), correlation.n
      (-1.0, 6)

    Reference: Field and Welsh, "Bootstrapping clustered data", for the bootstrap over clusters.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    one = [0] * x.size
    draw, group, stratum = (
        pd.factorize(pd.Index(one if each is None else each, tupleize_cols=False))[0]
        for each in (draws, groups, strata)
    )
    lengths = [len(each) for each in (draw, group, stratum)]
    if x.ndim != 1 or x.shape != y.shape or not x.size or lengths != [x.size] * 3:
        raise InputError(
            f"expected values and labels of one length, at least 1; found shapes {x.shape} and {y.shape}, and "
            f"{', '.join(map(str, lengths))} labels"
        )
    if not np.isfinite([x, y]).all():
        raise InputError("expected finite values; exclude the others")
    stratum_of = np.zeros(draw.max() + 1, np.int64)
    stratum_of[draw] = stratum
    if np.any(stratum_of[draw] != stratum):
        raise InputError("a draw has two strata; give each draw its own label")
    count = len(stratum_of)
    if any(_centered(each, group).std() <= _CONSTANT * math.sqrt(np.mean(each**2)) for each in (x, y)):
        return Correlation(math.nan, None, len(x), count)
    if ranks:
        x, y = (pd.Series(each).groupby(group).rank(pct=True).to_numpy() for each in (x, y))
    x, y = _centered(x, group), _centered(y, group)  # sums of squares far from 0 would lose digits
    sums = np.zeros((count, group.max() + 1, 6))
    np.add.at(sums, (draw, group), np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1))
    r = float(_coefficients(sums, np.ones((1, count)))[0])
    sizes = np.bincount(stratum_of)
    if sizes.min() < 2:
        return Correlation(r, None, len(x), count)
    rng = np.random.default_rng(seed)
    weights = np.zeros((samples, count))
    for number, size in enumerate(sizes):
        weights[:, stratum_of == number] = rng.multinomial(size, np.full(size, 1 / size), size=samples)
    low, high = np.nanquantile(_coefficients(sums, weights), [0.025, 0.975])
    return Correlation(r, (float(low), float(high)), len(x), count)


def _coefficients(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns r for each row of weights [samples, draws], from sums [draws, groups, (1, x, y, xx, yy, xy)]."""
    n, x, y, xx, yy, xy = np.moveaxis(np.tensordot(weights, sums, axes=1), -1, 0)
    n = np.where(n > 0, n, 1.0)
    both, of_x, of_y = ((each - one * other / n).sum(1) for each, one, other in ((xy, x, y), (xx, x, x), (yy, y, y)))
    size = of_x * of_y
    varies = size > 1e-24 * size.max()  # a sample may consist of one draw, repeated
    return np.divide(both, np.sqrt(np.where(varies, size, 1.0)), out=np.full(len(both), np.nan), where=varies)


def _centered(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    return values - (np.bincount(group, values) / np.bincount(group))[group]
