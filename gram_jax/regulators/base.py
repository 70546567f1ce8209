"""The contract of gradient regulators, their optax transformation, and the parts that they share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict

from gram_jax.errors import InputError
from gram_jax.registry import Call, reduced

Array = jax.Array
PyTree = Any

# Mean squares below this count as a zero gradient: 1 / mean square, and so second derivatives, stay finite in float32.
_ZERO = 1e-24
# The squared length of a unit row after a turn never falls below this: two opposite rows would cancel to 0 / 0.
_SHORTEST = 1e-6


class Regulator(NamedTuple):
    """A gradient-regulating function R_phi(g, c): two pure functions, and the settings that they were made with.

    Attributes:
      name: its name; `make(name, **settings)` makes the regulator again.
      settings: all settings of the factory, defaults included; JSON values.
      init: `init(key, prompt) -> phi`, parameters at which `apply` is exactly the identity (if a setting is
        "reference": for a reference of 0). `prompt` is any pytree of float arrays, or of their shapes from
        `jax.eval_shape`; phi does not depend on the number of classes of a class-specific prompt.
      apply: `apply(phi, grads, context) -> grads`, with the structure, shapes and dtypes of `grads`. The context
        describes the task. With a setting "context_dim" it is a vector `[context_dim]`; with "prototypes", the relation
        of the task to them, `[prototypes]`; with "reference", a second gradient at the same prompt; otherwise None.
        `meta.regulator_context` makes the first two.

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

    def __reduce__(self) -> Any:
        return reduced(self, "gram_jax.regulators")

    def __repr__(self) -> str:
        return str(Call(self.name, dict(self.settings)))


def as_optax(regulator: Regulator, phi: PyTree, context: Any = None) -> optax.GradientTransformation:
    """Returns an optax transformation that replaces each gradient g by R_phi(g, c); chain it before an optimizer.

    The transformation has no state, and phi stays frozen.

    Args:
      regulator, phi: a regulator and its parameters, from its `init` or from `gram_jax.load_meta`.
      context: the description of the task, see `Regulator`.

    Example:
      >>> from gram_jax.regulators import affine
      >>> prompt, regulator = {"context": jnp.zeros((4, 8))}, affine()
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
    """Makes a regulator that treats each leaf of a prompt separately.

    phi has the structure of the prompt, with a dictionary of parameters in place of each leaf. A scalar leaf is treated
    as a vector of one channel; a leaf below float32 is regulated in float32.

    Args:
      name: the regulator's name.
      settings: its settings, JSON values. If "reference" is one, the context is a gradient at the same prompt, and
        `apply_leaf` gets its leaf. That setting names the regularizers whose gradient it is:

            objective = objectives.parse(regulator.settings["reference"])
            context = jax.grad(lambda prompt: objective.penalty(prompt, outputs(prompt), labels, reference)[0])(prompt)

      init_leaf: `init_leaf(key, shape, dtype) -> parameters` of a leaf of at least one axis.
      apply_leaf: `apply_leaf(parameters, gradient, context) -> gradient`, of the same shape and dtype.
    """
    reference = settings.get("reference")
    if "reference" in settings and (not isinstance(reference, str) or not reference.strip()):
        raise InputError(f"{name}: reference={reference!r} must name a regularizer, such as 'distillation'")

    @functools.lru_cache(maxsize=1024)
    def expected(shape: tuple[int, ...], dtype: Any) -> PyTree:
        return jax.eval_shape(lambda key: init_leaf(key, shape, dtype), jax.random.key(0))

    def init(key: Array, prompt: PyTree) -> PyTree:
        paths, structure = jax.tree_util.tree_flatten_with_path(prompt)
        if not paths:
            raise InputError(f"{name}.init: the prompt has no arrays; pass the result of a tuner's init")
        for path, leaf in paths:
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise InputError(f"{name}.init: prompt leaf {jax.tree_util.keystr(path)} is {leaf.dtype}, not a float")
        keys = jax.random.split(key, len(paths))
        leaves = [init_leaf(key, _shape(leaf), _dtype(leaf)) for key, (_, leaf) in zip(keys, paths, strict=True)]
        return jax.tree.unflatten(structure, leaves)

    def apply(phi: PyTree, grads: PyTree, context: PyTree = None) -> PyTree:
        paths, structure = jax.tree_util.tree_flatten_with_path(grads)
        try:
            parameters = structure.flatten_up_to(phi)  # type: ignore[attr-defined]  # the stub of PyTreeDef is empty
        except ValueError as error:
            raise InputError(f"phi of {name} belongs to a prompt of another structure: {error}") from error
        contexts = [context] * len(paths) if reference is None else _references(name, grads, context)
        leaves = []
        for (path, leaf), own, given in zip(paths, parameters, contexts, strict=True):
            shape, dtype = _shape(leaf), _dtype(leaf)
            found, wanted = _shapes(own), _shapes(expected(shape, dtype))
            if found != wanted:
                raise InputError(
                    f"phi of {name} at prompt leaf {jax.tree_util.keystr(path)} has shapes {found}, but the prompt and "
                    f"the settings need {wanted}; initialize phi for this prompt"
                )
            if reference is not None:
                given = jnp.reshape(given, shape).astype(dtype)
            regulated = apply_leaf(own, jnp.reshape(leaf, shape).astype(dtype), given)
            leaves.append(regulated.reshape(leaf.shape).astype(leaf.dtype))
        return jax.tree.unflatten(structure, leaves)

    return Regulator(name, FrozenDict(settings), init, apply)


def mean_over(values: Array, axes: int) -> Array:
    """Returns the mean over the last `axes` axes, kept at length 1."""
    return jnp.mean(values, axis=tuple(range(-min(axes, values.ndim), 0)), keepdims=True)


def rms(values: Array, axes: int) -> Array:
    """Returns the root mean square over the last `axes` axes, kept at length 1; 0, with derivative 0, near 0."""
    square = mean_over(values**2, axes)
    return jnp.where(square > _ZERO, jnp.sqrt(jnp.maximum(square, _ZERO)), 0.0)


def unit_rms(values: Array, scale: Array) -> Array:
    """Divides values by their root mean square `scale`; values of scale 0 are returned as they are."""
    return values / jnp.where(scale > 0, scale, 1.0)


def turned(gradient: Array, turn: Callable[[Array], Array]) -> Array:
    """Returns the change of rows g that are turned at the same length: |g| (u + d(u)) / |u + d(u)| - g, u = g / |g|.

    `turn` is d as a function of sqrt(width) u. The change is exactly 0 where d is.
    """
    root = gradient.shape[-1] ** 0.5
    size = rms(gradient, 1)  # [..., tokens, 1], the rows' length over the root of their width
    row = unit_rms(gradient, size)  # root * u
    change = turn(row)
    # |u + d|^2 = 1 + 2 <u, d> + |d|^2
    length = 1.0 + 2.0 / root * jnp.sum(row * change, -1, keepdims=True) + jnp.sum(change**2, -1, keepdims=True)
    shrink = 1.0 / jnp.sqrt(jnp.maximum(length, _SHORTEST))
    return (shrink - 1.0) * gradient + shrink * root * size * change


def read_vector(name: str, setting: str, length: int, context: Any) -> Array:
    """Returns the context, a vector whose length is a setting; raises InputError if it is anything else."""
    shape = None if context is None else list(jnp.shape(context))
    if shape != [length]:
        raise InputError(f"{name} has {setting}={length}: context= must be one vector [{length}] per task, not {shape}")
    return jnp.asarray(context)


def read_context(name: str, context: Any, context_dim: int) -> Array:
    """Returns the context vector, scaled to root mean square 1 so that its scale does not matter."""
    context = read_vector(name, "context_dim", context_dim, context)
    return unit_rms(context, rms(context, 1))


def _references(name: str, grads: PyTree, context: PyTree) -> list[Array]:
    """Returns the leaves of a reference gradient, which must be like those of the gradient."""
    if context is None:
        raise InputError(f"{name} needs context=, the gradient of its reference at the same prompt, not None")
    alike = jax.tree.structure(context) == jax.tree.structure(grads)  # type: ignore[operator]  # stub of PyTreeDef
    if not alike or _shapes(context) != _shapes(grads):
        raise InputError(
            f"{name} got a reference gradient of shapes {_shapes(context)} and a gradient of shapes {_shapes(grads)}; "
            "both must be gradients at the same prompt"
        )
    return jax.tree.leaves(context)


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): jnp.shape(leaf) for path, leaf in leaves}


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(leaf.shape) or (1,)


def _dtype(leaf: Any) -> Any:
    return jnp.promote_types(leaf.dtype, jnp.float32)
