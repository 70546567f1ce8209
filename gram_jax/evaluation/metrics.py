"""Classification metrics as pure functions: fractions in [0, 1], jit-able, maskable, summable over batches."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gram_jax.errors import InputError


def accuracy(logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The fraction of samples whose largest logit is at their label.

    accuracy = sum_i m_i [argmax_c logits_ic = y_i] / sum_i m_i; of equal logits the first counts.

    Args:
      logits: float [N, C].
      labels: int [N], in 0..C-1.
      mask: bool or float [N]; 0 leaves a sample out (padding of a last batch). None keeps all.

    Returns:
      float32 []; NaN if nothing is left.

    Raises:
      InputError: the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> float(accuracy(jnp.array([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]]), jnp.array([0, 1, 1]), jnp.array([1, 1, 0])))
      1.0

    Reference:
      Standard.
    """
    _check(logits, labels, mask)
    weights = jnp.ones(labels.shape) if mask is None else mask.astype(jnp.float32)
    correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return jnp.sum(correct * weights) / jnp.sum(weights)


def confusion_matrix(logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Counts of true against predicted classes; the matrices of batches add up.

    M_tp = sum_i m_i [y_i = t] [argmax_c logits_ic = p].

    Args:
      logits: float [N, C].
      labels: int [N], in 0..C-1.
      mask: bool or float [N]; 0 leaves a sample out. None keeps all.

    Returns:
      float32 [C, C]; rows are true classes, columns predicted ones.

    Raises:
      InputError: the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> confusion_matrix(jnp.array([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]]), jnp.array([0, 1, 1])).tolist()
      [[1.0, 0.0], [1.0, 1.0]]

    Reference:
      Standard.
    """
    _check(logits, labels, mask)
    classes = logits.shape[-1]
    weights = jnp.ones(labels.shape) if mask is None else mask.astype(jnp.float32)
    return jnp.zeros((classes, classes)).at[labels, jnp.argmax(logits, axis=-1)].add(weights)


def per_class_accuracy(confusion: jax.Array) -> jax.Array:
    """The accuracy within each true class (its recall).

    r_c = M_cc / sum_p M_cp.

    Args:
      confusion: [C, C], rows true, columns predicted.

    Returns:
      float32 [C]; NaN for a class without samples. ``jnp.nanmean`` of it is the balanced accuracy.

    Example:
      >>> import jax.numpy as jnp
      >>> per_class_accuracy(jnp.array([[3.0, 1.0], [0.0, 2.0]])).tolist()
      [0.75, 1.0]

    Reference:
      Standard.
    """
    return jnp.diagonal(confusion) / jnp.sum(confusion, axis=1)


def macro_f1(confusion: jax.Array) -> jax.Array:
    """The F1 score of each class, averaged over the classes that occur.

    F1_c = 2 M_cc / (sum_p M_cp + sum_t M_tc), mean over {c : sum_p M_cp > 0}.

    Args:
      confusion: [C, C], rows true, columns predicted.

    Returns:
      float32 []; NaN if there are no samples.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(macro_f1(jnp.array([[3.0, 1.0], [0.0, 2.0]]))), 4)
      0.8286

    Reference:
      Standard; averaged over the true classes, as the evaluator behind CoOp does.
    """
    true, predicted = jnp.sum(confusion, axis=1), jnp.sum(confusion, axis=0)
    f1 = 2 * jnp.diagonal(confusion) / (true + predicted)
    return jnp.mean(f1, where=true > 0)


def expected_calibration_error(
    probabilities: jax.Array, labels: jax.Array, mask: jax.Array | None = None, *, bins: int = 15
) -> jax.Array:
    """How far a classifier's confidence is from its accuracy.

    ECE = sum_b (|B_b| / N) |accuracy(B_b) - confidence(B_b)|, where B_b holds the samples whose largest probability
    lies in ((b - 1) / bins, b / bins].

    Args:
      probabilities: float [N, C], rows summing to one.
      labels: int [N], in 0..C-1.
      mask: bool or float [N]; 0 leaves a sample out. None keeps all.
      bins: the number of bins of equal width, >= 1.

    Returns:
      float32 []; NaN if nothing is left.

    Raises:
      InputError: the shapes do not fit, or ``bins`` < 1.

    Example:
      >>> import jax.numpy as jnp
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
    confidence: jax.Array, correct: jax.Array, mask: jax.Array | None = None, *, bins: int = 15
) -> jax.Array:
    """The expected calibration error of predictions, where the other probabilities are not at hand.

    Args:
      confidence: float [N], the probability of the predicted class.
      correct: bool [N], whether the prediction is right.
      mask: bool or float [N]; 0 leaves a sample out. None keeps all.
      bins: the number of bins of equal width, >= 1.

    Returns:
      float32 [], as :func:`expected_calibration_error`; NaN if nothing is left.

    Raises:
      InputError: the shapes do not fit, or ``bins`` < 1.

    Example:
      >>> import jax.numpy as jnp
      >>> float(calibration_error(jnp.array([0.75, 0.75, 0.75, 0.75]), jnp.array([True, True, False, False])))
      0.25

    Reference:
      See :func:`expected_calibration_error`.
    """
    if bins < 1:
        raise InputError(f"bins={bins}: at least one bin is needed")
    if confidence.ndim != 1 or correct.shape != confidence.shape or (mask is not None and mask.shape != correct.shape):
        raise InputError(
            f"expected confidence [N], correct [N] and a mask [N] or None; found {confidence.shape}, {correct.shape} "
            f"and {None if mask is None else mask.shape}"
        )
    weights = jnp.ones(correct.shape) if mask is None else mask.astype(jnp.float32)
    confidence, correct = jnp.asarray(confidence, jnp.float32), jnp.asarray(correct, jnp.float32)
    index = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    # |B| |accuracy - confidence| = |sum of (correct - confidence)|, which needs no division by an empty bin.
    gaps = jnp.zeros(bins).at[index].add(weights * (correct - confidence))
    return jnp.sum(jnp.abs(gaps)) / jnp.sum(weights)


def _check(scores: jax.Array, labels: jax.Array, mask: jax.Array | None) -> None:
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or (mask is not None and mask.shape != labels.shape):
        raise InputError(
            f"expected scores [N, C], labels [N] and a mask [N] or None; found {scores.shape}, {labels.shape} and "
            f"{None if mask is None else mask.shape}"
        )
