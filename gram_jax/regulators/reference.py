"""Regulators whose context is a second gradient, that of what should not be forgotten."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.errors import InputError
from gram_jax.regulators.base import Regulator, by_leaf, leafwise

Array = jax.Array
PyTree = Any


def with_reference(
    name: str,
    settings: Mapping[str, Any],
    init_leaf: Callable[[Array, tuple[int, ...], Any], dict[str, Any]],
    apply_leaf: Callable[[dict[str, Any], Array, Array], Array],
) -> Regulator:
    """A regulator that treats every leaf of a prompt by itself, beside the same leaf of a reference gradient.

    Its context is that gradient, at the same prompt: a pytree of the structure and shapes of the gradients. The
    setting "reference" names the regularizers that it is the gradient of, as `gram_jax.objectives.parse` reads them:

        objective = objectives.parse(regulator.settings["reference"])
        context = jax.grad(lambda prompt: objective.penalty(prompt, outputs(prompt), labels, reference)[0])(prompt)

    Args:
      name: the regulator's name.
      settings: its settings, JSON values, "reference" among them.
      init_leaf: as in `leafwise`.
      apply_leaf: `apply_leaf(parameters, gradient, reference) -> gradient`, all of one shape and dtype; exactly
        `gradient` where the reference is 0.

    Returns:
      The regulator. It raises ValueError where the context is missing or unlike the gradients, and as `leafwise`.

    Raises:
      InputError: if "reference" is not a text that names at least one regularizer.
    """
    spec = settings["reference"]
    if not isinstance(spec, str) or not spec.strip():
        raise InputError(f'{name}: reference={spec!r} must name a regularizer, such as "distillation"')

    def regulate(parameters: dict[str, Any], gradient: Array, reference: Array) -> Array:
        return apply_leaf(parameters, gradient, jnp.reshape(reference, gradient.shape).astype(gradient.dtype))

    alone = leafwise(name, settings, init_leaf, regulate)

    def apply(phi: PyTree, grads: PyTree, context: PyTree = None) -> PyTree:
        paths, parameters, structure = by_leaf(name, phi, grads)
        leaves = []
        for (path, leaf), own, reference in zip(paths, parameters, _references(name, grads, context), strict=True):
            label = jax.tree_util.keystr(path, simple=True, separator="/")
            leaves.append(alone.apply({label: own}, {label: leaf}, reference)[label])
        return structure.unflatten(leaves)

    return Regulator(name, alone.settings, alone.init, apply)


def _references(name: str, grads: PyTree, context: PyTree) -> list[Array]:
    """The leaves of the reference gradient, which must be like those of the gradients."""
    if context is None:
        raise InputError(
            f"{name} holds a gradient against a reference gradient and is given no context; pass context=, the "
            "gradient of what its setting 'reference' names, at the same prompt."
        )

    def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): jnp.shape(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    if jax.tree.structure(context) != jax.tree.structure(grads) or shapes(context) != shapes(grads):
        raise InputError(
            f"{name} is given a reference gradient of shapes {shapes(context)} beside a gradient of shapes "
            f"{shapes(grads)}; both must be gradients with respect to the same prompt."
        )
    return jax.tree.leaves(context)
