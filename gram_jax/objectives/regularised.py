"""Cross-entropy plus regularisers, each with its weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from gram_jax.objectives.cross_entropy import cross_entropy

if TYPE_CHECKING:
    from gram_jax.tuners import Outputs

Regulariser = Callable[[Any, "Outputs", jax.Array, "Outputs | None"], jax.Array]
Objective = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


def regularised(regularisers: Mapping[str, tuple[float, Regulariser]]) -> Objective:
    """Makes the objective  CE + sum_i w_i R_i.

    A regulariser is a pure function `regulariser(prompt, outputs, labels, reference) -> scalar`: of what is learned,
    what the prompted clip says, the labels, and what the frozen clip says of the same images and classes.

    Args:
      regularisers: by name, a weight and a regulariser; may be empty.

    Returns:
      `objective(prompt, outputs, labels, reference=None) -> (loss, parts)`. `reference` are the outputs of the frozen
      clip (`gram_jax.tuners.frozen_outputs`), computed once, or None where no regulariser reads them. `parts` holds
      "cross_entropy" and each regulariser by name, not weighted, for logs.

    Raises:
      ValueError: a weight is no finite number, a regulariser no function, or a name is "cross_entropy". The objective
        raises it where a regulariser does not return a scalar.

    Example:
      >>> from gram_jax.tuners import Outputs
      >>> def stay_near(prompt, outputs, labels, reference):
      ...     return 1 - jnp.mean(jnp.sum(outputs.text_features * reference.text_features, axis=-1))
      >>> objective = regularised({"text": (8.0, stay_near)})
      >>> outputs = Outputs(jnp.zeros((1, 2)), jnp.ones((1, 1)), jnp.array([[1.0], [-1.0]]))
      >>> reference = outputs._replace(text_features=jnp.ones((2, 1)))
      >>> loss, parts = objective({}, outputs, jnp.array([0]), reference)
      >>> float(parts["text"]), round(float(loss - parts["cross_entropy"]), 4)
      (1.0, 8.0)

    Reference:
      The form of "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization" (KgCoOp), section 3.2, and
      "Self-regulating Prompts: Foundational Model Adaptation without Forgetting" (PromptSRC), section 3.2.
    """
    for name, pair in regularisers.items():
        if name == "cross_entropy":
            raise ValueError('"cross_entropy" is in every objective; give the regulariser another name.')
        if not isinstance(pair, tuple) or len(pair) != 2 or not callable(pair[1]):
            raise ValueError(f"regulariser {name!r} must be a pair (weight, function), found {pair!r}.")
        if not isinstance(pair[0], (int, float)) or isinstance(pair[0], bool) or not math.isfinite(pair[0]):
            raise ValueError(f"the weight of regulariser {name!r} must be a finite number, found {pair[0]!r}.")
    terms = dict(regularisers)  # what the caller does to theirs later is not ours to follow

    def objective(
        prompt: Any, outputs: Outputs, labels: jax.Array, reference: Outputs | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        parts = {"cross_entropy": cross_entropy(outputs, labels)}
        loss = parts["cross_entropy"]
        for name, (weight, regulariser) in terms.items():
            value = regulariser(prompt, outputs, labels, reference)
            if jnp.shape(value):
                raise ValueError(f"regulariser {name!r} must return a scalar, found shape {list(jnp.shape(value))}.")
            parts[name] = value
            loss = loss + weight * value
        return loss, parts

    return objective
