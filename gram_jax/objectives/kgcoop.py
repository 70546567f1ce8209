"""KgCoOp: prompted text features stay near those of a hand-written template."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.clip.modules import at_least_float32
from gram_jax.objectives.base import Reference, Regularizers, mean_of_classes, read


def kgcoop(weight: float = 8.0) -> Regularizers:
    """Knowledge-guided context optimization: text features keep the direction of hand-written ones.

        R = 1 - mean_k <t_k, t_k^hand>

    the cosine form of the public code; the paper's mean |t_k - t_k^hand|^2 is twice this. Text features that depend on
    the image are averaged over the images too.

    Args:
      weight: lambda.

    Returns:
      The regularizer with its weight, `{"kgcoop": (weight, R)}`, for `regularized`. It reads
      `reference.text_features`, those of the dataset's own template.

    Example:
      >>> from gram_jax.objectives import Reference, kgcoop
      >>> from gram_jax.tuners import Outputs
      >>> weight, regularizer = kgcoop()["kgcoop"]
      >>> outputs = Outputs(None, None, jnp.array([[1.0, 0.0], [0.6, 0.8]]))
      >>> round(float(regularizer({}, outputs, None, Reference(text_features=jnp.eye(2)))), 4)
      0.1

    Reference:
      "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", section 3.2; the public code for the
      cosine and lambda = 8.
    """

    def text(prompt: Any, outputs: Any, labels: Any, reference: Reference) -> jax.Array:
        del prompt, labels
        features = at_least_float32(outputs.text_features)
        hand = read("kgcoop", reference, "text_features", features.shape[-2:])
        return 1.0 - mean_of_classes(jnp.sum(features * hand, axis=-1), reference)

    return {"kgcoop": (weight, text)}
