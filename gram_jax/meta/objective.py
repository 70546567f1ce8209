"""The tasks that meta-learning learns from, and the loss that it minimizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gram_jax.errors import InputError
from gram_jax.meta.adapt import adapt
from gram_jax.meta.initialization import Meta, initial_prompt, regulator_context
from gram_jax.regulators import Regulator

Array = jax.Array
PyTree = Any


@flax.struct.dataclass
class Task:
    """One task, or several stacked on a leading axis `[tasks, ...]`.

    A batch is any pytree that the loss understands, e.g. a dictionary of classes, images and labels.

    Attributes:
      support: the batch that the prompt is adapted on.
      same: a query batch of the support's classes and visual domains.
      cross: a query batch across a shift: other visual domains, or other classes. None where it is not used.
      context: what the regulator and a structured start read about the task, e.g. the mean image feature of the
        support and the mean text feature of its classes, one vector `[context_dim]`. None where none is read.

    Example:
      >>> Task(support=jnp.ones(4), same=jnp.ones(4)).cross is None
      True
    """

    support: PyTree
    same: PyTree
    cross: PyTree = None
    context: PyTree = None


def meta_objective(
    loss: Callable[[PyTree, PyTree], Array],
    meta: Meta,
    tasks: Task,
    *,
    regulator: Regulator,
    steps: int,
    gradient: str | int = "exact",
    cross_weight: float = 1.0,
) -> tuple[Array, dict[str, Array]]:
    """The loss after adaptation, on queries that are like the support and on queries across a shift.

        mean over tasks of   L(theta_K; same) + lambda L(theta_K; cross),    theta_K = adapt(theta_0(c); support)

    theta_0 is theta, or what `start` makes of it where the start is structured; a regulator with prototypes reads the
    task's relation to them, as `regulator_context` makes it.

    Args:
      loss: `loss(prompt, batch) -> scalar`.
      meta: what is learned.
      tasks: stacked on a leading axis; every task has the same shapes.
      regulator: the gradient-regulating function.
      steps: inner steps K.
      gradient: as in `adapt`.
      cross_weight: lambda, >= 0. At 0 the cross query is not looked at and may be None.

    Returns:
      The objective, and a dictionary: `"loss"`, `"same"` and (unless its weight is 0) `"cross"`, `[tasks]` each, and
      `"support"` `[tasks, steps]`, the loss that each inner step started from.

    Raises:
      InputError: if a setting is out of range, or the cross query is missing.

    Example:
      >>> from gram_jax.meta import init_meta
      >>> from gram_jax.regulators import identity
      >>> loss = lambda prompt, batch: jnp.mean((prompt["x"] - batch) ** 2)
      >>> tasks = Task(support=jnp.ones((5, 2)), same=jnp.ones((5, 2)))
      >>> meta = init_meta({"x": jnp.zeros(())}, {"x": {}}, learning_rate=0.25)
      >>> value, metrics = meta_objective(loss, meta, tasks, regulator=identity(), steps=1, cross_weight=0)
      >>> value.item(), metrics["same"].shape
      (0.25, (5,))

    Reference:
      "Gradient-Regulated Meta-Prompt Learning for Generalizable Vision-Language Models"; the sum of two queries is
      our own choice.
    """
    check_cross(cross_weight, tasks)

    def one(task: Task) -> dict[str, Array]:
        prompt, support = adapt(
            loss,
            initial_prompt(meta, task.context),
            meta.phi,
            task.support,
            regulator=regulator,
            steps=steps,
            learning_rate=meta.rates,
            context=regulator_context(meta, regulator, task.context),
            gradient=gradient,
            trajectory=True,
        )
        same = loss(prompt, task.same)
        metrics = {"loss": same, "same": same, "support": support}
        if cross_weight:
            metrics["cross"] = loss(prompt, task.cross)
            metrics["loss"] = same + cross_weight * metrics["cross"]
        return metrics

    metrics = jax.vmap(one)(tasks)
    return jnp.mean(metrics["loss"]), metrics


def check_cross(cross_weight: Any, tasks: Task | None = None) -> None:
    """Raises InputError for a weight that is not a number >= 0, or a weight without a query to go with it."""
    if not isinstance(cross_weight, (int, float)) or not 0 <= cross_weight < math.inf:
        raise InputError(f"cross_weight is {cross_weight!r}; give a number >= 0.")
    if tasks is not None and cross_weight and not jax.tree.leaves(tasks.cross):
        raise InputError(
            f"cross_weight is {cross_weight}, but the tasks have no cross query; give them one, or set cross_weight=0."
        )
