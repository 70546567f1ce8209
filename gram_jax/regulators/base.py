"""What a gradient regulator is, and the parts that all of them are made of."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict

from gram_jax.errors import InputError

Array = jax.Array
PyTree = Any

# Mean squares below this are a zero gradient: 1 / mean square, and so second derivatives, stay finite in float32.
_ZERO = 1e-24
# The squared length of a unit row after a turn never falls below this: two opposite rows would cancel to 0 / 0.
_SHORTEST = 1e-6


class Regulator(NamedTuple):
    """A gradient-regulating function R_phi(g, c): two pure functions and what they were made with.

    Attributes:
      name: the name that `make` knows it by.
      settings: what the factory was called with, defaults filled in; JSON values.
      init: `init(key, prompt) -> phi`, parameters at which `apply` is exactly the identity. `prompt` is any pytree of
        float arrays (or of their shapes, as `jax.eval_shape` gives them); phi does not depend on the number of
        classes of a class-specific prompt.
      apply: `apply(phi, grads, context) -> grads`, with the structure, shapes and dtypes of `grads`. `context`
        describes the task: for regulators with a setting "context_dim", a vector `[context_dim]`; with a setting
        "prototypes", the task's relation to them, `[prototypes]`; with a setting "reference", a gradient; None for all
        others. `meta.regulator_context` makes the first two.

    Example:
      >>> from gram_jax import regulators
      >>> prompt = {"context": jnp.zeros((4, 8))}
      >>> regulator = regulators.affine()
      >>> phi = regulator.init(jax.random.key(0), prompt)
      >>> regulator.apply(phi, {"context": jnp.ones((4, 8))}, None)["context"].sum().item()
      32.0
    """

    name: str
    settings: Mapping[str, Any]
    init: Callable[[Array, PyTree], PyTree]
    apply: Callable[[PyTree, PyTree, Any], PyTree]


def as_optax(regulator: Regulator, phi: PyTree, context: Any = None) -> optax.GradientTransformation:
    """Returns an optax transformation that replaces each gradient g by R_phi(g, c); chain it before an optimizer.

    The transformation keeps no state, and phi stays frozen.

    Args:
      regulator: the regulator.
      phi: its parameters, from its `init` or from `gram_jax.load_meta`.
      context: the description of the task, see `Regulator`; None if the regulator reads none.

    Returns:
      The transformation.

    Example:
      >>> from gram_jax.regulators import affine
      >>> prompt = {"context": jnp.zeros((4, 8))}
      >>> regulator = affine()
      >>> phi = regulator.init(jax.random.key(0), prompt)
      >>> optimizer = optax.chain(as_optax(regulator, phi), optax.sgd(0.5))
      >>> updates, state = optimizer.update({"context": jnp.ones((4, 8))}, optimizer.init(prompt), prompt)
      >>> updates["context"].sum().item()
      -16.0

    Reference:
      "Gradient-Regulated Meta-Prompt Learning for Generalizable Vision-Language Models" (GRAM), which keeps the
      regulating function during downstream adaptation.
    """
    return optax.stateless(lambda updates, params: regulator.apply(phi, updates, context))


def leafwise(
    name: str,
    settings: Mapping[str, Any],
    init_leaf: Callable[[Array, tuple[int, ...], Any], dict[str, Any]],
    apply_leaf: Callable[[dict[str, Any], Array, Any], Array],
) -> Regulator:
    """A regulator that treats every leaf of a prompt by itself.

    phi has the prompt's structure with a dictionary of parameters in place of each leaf. A scalar leaf is treated as
    a vector of one channel; a leaf below float32 is regulated in float32.

    Args:
      name: the regulator's name.
      settings: its settings, JSON values.
      init_leaf: `init_leaf(key, shape, dtype) -> parameters` of a leaf of at least one axis.
      apply_leaf: `apply_leaf(parameters, gradient, context) -> gradient`, of the same shape and dtype.

    Returns:
      The regulator. Its functions raise ValueError for a prompt without leaves or with leaves that are not floats, and
      for parameters that were made for another prompt.
    """

    @functools.lru_cache(maxsize=1024)
    def expected(shape: tuple[int, ...], dtype: Any) -> PyTree:
        return jax.eval_shape(lambda key: init_leaf(key, shape, dtype), jax.random.key(0))

    def init(key: Array, prompt: PyTree) -> PyTree:
        paths, structure = jax.tree_util.tree_flatten_with_path(prompt)
        if not paths:
            raise InputError(f"the prompt given to {name}'s init has no arrays; give it what a tuner's init returns.")
        for path, leaf in paths:
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise InputError(
                    f"prompt leaf {jax.tree_util.keystr(path)} is {leaf.dtype}, and {name} regulates gradients of "
                    "floats; keep other arrays out of the prompt."
                )
        keys = jax.random.split(key, len(paths))
        leaves = [init_leaf(key, _shape(leaf), _dtype(leaf)) for key, (_, leaf) in zip(keys, paths, strict=True)]
        return jax.tree_util.tree_unflatten(structure, leaves)

    def apply(phi: PyTree, grads: PyTree, context: Any = None) -> PyTree:
        paths, parameters, structure = by_leaf(name, phi, grads)
        leaves = []
        for (path, leaf), own in zip(paths, parameters, strict=True):
            _check_parameters(name, jax.tree_util.keystr(path), own, expected(_shape(leaf), _dtype(leaf)))
            gradient = jnp.reshape(leaf, _shape(leaf)).astype(_dtype(leaf))
            leaves.append(apply_leaf(own, gradient, context).reshape(leaf.shape).astype(leaf.dtype))
        return jax.tree_util.tree_unflatten(structure, leaves)

    return Regulator(name, FrozenDict(settings), init, apply)


def by_leaf(name: str, phi: PyTree, grads: PyTree) -> tuple[list[tuple[Any, Array]], list[Any], Any]:
    """The leaves of a gradient with their paths, the parameters of each, and the structure; checks that they match."""
    paths, structure = jax.tree_util.tree_flatten_with_path(grads)
    try:
        return paths, structure.flatten_up_to(phi), structure
    except ValueError as error:
        raise InputError(f"phi of {name} was made for a prompt of another structure: {error}") from error


def rms(values: Array, axes: int) -> Array:
    """Root mean square over the last `axes` axes, kept as axes of length 1; exactly 0, with derivative 0, near 0."""
    square = jnp.mean(values**2, axis=tuple(range(-min(axes, values.ndim), 0)), keepdims=True)
    return jnp.where(square > _ZERO, jnp.sqrt(jnp.maximum(square, _ZERO)), 0.0)


def unit_rms(values: Array, scale: Array) -> Array:
    """The values divided by their root mean square `scale`, or as they are where that is 0."""
    return values / jnp.where(scale > 0, scale, 1.0)


def turned(gradient: Array, turn: Callable[[Array], Array]) -> Array:
    """What is added to rows g that are turned and keep their length: |g| (u + d(u)) / |u + d(u)| - g, u = g / |g|.

    `turn` is d as a function of sqrt(width) u. What is added is exactly 0 where d is.
    """
    root = gradient.shape[-1] ** 0.5
    size = rms(gradient, 1)  # [..., tokens, 1], the rows' length over the root of their width
    row = unit_rms(gradient, size)  # root * u
    change = turn(row)
    # |u + d|^2 = 1 + 2 <u, d> + |d|^2
    length = 1.0 + 2.0 / root * jnp.sum(row * change, -1, keepdims=True) + jnp.sum(change**2, -1, keepdims=True)
    shrink = 1.0 / jnp.sqrt(jnp.maximum(length, _SHORTEST))
    return (shrink - 1.0) * gradient + shrink * root * size * change


def read_context(name: str, context: Any, context_dim: int) -> Array:
    """The context vector at a root mean square of 1, so that its scale does not matter; checks its size."""
    if context is None:
        raise InputError(f"{name} was made with context_dim={context_dim} and is given no context; pass context=.")
    context = jnp.asarray(context)
    if context.shape != (context_dim,):
        raise InputError(
            f"{name} was made with context_dim={context_dim} and is given a context of shape {list(context.shape)}; "
            f"pass one vector [{context_dim}] a task."
        )
    return unit_rms(context, rms(context, 1))


def positive(name: str, setting: str, value: Any, *, optional: bool = False) -> int | None:
    """A setting that must be a positive integer, or None if it is optional."""
    if optional and value is None:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise InputError(f"{name}: {setting} is {value!r}; give an integer of at least 1.")
    return number


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(leaf.shape) or (1,)


def _dtype(leaf: Any) -> Any:
    return jnp.promote_types(leaf.dtype, jnp.float32)


def _check_parameters(name: str, path: str, found: PyTree, expected: PyTree) -> None:
    def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
        return {
            jax.tree_util.keystr(path): jnp.shape(leaf) if not hasattr(leaf, "shape") else tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    found, expected = shapes(found), shapes(expected)
    if found != expected:
        raise InputError(
            f"phi of {name} at prompt leaf {path} has shapes {found}, and this prompt and these settings take "
            f"{expected}; initialize phi for this prompt."
        )
