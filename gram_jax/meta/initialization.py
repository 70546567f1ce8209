"""The result of meta-learning, and the prompt from which adaptation to a task begins."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gram_jax.choices import GATES
from gram_jax.errors import InputError, require_number
from gram_jax.meta.context import Structure, relation
from gram_jax.regulators import Regulator
from gram_jax.summary import short_repr

Array = jax.Array
PyTree = Any


@flax.struct.dataclass
class Meta:
    """The learned initialization, regulator parameters and step sizes; they belong to no class list.

    Attributes:
      prompt, phi: theta, the initial prompt, and the regulator's parameters.
      log_rates: the logarithm of the inner step size of each prompt leaf.
      offsets: structured initialization only: the offset of each prototype, `[prototypes, ...]` each leaf; or None.
      structure: the prototypes of a structured initialization or regulator; or None.
    """

    prompt: PyTree
    phi: PyTree
    log_rates: PyTree
    offsets: PyTree = None
    structure: Structure | None = None

    __repr__ = short_repr

    @property
    def rates(self) -> PyTree:
        """The inner step sizes, the `learning_rate` of `adapt`."""
        return jax.tree.map(jnp.exp, self.log_rates)


def init_meta(prompt: PyTree, phi: PyTree, learning_rate: float) -> Meta:
    """Returns the state before meta-learning, a `Meta` with one step size for all leaves.

    Args:
      prompt, phi: a new prompt, from the tuner's `init`, and parameters, from the regulator's `init` with that prompt.
      learning_rate: inner step size, > 0; stored as a logarithm, so that learning keeps it positive.

    Reference:
      Learned step sizes: "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", here one for each leaf.
    """
    require_number("learning_rate", learning_rate, above=0)
    log_rates = jax.tree.map(lambda leaf: jnp.asarray(math.log(learning_rate), jnp.asarray(leaf).dtype), prompt)
    return Meta(prompt, phi, log_rates)


def with_structure(meta: Meta, prototypes: Array, temperature: float = 0.05, *, offsets: bool = True) -> Meta:
    """Adds prototypes, and an offset of zero for each, so that the initialization can become structured.

    Args:
      meta: the state before meta-learning.
      prototypes: the context of each theme, `[prototypes, context_dim]`, e.g. `Episodes.prototypes()`.
      temperature: tau, > 0; a smaller one relates a task to fewer prototypes.
      offsets: False adds prototypes only, for a regulator that reads the relation to them.

    Returns:
      A `Meta` whose `offsets` can be learned: `make_meta_step(..., learn=("prompt", "phi", "offsets"))`.
    """
    prototypes = jnp.asarray(prototypes, jnp.float32)
    if prototypes.ndim != 2 or not len(prototypes):
        raise InputError(f"prototypes have shape {list(prototypes.shape)}, not [1 or more, context_dim]")
    require_number("temperature", temperature, above=0)
    structure, added = Structure(prototypes, prototypes.mean(0), jnp.float32(temperature)), meta.offsets
    if offsets:
        added = jax.tree.map(lambda leaf: jnp.zeros((len(prototypes), *leaf.shape), leaf.dtype), meta.prompt)
    return dataclasses.replace(meta, structure=structure, offsets=added)


def with_parts_of(meta: Meta, other: Meta) -> tuple[Meta, tuple[str, ...]]:
    """Takes over the parts of another tuner's learned initialization, so that meta-learning can begin from them.

    A part of `other` replaces the part whose path ends in its path and which has its shape: "context" of CoOp becomes
    "text/context" of IVLP. The offsets of the other parts stay as they are, 0 in a new state.

    Args:
      meta: the state before meta-learning; with offsets if `other` has some, one for each prototype of `other`.
      other: the initialization of a tuner on the same clip.

    Returns:
      The new state, and the paths of the replaced parts; none if no part fits.

    Example:
      >>> coop = init_meta({"context": jnp.ones(2)}, {}, 0.3)
      >>> ivlp = init_meta({"text": {"context": jnp.zeros(2)}, "visual": {"tokens": jnp.zeros(3)}}, {}, 0.3)
      >>> found, parts = with_parts_of(ivlp, coop)
      >>> found.prompt["text"]["context"].tolist(), parts
      ([1.0, 1.0], ('text/context',))
    """

    sources = flatten_dict(other.prompt, sep="/")
    source_of = {
        name: source
        for name, leaf in flatten_dict(meta.prompt, sep="/").items()
        for source, learned in sources.items()
        if f"/{name}".endswith(f"/{source}") and jnp.shape(learned) == jnp.shape(leaf)
    }

    def replaced(tree: PyTree, learned: PyTree) -> PyTree:
        parts = flatten_dict(learned, sep="/")
        taken = {name: parts[source] for name, source in source_of.items()}
        return unflatten_dict(flatten_dict(tree, sep="/") | taken, sep="/")

    both = meta.offsets is not None and other.offsets is not None
    offsets = replaced(meta.offsets, other.offsets) if both else meta.offsets
    return dataclasses.replace(meta, prompt=replaced(meta.prompt, other.prompt), offsets=offsets), tuple(source_of)


def initial_prompt(meta: Meta, context: Array | None = None) -> PyTree:
    """Returns the prompt from which adaptation to a task begins.

        theta_0(c) = theta + sum_p w_p(c) Delta_p        with offsets;        theta        without

    Args:
      meta: theta, and for a structured initialization the offsets Delta and the prototypes.
      context: c of the task, `[context_dim]`, see `task_context`; required with offsets.
    """
    if meta.offsets is None:
        return meta.prompt
    if context is None:
        raise InputError("a structured initialization needs the task's context; compute it with meta.task_context")
    assert meta.structure is not None  # offsets belong to prototypes
    weights = relation(meta.structure, context)
    return jax.tree.map(
        lambda leaf, offsets: leaf + jnp.tensordot(weights.astype(leaf.dtype), offsets, 1), meta.prompt, meta.offsets
    )


def prompt_between(fallback: PyTree, prompt: PyTree, gate: float) -> PyTree:
    """Returns theta_g = theta + g (theta_0(c) - theta).

    Args:
      fallback, prompt: theta, and the structured initialization theta_0(c).
      gate: g, the weight of the offset.
    """
    return jax.tree.map(lambda begin, end: begin + gate * (end - begin), fallback, prompt)


def gated_prompt(
    fallback: PyTree, prompt: PyTree, loss: Callable[[PyTree], float | Array], gates: Sequence[float] = GATES
) -> tuple[PyTree, float]:
    """Returns the prompt between two that has the smallest loss, and how far it is on the way.

        theta_g = theta + g (theta_0(c) - theta),    g = argmin over the gates of loss(theta_g)

    The offset of a theme helps the tasks of this theme and misleads others. A few labeled images tell both cases apart.

    Args:
      fallback, prompt: theta, and the structured initialization theta_0(c).
      loss: `loss(prompt) -> scalar`, e.g. `classification_loss` on all labeled images of the task.
      gates: the values of g to try; of equal losses, the first one counts.

    Returns:
      theta_g, and g.

    Example:
      >>> prompt, gate = gated_prompt(jnp.zeros(2), jnp.ones(2), lambda prompt: ((prompt - 0.6) ** 2).sum())
      >>> prompt.tolist(), gate
      ([0.5, 0.5], 0.5)
    """
    if not gates or not all(math.isfinite(gate) for gate in gates):
        raise InputError(f"gates={list(gates)}: give one finite number or more, such as 0,0.5,1")
    each = [prompt_between(fallback, prompt, gate) for gate in gates]
    best = int(np.argmin([float(loss(one)) for one in each]))
    return each[best], float(gates[best])


def regulator_context(meta: Meta, regulator: Regulator, context: Array | None = None) -> Array | None:
    """Returns the input of a regulator: the task's context c, or w(c) for a regulator with a setting "prototypes".

    Args:
      meta, regulator: the prototypes are those of `meta`.
      context: c of the task, `[context_dim]`, see `task_context`.

    Returns:
      The context for `regulator.apply`: `[context_dim]`, `[prototypes]`, or None without a context.
    """
    count = regulator.settings.get("prototypes")
    if count is None:
        return context
    available = 0 if meta.structure is None else len(meta.structure.prototypes)
    if meta.structure is None or available != count:
        raise InputError(
            f"the regulator {regulator.name} needs prototypes={count}, found {available}; add them by with_structure"
        )
    if context is None:
        raise InputError(f"the regulator {regulator.name} needs the task's context; compute it with meta.task_context")
    return relation(meta.structure, context)
