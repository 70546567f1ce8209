"""Cross-entropy plus regularizers, each with its weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from gram_jax.errors import InputError
from gram_jax.objectives.base import Reference, Regularizers, as_reference, exclude
from gram_jax.objectives.cross_entropy import cross_entropy

if TYPE_CHECKING:
    from gram_jax.tuners import Outputs

Array = jax.Array

# A pure function (outputs, labels, reference) -> scalar.
Classification = Callable[["Outputs", Array, Reference], Array]
Objective = Callable[..., tuple[Array, dict[str, Array]]]


def regularized(regularizers: Regularizers, *, classification: Classification | None = None) -> Objective:
    """Makes the objective  CE + sum_i w_i R_i.

    A regularizer is a pure function `regularizer(prompt, outputs, labels, reference) -> scalar`: of what is learned,
    what the prompted clip says, the labels, and what the frozen clip says of the same images and classes. Those of
    several methods are joined with `|`: `regularized(kgcoop() | promptsrc())`.

    Args:
      regularizers: by name, a weight and a regularizer; may be empty.
      classification: `classification(outputs, labels, reference) -> scalar` in place of the cross-entropy, e.g.
        `long_tailed()`.

    Returns:
      `objective(prompt, outputs, labels, reference=None) -> (loss, parts)`. `reference` is a `Reference`, or the
      outputs of the frozen clip (`gram_jax.tuners.frozen_outputs`), or None where no regularizer reads it; classes and
      images that it marks as fillings count nowhere. `parts` holds "cross_entropy" and each regularizer by name, not
      weighted, for logs.

    Raises:
      InputError: a weight is no finite number, a regularizer no function, or a name is "cross_entropy". The objective
        raises it where a regularizer does not return a scalar, or reads what the reference does not hold.

    Example:
      >>> from gram_jax.tuners import Outputs
      >>> def stay_near(prompt, outputs, labels, reference):
      ...     return 1 - jnp.mean(jnp.sum(outputs.text_features * reference.text_features, axis=-1))
      >>> objective = regularized({"text": (8.0, stay_near)})
      >>> outputs = Outputs(jnp.zeros((1, 2)), jnp.ones((1, 1)), jnp.array([[1.0], [-1.0]]))
      >>> reference = outputs._replace(text_features=jnp.ones((2, 1)))
      >>> loss, parts = objective({}, outputs, jnp.array([0]), reference)
      >>> float(parts["text"]), round(float(loss - parts["cross_entropy"]), 4)
      (1.0, 8.0)

    Reference:
      The form of "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization" (KgCoOp), section 3.2, and
      "Self-regulating Prompts: Foundational Model Adaptation without Forgetting" (PromptSRC), section 3.2.
    """
    if "cross_entropy" in regularizers:
        raise InputError('"cross_entropy" is in every objective; give the regularizer another name.')
    penalty = weighted_sum(regularizers)
    classify = plain if classification is None else classification

    def objective(
        prompt: Any, outputs: Outputs, labels: Array, reference: Reference | Outputs | None = None
    ) -> tuple[Array, dict[str, Array]]:
        reference = as_reference(reference)
        outputs = outputs._replace(logits=exclude(outputs.logits, reference.valid))
        loss = classify(outputs, labels, reference)
        added, parts = penalty(prompt, outputs, labels, reference)
        return loss + added, {"cross_entropy": loss} | parts

    return objective


def weighted_sum(regularizers: Regularizers) -> Objective:
    """Makes the sum  sum_i w_i R_i  without a classification loss: what a reference gradient is the gradient of.

    Args:
      regularizers: as `regularized` takes them.

    Returns:
      `penalty(prompt, outputs, labels, reference=None) -> (sum, parts)`, as an objective that `regularized` makes; a
      regularizer that reads no labels lets them be None.

    Raises:
      InputError: as `regularized`.

    Example:
      >>> penalty = weighted_sum({"norm": (0.5, lambda prompt, *_: jnp.sum(prompt["context"] ** 2))})
      >>> float(penalty({"context": jnp.ones(4)}, None, None)[0])
      2.0

    Reference:
      Our own choice.
    """
    for name, pair in regularizers.items():
        if not isinstance(pair, tuple) or len(pair) != 2 or not callable(pair[1]):
            raise InputError(f"regularizer {name!r} must be a pair (weight, function), found {pair!r}.")
        if not isinstance(pair[0], (int, float)) or isinstance(pair[0], bool) or not math.isfinite(pair[0]):
            raise InputError(f"the weight of regularizer {name!r} must be a finite number, found {pair[0]!r}.")
    terms = dict(regularizers)  # what the caller does to theirs later is not ours to follow

    def penalty(
        prompt: Any, outputs: Outputs, labels: Array, reference: Reference | Outputs | None = None
    ) -> tuple[Array, dict[str, Array]]:
        reference = as_reference(reference)
        total, parts = jnp.zeros(()), {}
        for name, (weight, regularizer) in terms.items():
            value = regularizer(prompt, outputs, labels, reference)
            if jnp.shape(value):
                raise InputError(f"regularizer {name!r} must return a scalar, found shape {list(jnp.shape(value))}.")
            parts[name] = value
            total = total + weight * value
        return total, parts

    return penalty


def plain(outputs: Outputs, labels: Array, reference: Reference) -> Array:
    """The cross-entropy of the images that count."""
    return cross_entropy(outputs, labels, weights=reference.weights)
