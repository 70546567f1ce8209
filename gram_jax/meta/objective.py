"""What meta-learning learns, the tasks that it learns from, and the loss that it minimises."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gram_jax.meta.adapt import adapt
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
      context: what the regulator reads about the task, e.g. the mean image feature of the support and the mean text
        feature of its classes, one vector `[context_dim]`. None where none is read.

    Example:
      >>> Task(support=jnp.ones(4), same=jnp.ones(4)).cross is None
      True
    """

    support: PyTree
    same: PyTree
    cross: PyTree = None
    context: PyTree = None


@flax.struct.dataclass
class Meta:
    """What meta-learning learns; it starts every adaptation, and knows no class list.

    Attributes:
      prompt: theta, where adaptation starts.
      phi: the regulator's parameters.
      log_rates: the logarithm of the inner step size of each prompt leaf.

    Example:
      >>> from gram_jax.meta import init_meta
      >>> meta = init_meta({"context": jnp.zeros((4, 8))}, {"context": {}}, learning_rate=0.1)
      >>> round(meta.rates["context"].item(), 6)
      0.1
    """

    prompt: PyTree
    phi: PyTree
    log_rates: PyTree

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
      ValueError: if the step size is not a positive number.

    Example:
      >>> init_meta({"context": jnp.zeros((4, 8))}, {"context": {}}, learning_rate=1.0).log_rates["context"].item()
      0.0

    Reference:
      Learned step sizes: "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", here one for each leaf.
    """
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate is {learning_rate!r}; give a positive number.")
    log_rates = jax.tree.map(lambda leaf: jnp.asarray(math.log(learning_rate), jnp.asarray(leaf).dtype), prompt)
    return Meta(prompt, phi, log_rates)


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

        mean over tasks of   L(theta_K; same) + lambda L(theta_K; cross),    theta_K = adapt(theta; support)

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
      ValueError: if a setting is out of range, or the cross query is missing.

    Example:
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
            meta.prompt,
            meta.phi,
            task.support,
            regulator=regulator,
            steps=steps,
            learning_rate=meta.rates,
            context=task.context,
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
    """Raises ValueError for a weight that is not a number >= 0, or a weight without a query to go with it."""
    if not isinstance(cross_weight, (int, float)) or not 0 <= cross_weight < math.inf:
        raise ValueError(f"cross_weight is {cross_weight!r}; give a number >= 0.")
    if tasks is not None and cross_weight and not jax.tree.leaves(tasks.cross):
        raise ValueError(
            f"cross_weight is {cross_weight}, but the tasks have no cross query; give them one, or set cross_weight=0."
        )
