"""Distillation of the frozen clip's probabilities, the general knowledge that ProGrad preserves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.clip.modules import at_least_float32
from gram_jax.errors import require_number
from gram_jax.objectives.base import Reference, Regularizer, Regularizers, log_probabilities, mean_of_images, read


def distillation(weight: float = 1.0, *, temperature: float = 1.0) -> Regularizers:
    """Makes the cross-entropy between the probabilities of the frozen and of the prompted clip.

    With logits z and z^ of the prompted and the frozen clip and temperature T,

        R = -T^2 mean_b sum_k softmax(z^_b / T)_k log softmax(z_b / T)_k,

    whose gradient is that of T^2 KL(frozen || prompted). As a regularizer it is knowledge distillation; its gradient is
    the reference of the regulator `gram_jax.regulators.prograd`.

    Args:
      weight: of the regularizer.
      temperature: T, > 0.

    Returns:
      `{"distillation": R}`; it reads `reference.logits`.

    Example:
      >>> from gram_jax.tuners import Outputs
      >>> regularizer = distillation()["distillation"].function
      >>> value = regularizer({}, Outputs(jnp.zeros((3, 2)), None, None), None, Reference(logits=jnp.ones((3, 2))))
      >>> bool(jnp.isclose(value, jnp.log(2)))
      True

    Reference:
      "Prompt-aligned Gradient for Prompt Tuning" (ProGrad); the factor T^2 is in its public code.
    """
    require_number("temperature", temperature, above=0)

    def knowledge(prompt: Any, outputs: Any, labels: Any, reference: Reference) -> jax.Array:
        frozen = read("distillation", reference, "logits", jnp.shape(outputs.logits))
        own = log_probabilities(at_least_float32(outputs.logits) / temperature, reference)
        shares = jnp.exp(log_probabilities(frozen / temperature, reference))
        return -(temperature**2) * mean_of_images(jnp.sum(shares * own, axis=-1), reference)

    return {"distillation": Regularizer(weight, knowledge, reads=("logits",))}
