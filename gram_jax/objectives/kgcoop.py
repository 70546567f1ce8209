"""KgCoOp: prompted text features stay near those of a hand-written template."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.clip.modules import at_least_float32
from gram_jax.objectives.base import Reference, Regularizer, Regularizers, mean_of_classes, read


def kgcoop(weight: float = 8.0) -> Regularizers:
    """Makes the regularizer of knowledge-guided context optimization.

        R = 1 - mean_k <t_k, t_k^hand>

    This is the cosine form of the public code; the paper's mean |t_k - t_k^hand|^2 is twice this. Text features that
    depend on the image are averaged over the images too.

    Args:
      weight: lambda.

    Returns:
      `{"kgcoop": R}`; it reads `reference.text_features`, those of the dataset's template.

    Example:
      >>> from gram_jax.tuners import Outputs
      >>> outputs = Outputs(None, None, jnp.array([[1.0, 0.0], [0.6, 0.8]]))
      >>> value = kgcoop()["kgcoop"].function({}, outputs, None, Reference(text_features=jnp.eye(2)))
      >>> round(float(value), 4)
      0.1

    Reference:
      "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", section 3.2; the cosine and lambda = 8
      are those of its public code.
    """

    def text(prompt: Any, outputs: Any, labels: Any, reference: Reference) -> jax.Array:
        features = at_least_float32(outputs.text_features)
        hand = read("kgcoop", reference, "text_features", features.shape[-2:])
        return 1.0 - mean_of_classes(jnp.sum(features * hand, axis=-1), reference)

    return {"kgcoop": Regularizer(weight, text, reads=("text_features",), sides=("text",))}
