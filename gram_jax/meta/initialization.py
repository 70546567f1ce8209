"""What meta-learning learns, where adaptation starts, and what its regulator reads: of all tasks, or of each kind."""

from __future__ import annotations

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gram_jax.errors import InputError
from gram_jax.meta.context import Structure, relation
from gram_jax.regulators import Regulator

Array = jax.Array
PyTree = Any


@flax.struct.dataclass
class Meta:
    """What meta-learning learns; it starts every adaptation, and knows no class list.

    Attributes:
      prompt: theta, where adaptation starts.
      phi: the regulator's parameters.
      log_rates: the logarithm of the inner step size of each prompt leaf.
      offsets: of a structured start, what each prototype adds to theta, `[prototypes, ...]` each leaf; or None.
      structure: the `Structure` of that start, or of a regulator that reads the relation to prototypes; or None.

    Example:
      >>> from gram_jax.meta import init_meta
      >>> meta = init_meta({"context": jnp.zeros((4, 8))}, {"context": {}}, learning_rate=0.1)
      >>> round(meta.rates["context"].item(), 6)
      0.1
    """

    prompt: PyTree
    phi: PyTree
    log_rates: PyTree
    offsets: PyTree = None
    structure: Structure | None = None

    @property
    def rates(self) -> PyTree:
        """The inner step sizes, as `adapt` takes them for its `learning_rate`."""
        return jax.tree.map(jnp.exp, self.log_rates)


def init_meta(prompt: PyTree, phi: PyTree, learning_rate: float) -> Meta:
    """Where meta-learning starts: a tuner's prompt, a regulator's parameters, one step size for all leaves.

    Args:
      prompt: as a tuner's `init` makes it.
      phi: as the regulator's `init` makes it from that prompt.
      learning_rate: inner step size, > 0; stored as a logarithm, so that it stays positive when it is learned.

    Returns:
      The `Meta`.

    Raises:
      InputError: if the step size is not a positive number.

    Example:
      >>> init_meta({"context": jnp.zeros((4, 8))}, {"context": {}}, learning_rate=1.0).log_rates["context"].item()
      0.0

    Reference:
      Learned step sizes: "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", here one for each leaf.
    """
    if not 0 < learning_rate < math.inf:
        raise InputError(f"learning_rate is {learning_rate!r}; give a positive number.")
    log_rates = jax.tree.map(lambda leaf: jnp.asarray(math.log(learning_rate), jnp.asarray(leaf).dtype), prompt)
    return Meta(prompt, phi, log_rates)


def initial_prompt(meta: Meta, context: Array | None = None) -> PyTree:
    """The prompt that adaptation starts from.

        theta_0(c) = theta + sum_p w_p(c) Delta_p        with structure;        theta        without

    Args:
      meta: theta, and where the start is structured, offsets Delta and prototypes.
      context: what is known of the task, `[context_dim]`; not looked at without structure.

    Returns:
      A prompt.

    Raises:
      InputError: if the start is structured and there is no context, or one of another length.

    Example:
      >>> from gram_jax.meta import init_meta
      >>> meta = init_meta({"x": jnp.zeros(3)}, {"x": {}}, learning_rate=0.1)
      >>> meta = with_structure(meta, jnp.eye(2))
      >>> initial_prompt(meta, jnp.array([1.0, 0.0]))["x"].tolist()
      [0.0, 0.0, 0.0]

    Reference:
      See `relation`.
    """
    if meta.offsets is None:
        return meta.prompt
    if context is None:
        raise InputError("this start depends on the task; pass its context, e.g. as meta.task_context makes it.")
    weights = relation(meta.structure, context)

    def shifted(leaf: Array, offsets: Array) -> Array:
        return leaf + jnp.tensordot(weights.astype(leaf.dtype), offsets, 1)

    return jax.tree.map(shifted, meta.prompt, meta.offsets)


def regulator_context(meta: Meta, regulator: Regulator, context: Array | None = None) -> Array | None:
    """What a regulator reads about a task: the context itself, or the task's relation to the prototypes.

        c        or, of a regulator with a setting "prototypes",        w(c)

    Args:
      meta: holds the prototypes where a relation is read.
      regulator: the regulator.
      context: c, what is known of the task, `[context_dim]`.

    Returns:
      What `regulator.apply` takes as its context: `[context_dim]`, `[prototypes]`, or None where there is no context.

    Raises:
      InputError: if a relation is read, and there are no prototypes, another number of them, or no context.

    Example:
      >>> from gram_jax.meta import init_meta
      >>> from gram_jax.regulators import structured
      >>> regulator, prompt = structured(prototypes=2), {"x": jnp.zeros(3)}
      >>> meta = init_meta(prompt, regulator.init(jax.random.key(0), prompt), learning_rate=0.1)
      >>> meta = with_structure(meta, jnp.eye(2), offsets=False)
      >>> regulator_context(meta, regulator, jnp.array([1.0, 0.0])).shape
      (2,)

    Reference:
      See `relation`.
    """
    count = regulator.settings.get("prototypes")
    if count is None:
        return context
    found = None if meta.structure is None else len(meta.structure.prototypes)
    if found != count:
        raise InputError(
            f"{regulator.name} reads the relation to {count} prototypes, and there are {found or 'none'}; give as many "
            "by with_structure."
        )
    if context is None:
        raise InputError(
            f"{regulator.name} reads the task's relation to prototypes; pass its context, e.g. as "
            "meta.task_context makes it."
        )
    return relation(meta.structure, context)


def with_structure(meta: Meta, prototypes: Array, temperature: float = 0.05, *, offsets: bool = True) -> Meta:
    """Gives a start prototypes, and an offset for each of them, all 0: nothing changes until they are learned.

    Args:
      meta: what meta-learning starts from.
      prototypes: the context of each kind of task, `[prototypes, context_dim]`, e.g. `Episodes.prototypes()`.
      temperature: tau, > 0; the smaller, the fewer prototypes a task is related to.
      offsets: False for prototypes alone, where only the regulator reads the relation to them.

    Returns:
      A `Meta` whose `offsets` can be learned: `make_meta_step(..., learn=("prompt", "phi", "offsets"))`.

    Raises:
      InputError: if there is no prototype, or the temperature is not a positive number.

    Example:
      >>> from gram_jax.meta import init_meta
      >>> meta = init_meta({"x": jnp.zeros(3)}, {"x": {}}, learning_rate=0.1)
      >>> with_structure(meta, jnp.eye(5)).offsets["x"].shape
      (5, 3)

    Reference:
      See `relation`.
    """
    prototypes = jnp.asarray(prototypes, jnp.float32)
    if prototypes.ndim != 2 or not len(prototypes):
        raise InputError(f"prototypes have shape {list(prototypes.shape)}; give some, [prototypes, context_dim].")
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature is {temperature!r}; give a positive number.")
    meta = meta.replace(structure=Structure(prototypes, prototypes.mean(0), jnp.float32(temperature)))
    if not offsets:
        return meta
    zeros = jax.tree.map(lambda leaf: jnp.zeros((len(prototypes), *leaf.shape), leaf.dtype), meta.prompt)
    return meta.replace(offsets=zeros)
