"""Compositional zero-shot learning: accuracies of seen and unseen pairs along a bias, as pure functions.

A classifier that was trained on seen pairs prefers them. The field therefore adds a bias b to the score of every unseen
pair, moves it from low to high, and reports the curve of accuracies. The biases are chosen on the images that are
evaluated, **with their labels**: all published numbers, and these, read test labels for it. `bins`
decides how many points the curve has; against all points, the published 20 change an AUC by about 0.1 points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.errors import InputError, require_int

BINS = 20  # points of the published curve, approximately
ALL_UNSEEN = 1e3  # the bias at which every prediction is an unseen pair
_THRESHOLDS = 50  # of feasibility that are tried
_JUST_LOST = 1e-4  # below the bias at which an unseen pair ties with the best seen one


class ImageScores(NamedTuple):
    """The part of the scores of each image that the bias sweep reads, arrays `[N]`; the number of pairs has no axis.

    Attributes:
      own: the score of the true pair.
      seen, unseen: the largest score of a candidate that is seen, and of one that is not; -inf if there is none.
      seen_pair, unseen_pair: the pairs of these scores.
      label: the true pair.
      is_seen: whether the true pair is seen.
    """

    own: np.ndarray
    seen: np.ndarray
    unseen: np.ndarray
    seen_pair: np.ndarray
    unseen_pair: np.ndarray
    label: np.ndarray
    is_seen: np.ndarray


class Curve(NamedTuple):
    """Accuracies of images with seen and with unseen pairs, `[points]` each, along increasing biases."""

    bias: np.ndarray
    seen: np.ndarray
    unseen: np.ndarray


class Measures(NamedTuple):
    """The field's metrics, fractions in [0, 1].

    Attributes:
      best_seen, best_unseen: S and U, the largest accuracies on the curve.
      best_harmonic: H, the largest harmonic mean of both on the curve.
      auc: the area under the accuracy of seen pairs as a function of that of unseen ones.
      attribute, object: the share of images whose predicted pair, without a bias, has the right attribute or object.
    """

    best_seen: float
    best_unseen: float
    best_harmonic: float
    auc: float
    attribute: float
    object: float


@jax.jit
def image_scores(scores: jax.Array, labels: jax.Array, seen: jax.Array, candidates: jax.Array) -> ImageScores:
    """Reduces the scores of a batch of images to what the bias sweep needs.

    Args:
      scores: float `[N, P]`.
      labels: int `[N]`, the true pairs.
      seen, candidates: bool `[P]`: trained pairs, and pairs that may be answered (see `Compositions.candidates`).

    Returns:
      The `ImageScores`; join those of batches with `join_scores`. Of equal scores, the first counts.

    Example:
      >>> seen, every = jnp.array([True, False, False]), jnp.ones(3, bool)
      >>> found = image_scores(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([1]), seen, every)
      >>> float(found.own[0]), float(found.seen[0]), float(found.unseen[0]), int(found.unseen_pair[0])
      (1.0, 3.0, 2.0, 2)
    """
    known, new = (jnp.where(kind & candidates, scores, -jnp.inf) for kind in (seen, ~seen))
    own = jnp.take_along_axis(scores, labels[:, None], axis=-1)[:, 0]
    best = own, known.max(-1), new.max(-1), known.argmax(-1), new.argmax(-1)
    return ImageScores._make((*best, labels, seen[labels]))


def join_scores(parts: Sequence[ImageScores]) -> ImageScores:
    """Returns the reduced scores of all batches as one, on the host.

    Args:
      parts: those of each batch.
    """
    return ImageScores(*(np.concatenate([np.asarray(each) for each in field]) for field in zip(*parts, strict=True)))


def bias_curve(scores: ImageScores, bins: int | None = BINS) -> Curve:
    """Returns the accuracies of images with seen and unseen pairs along the bias.

    The biases are d_i - 1e-4 with d_i = (largest score of a seen pair) - (score of the true pair), for every image with
    an unseen pair that is right where only unseen pairs are answered: at this bias the image is just lost. They are
    sorted, and every max(len // bins, 1)-th is used, then a bias of 1000, at which every prediction is an unseen pair.

    Args:
      scores: the reduced scores, of images with seen and with unseen pairs.
      bins: 20 as published; None for all biases, which is exact.

    Returns:
      A `Curve`, its last point at the bias 1000.

    Reference:
      "Task-driven Modular Networks for Zero-Shot Compositional Learning", section 5; public code of "Learning to
      Compose Soft Prompts for Compositional Zero-Shot Learning", which the papers after it use.
    """
    if bins is not None:
        require_int("bins", bins)
    unseen = ~scores.is_seen
    if not unseen.any() or unseen.all():
        which = "unseen" if not unseen.any() else "seen"
        raise InputError(f"no image has {which} pairs; a curve needs images with seen and with unseen pairs")
    found = unseen & (scores.unseen_pair == scores.label) & np.isfinite(scores.unseen)
    lost = np.sort(np.float64(scores.seen[found]) - np.float64(scores.own[found]) - _JUST_LOST)
    skip = 1 if bins is None else max(len(lost) // bins, 1)
    biases = np.append(lost[::skip], ALL_UNSEEN)
    points = [_accuracies(scores, bias) for bias in biases]
    return Curve(biases, *(np.array(each) for each in zip(*points, strict=True)))


def _accuracies(scores: ImageScores, bias: float) -> tuple[float, float]:
    right = predicted_pairs(scores, bias) == scores.label
    return float(right[scores.is_seen].mean()), float(right[~scores.is_seen].mean())


def predicted_pairs(scores: ImageScores, bias: float = 0.0) -> np.ndarray:
    """Returns the pair that each image is classified as, int `[N]`, if unseen pairs have a bias.

    Args:
      scores, bias: the reduced scores, and the number that is added to those of unseen pairs.
    """
    seen, unseen = np.float64(scores.seen), np.float64(scores.unseen) + bias
    first = np.where(scores.seen_pair < scores.unseen_pair, seen >= unseen, seen > unseen)
    return np.where(first, scores.seen_pair, scores.unseen_pair)


def measure(scores: ImageScores, pairs: np.ndarray, bins: int | None = BINS) -> tuple[Measures, Curve]:
    """Returns the field's metrics, and the curve that they are read from.

    Args:
      scores, bins: as in `bias_curve`.
      pairs: int `[P, 2]`, the attribute and the object of each pair.

    Example:
      >>> seen, every, pairs = jnp.array([True, False]), jnp.ones(2, bool), np.array([[0, 0], [1, 0]])
      >>> scores = image_scores(jnp.array([[2.0, 1.0], [2.0, 3.0], [2.0, 2.5]]), jnp.array([0, 1, 1]), seen, every)
      >>> found, curve = measure(join_scores([scores]), pairs)
      >>> found.best_seen, found.best_unseen, found.auc, curve.unseen.tolist()
      (1.0, 1.0, 0.75, [0.0, 0.5, 1.0])
    """
    curve = bias_curve(scores, bins)
    total = curve.seen + curve.unseen
    harmonic = np.divide(2 * curve.seen * curve.unseen, total, out=np.zeros_like(total), where=total > 0)
    right = np.asarray(pairs)[predicted_pairs(scores)] == np.asarray(pairs)[scores.label]
    area = np.trapezoid(curve.seen, curve.unseen)
    best = (each.max() for each in (curve.seen, curve.unseen, harmonic))
    return Measures._make(map(float, (*best, area, *right.mean(0)))), curve


def thresholds(feasible: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Returns 50 thresholds from the smallest to the largest feasibility of an unseen pair, evenly spaced.

    Args:
      feasible, seen: the feasibility of each pair (see `gram_jax.data.compositions.feasibility`), and bool, `[P]`.
    """
    return np.linspace(feasible[~seen].min(), feasible[~seen].max(), _THRESHOLDS)


def calibrate(tried: np.ndarray, scores: Sequence[ImageScores], pairs: np.ndarray) -> float:
    """Returns the threshold of feasibility with the largest AUC on validation images; the lowest of equal ones.

    The candidates of the open world are the seen pairs and all pairs that are at least as feasible as the threshold;
    others score -inf.

    Args:
      tried: the thresholds.
      scores: the reduced scores of the validation images under the candidates of each threshold.
      pairs: int `[P, 2]`.

    Reference:
      "Open World Compositional Zero-Shot Learning", section 3.3. Public code multiplies the scores of infeasible pairs
      by 0, which is a good score where others are negative, and doubles those of seen pairs for thresholds up to 0.
    """
    return float(tried[int(np.argmax([measure(each, pairs)[0].auc for each in scores]))])
