"""Cross-entropy of prompted classification."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from gram_jax.clip.modules import at_least_float32
from gram_jax.errors import InputError
from gram_jax.objectives.base import weighted_mean
from gram_jax.tuners import Outputs


def cross_entropy(outputs: Outputs, labels: jax.Array, *, weights: jax.Array | None = None) -> jax.Array:
    """Returns the mean cross-entropy of the labels.

    loss = sum_b w_b [ -log softmax(logits_b)[y_b] ] / sum_b w_b,    logits_bc = exp(logit_scale) * <f_b, t_c>.

    Args:
      outputs: of a tuner; only `logits`, `[images, classes]`, are read.
      labels: int `[images]`, from 0 to classes - 1.
      weights: non-negative, `[images]`, e.g. 0 for padding; None: equal weights. If all weights are 0, the loss is 0.

    Returns:
      The loss, a scalar in nats, at least float32; NaN if a label is not a class.

    Example:
      >>> logits = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))
      >>> loss = cross_entropy(Outputs(logits, None, None), jnp.array([0, 1]))
      >>> bool(jnp.isclose(loss, -jnp.log(0.5 * 0.75) / 2))
      True

    Reference:
      "Learning to Prompt for Vision-Language Models", section 3.2, equation 4.
    """
    shape, count = jnp.shape(outputs.logits), jnp.shape(labels)
    if len(shape) != 2 or count != shape[:1]:
        raise InputError(
            f"cross_entropy needs logits [images, classes] and labels [images], not {list(shape)} and {list(count)}"
        )
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise InputError(f"labels must be integers, not {jnp.result_type(labels)}")
    if weights is not None and jnp.shape(weights) != count:
        raise InputError(f"weights must have the shape of the labels, {list(count)}, not {list(jnp.shape(weights))}")
    labels, logits = jnp.asarray(labels), at_least_float32(outputs.logits)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    losses = jnp.where((labels >= 0) & (labels < shape[1]), losses, jnp.nan)
    return weighted_mean(losses, weights)  # padding may have any label
