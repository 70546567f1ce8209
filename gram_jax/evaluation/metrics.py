"""Classification metrics as pure functions that work under jit; fractions are in [0, 1].

Shapes: N samples, C classes. A mask, bool or float [N], excludes samples with 0, such as the padding of a last batch;
None includes all. Without any sample a result is NaN. Shapes that do not fit raise InputError.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gram_jax.errors import InputError

_VECTORS = "two arrays [N]"


def accuracy(logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Returns the fraction of samples whose largest logit is at their label.

    accuracy = sum_i m_i [argmax_c logits_ic = y_i] / sum_i m_i; of equal logits, the first counts.

    Args:
      logits, labels, mask: float [N, C]; int [N], in 0..C-1; see the module.

    Returns:
      float32 [].

    Example:
      >>> float(accuracy(jnp.array([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]]), jnp.array([0, 1, 1]), jnp.array([1, 1, 0])))
      1.0
    """
    _check(logits, labels, mask)
    weights = jnp.ones(labels.shape) if mask is None else mask.astype(jnp.float32)
    return jnp.sum((jnp.argmax(logits, axis=-1) == labels) * weights) / jnp.sum(weights)


def confusion_matrix(
    predicted: ArrayLike, labels: ArrayLike, num_classes: int, mask: ArrayLike | None = None
) -> np.ndarray | jax.Array:
    """Returns counts of true against predicted classes; the matrices of batches add up.

    M_tp = sum_i m_i [y_i = t] [predicted_i = p].

    Args:
      predicted, labels: int [N], in 0..C-1; e.g. the argmax of the logits for the first.
      num_classes, mask: C, and the mask described in the module.

    Returns:
      [C, C]; rows are true classes, columns predicted ones. NumPy arrays give a NumPy array; JAX arrays and tracers
      give a JAX array. Counts are integers without a mask, floats with one.

    Example:
      >>> confusion_matrix(np.array([0, 1, 0]), np.array([0, 1, 1]), 2).tolist()
      [[1, 0], [1, 1]]
    """
    on_host = not any(isinstance(each, jax.Array) for each in (predicted, labels, mask))
    library, length = (np, {}) if on_host else (jnp, {"length": num_classes**2})
    predicted, labels = library.asarray(predicted, int), library.asarray(labels, int)
    _check(predicted, labels, mask, _VECTORS)
    weights = None if mask is None else library.asarray(mask, np.float32)
    places = labels * num_classes + predicted
    return library.bincount(places, weights, minlength=num_classes**2, **length).reshape(num_classes, num_classes)


def per_class_accuracy(confusion: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """Returns the accuracy within each true class (its recall), r_c = M_cc / sum_p M_cp.

    Args:
      confusion: [C, C], rows true, columns predicted.

    Returns:
      float [C], NaN for a class without samples; the `nanmean` of it is the balanced accuracy.
    """
    with np.errstate(invalid="ignore"):
        return confusion.diagonal() / confusion.sum(axis=1)


def macro_f1(confusion: ArrayLike) -> jax.Array:
    """Returns the F1 score of each class, averaged over the classes that occur.

    F1_c = 2 M_cc / (sum_p M_cp + sum_t M_tc), mean over {c : sum_p M_cp > 0}, as in Dassl, CoOp's evaluator.

    Args:
      confusion: [C, C], rows true, columns predicted.

    Returns:
      float32 [].

    Example:
      >>> round(float(macro_f1(jnp.array([[3.0, 1.0], [0.0, 2.0]]))), 4)
      0.8286
    """
    true, predicted = jnp.sum(confusion, axis=1), jnp.sum(confusion, axis=0)
    return jnp.mean(2 * jnp.diagonal(confusion) / (true + predicted), where=true > 0)


def expected_calibration_error(
    probabilities: jax.Array, labels: jax.Array, mask: jax.Array | None = None, *, bins: int = 15
) -> jax.Array:
    """Returns the mean gap between the confidence and the accuracy of a classifier.

    ECE = sum_b (|B_b| / N) |accuracy(B_b) - confidence(B_b)|, where B_b holds the samples whose largest probability
    lies in ((b - 1) / bins, b / bins].

    Args:
      probabilities: float [N, C], rows summing to one.
      labels: int [N], in 0..C-1.
      mask, bins: see the module; the number of bins of equal width, >= 1.

    Returns:
      float32 [].

    Example:
      >>> probabilities = jnp.array([[0.75, 0.25]] * 4)
      >>> float(expected_calibration_error(probabilities, jnp.array([0, 0, 0, 1])))
      0.0

    Reference:
      Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.
    """
    _check(probabilities, labels, mask)
    correct = jnp.argmax(probabilities, axis=-1) == labels
    return calibration_error(jnp.max(probabilities, axis=-1), correct, mask, bins=bins)


def calibration_error(
    confidence: ArrayLike, correct: ArrayLike, mask: ArrayLike | None = None, *, bins: int = 15
) -> jax.Array:
    """Returns the expected calibration error from the probability of the predicted class alone.

    Args:
      confidence, correct: float [N] and bool [N], the probability of the predicted class and whether it is right.
      mask, bins: as in `expected_calibration_error`.

    Returns:
      float32 [], as in `expected_calibration_error`.
    """
    if bins < 1:
        raise InputError(f"bins={bins}: at least one bin is needed")
    _check(confidence, correct, mask, _VECTORS)
    confidence, correct = jnp.asarray(confidence, jnp.float32), jnp.asarray(correct, jnp.float32)
    weights = jnp.ones(correct.shape) if mask is None else jnp.asarray(mask, jnp.float32)
    index = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    # |B| |accuracy - confidence| = |sum of (correct - confidence)|, which needs no division by an empty bin.
    gaps = jnp.zeros(bins).at[index].add(weights * (correct - confidence))
    return jnp.sum(jnp.abs(gaps)) / jnp.sum(weights)


def _check(
    scores: ArrayLike, labels: ArrayLike, mask: ArrayLike | None, form: str = "scores [N, C], labels [N]"
) -> None:
    first, second, third = jnp.shape(scores), jnp.shape(labels), None if mask is None else jnp.shape(mask)
    if len(first) != (2 if "C" in form else 1) or second != first[:1] or third not in (None, second):
        raise InputError(f"expected {form} and a mask [N] or None; found {first}, {second} and {third}")
