"""Classification with unequal numbers of images per class: adjusted logits and weighted classes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gram_jax.errors import require_number
from gram_jax.objectives.base import EXCLUDED, Classification, Reference, read
from gram_jax.objectives.cross_entropy import cross_entropy
from gram_jax.tuners import Outputs

Array = jax.Array


def logit_adjustment(counts: Array, strength: float = 1.0) -> Array:
    """Returns the amounts to add to the logits in training, so that the plain logits rank classes of equal prior.

        a_k = tau log(n_k / sum_j n_j)

    Args:
      counts: n, training images per class, `[classes]`.
      strength: tau; 1 is consistent for the balanced error, 0 changes nothing.

    Returns:
      At least float32 `[classes]`; -1e9 for a class without images, which training then ignores.

    Example:
      >>> jnp.exp(logit_adjustment(jnp.array([3, 1]))).tolist()
      [0.75, 0.25]

    Reference:
      Menon et al., "Long-tail learning via logit adjustment", the logit-adjusted softmax cross-entropy.
    """
    counts = _floats(counts)
    prior = counts / jnp.sum(counts)
    if strength == 0:
        return jnp.zeros_like(prior)
    return jnp.where(counts > 0, strength * jnp.log(jnp.where(counts > 0, prior, 1.0)), EXCLUDED)


def class_weights(counts: Array, exponent: float = 1.0) -> Array:
    """Returns the training weight of an image, per class.

        w_k = n_k^-gamma sum_j n_j / sum_j n_j^(1 - gamma)

    so that the mean weight over the training images is 1.

    Args:
      counts: n, training images per class, `[classes]`.
      exponent: gamma; 1 gives every class the same total weight, 0 every image the same weight, 1/2 is between.

    Returns:
      At least float32 `[classes]`; 0 for a class without images.

    Example:
      >>> class_weights(jnp.array([16, 4])).tolist()
      [0.625, 2.5]

    Reference:
      Inverse class frequency; the exponent as in Mahajan et al., "Exploring the Limits of Weakly Supervised
      Pretraining", which resamples with 1/2.
    """
    counts = _floats(counts)
    some = jnp.where(counts > 0, counts, 1.0)
    total = jnp.sum(jnp.where(counts > 0, some ** (1.0 - exponent), 0.0))
    return jnp.where(counts > 0, some**-exponent * jnp.sum(counts) / total, 0.0)


def long_tailed(adjustment: float = 0.0, exponent: float = 0.0) -> Classification:
    """Makes the cross-entropy of adjusted logits, with each image weighted by its class.

        loss = sum_b w_{y_b} CE(z_b + a, y_b) / sum_b w_{y_b}

    Args:
      adjustment: tau of `logit_adjustment`, >= 0.
      exponent: gamma of `class_weights`, >= 0.

    Returns:
      `classification(outputs, labels, reference)` for `regularized`; it reads `reference.counts`. Predictions use the
      plain logits.

    Example:
      >>> outputs, reference = Outputs(jnp.zeros((1, 2)), None, None), Reference(counts=jnp.array([3, 1]))
      >>> loss = long_tailed(adjustment=1.0)(outputs, jnp.array([0]), reference)
      >>> bool(jnp.isclose(loss, -jnp.log(0.75)))
      True
    """
    require_number("adjustment", adjustment, least=0)
    require_number("exponent", exponent, least=0)

    def classification(outputs: Outputs, labels: Array, reference: Reference) -> Array:
        counts = read("long_tailed", reference, "counts", jnp.shape(outputs.logits)[-1:])
        weights = class_weights(counts, exponent)[jnp.clip(labels, 0, len(counts) - 1)]
        if reference.weights is not None:
            weights = weights * reference.weights
        adjusted = outputs._replace(logits=outputs.logits + logit_adjustment(counts, adjustment))
        return cross_entropy(adjusted, labels, weights=weights)

    return classification


def _floats(counts: Array) -> Array:
    counts = jnp.asarray(counts)
    return counts.astype(jnp.promote_types(counts.dtype, jnp.float32))
