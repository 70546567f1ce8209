"""The tasks of meta-learning and the loss that it minimizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gram_jax.errors import InputError, require_number
from gram_jax.meta.adapt import adapt
from gram_jax.meta.initialization import Meta, initial_prompt, regulator_context
from gram_jax.regulators import Regulator

Array = jax.Array
PyTree = Any


@flax.struct.dataclass
class Task:
    """One task, or several stacked on a leading axis `[tasks, ...]`.

    A batch is any pytree that the loss accepts, e.g. a dictionary of classes, images and labels.

    Attributes:
      support: the batch on which the prompt is adapted.
      same: a query batch of the support's classes and visual domains.
      cross: a query batch across a shift: other visual domains, or other classes; None if it has no weight.
      context: the task's context `[context_dim]`, see `task_context`; None if neither the initialization nor the
        regulator reads it.
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
    """Returns the mean query loss after adaptation, over a batch of tasks.

        mean over tasks of   L(theta_K; same) + lambda L(theta_K; cross)

    Args:
      loss, regulator, steps, gradient: as in `adapt`.
      meta: the initialization, the regulator's parameters and the step sizes.
      tasks: stacked on a leading axis; every task has the same shapes.
      cross_weight: lambda, >= 0. At 0 the cross query is ignored and may be None.

    Returns:
      The objective, and a dictionary: "loss", "same" and (unless its weight is 0) "cross", `[tasks]` each, and
      "support" `[tasks, steps]`, the loss before each inner step.

    Reference:
      "Gradient-Regulated Meta-Prompt Learning for Generalizable Vision-Language Models".
    """
    require_number("cross_weight", cross_weight, least=0)
    if cross_weight and not jax.tree.leaves(tasks.cross):
        problem = f"cross_weight={cross_weight}, but the tasks have no cross query"
        raise InputError(f"{problem}; add one or set the weight to 0")

    def of_task(task: Task) -> dict[str, Array]:
        first, context = initial_prompt(meta, task.context), regulator_context(meta, regulator, task.context)
        of_run: dict[str, Any] = {"learning_rate": meta.rates, "context": context, "trajectory": True}
        prompt, support = adapt(
            loss, first, meta.phi, task.support, regulator=regulator, steps=steps, gradient=gradient, **of_run
        )
        same = loss(prompt, task.same)
        metrics = {"loss": same, "same": same, "support": support}
        if cross_weight:
            metrics["cross"] = loss(prompt, task.cross)
            metrics["loss"] = same + cross_weight * metrics["cross"]
        return metrics

    metrics = jax.vmap(of_task)(tasks)
    return jnp.mean(metrics["loss"]), metrics
