"""The tasks of meta-learning and the loss that it minimizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.errors import InputError, require_int, require_number
from gram_jax.meta.adapt import adapt
from gram_jax.meta.initialization import Meta, initial_prompt, regulator_context
from gram_jax.regulators import Regulator

Array = jax.Array
PyTree = Any

_EARLIER = 1.5  # power that moves depths to the beginning of the inner loop, where prompts change fastest


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
      depths: int32 `[depths]`, the numbers of inner steps after which the queries are evaluated, see `random_depths`;
        None: after the last one only.
    """

    support: PyTree
    same: PyTree
    cross: PyTree = None
    context: PyTree = None
    depths: Array | None = None


def random_depths(seed: int, index: int, count: int, *, steps: int, depths: int) -> np.ndarray:
    """Returns the depths of a meta batch: a random one in each part of the inner loop, and its end.

    A regulator has to be right early and late. The inner loop of K steps is cut into `depths - 1` parts, of which each
    is longer than the one before; a depth is drawn evenly in each part, and the last depth is K.

    Args:
      seed, index: the seed of the run, and the number of the batch, from 0; the result is a pure function of both.
      count: tasks of the batch.
      steps, depths: K, and the number of depths, both >= 1.

    Returns:
      int32 `[count, depths]`, each row in ascending order.

    Example:
      >>> random_depths(0, 0, 2, steps=100, depths=1).tolist()
      [[100], [100]]
    """
    require_int("steps", steps)
    require_int("depths", depths)
    within = np.random.default_rng([seed, index]).random((count, depths - 1))
    parts = (np.arange(depths - 1) + within) / max(1, depths - 1)
    drawn = np.ceil(steps * parts**_EARLIER).clip(1, steps)
    return np.concatenate([drawn, np.full((count, 1), steps)], axis=1).astype(np.int32)


def meta_objective(
    loss: Callable[[PyTree, PyTree], Array],
    meta: Meta,
    tasks: Task,
    *,
    regulator: Regulator,
    steps: int,
    schedule: str = "constant",
    gradient: str | int = "exact",
    cross_weight: float = 1.0,
) -> tuple[Array, dict[str, Array]]:
    """Returns the mean query loss after adaptation, over a batch of tasks.

        mean over tasks of   L(theta_K; same) + lambda L(theta_K; cross)

    If the tasks have depths, the losses of a task are means over the prompts after these numbers of steps.

    Args:
      loss, regulator, steps, schedule, gradient: as in `adapt`.
      meta: the initialization, the regulator's parameters and the step sizes.
      tasks: stacked on a leading axis; every task has the same shapes.
      cross_weight: lambda, >= 0. At 0 the cross query is ignored and may be None.

    Returns:
      The objective, and a dictionary: "loss" `[tasks]`; "same" and (unless its weight is 0) "cross", `[tasks]` each, or
      `[tasks, depths]`; and "support" `[tasks, steps]`, the loss before each inner step.

    Reference:
      "Gradient-Regulated Meta-Prompt Learning for Generalizable Vision-Language Models".
    """
    require_number("cross_weight", cross_weight, least=0)
    if cross_weight and not jax.tree.leaves(tasks.cross):
        problem = f"cross_weight={cross_weight}, but the tasks have no cross query"
        raise InputError(f"{problem}; add one or set the weight to 0")

    settings: dict[str, Any] = {"regulator": regulator, "steps": steps, "schedule": schedule, "gradient": gradient}

    def of_task(task: Task) -> dict[str, Array]:
        first, context = initial_prompt(meta, task.context), regulator_context(meta, regulator, task.context)
        of_run: dict[str, Any] = {"learning_rate": meta.rates, "context": context, "depths": task.depths}
        prompts, support = adapt(loss, first, meta.phi, task.support, trajectory=True, **of_run, **settings)

        def query(batch: PyTree) -> Array:
            if task.depths is None:
                return loss(prompts, batch)
            return jax.vmap(lambda prompt: loss(prompt, batch))(prompts)

        metrics = {"same": query(task.same), "support": support}
        total = metrics["same"]
        if cross_weight:
            metrics["cross"] = query(task.cross)
            total = total + cross_weight * metrics["cross"]
        return metrics | {"loss": jnp.mean(total)}

    metrics = jax.vmap(of_task)(tasks)
    return jnp.mean(metrics["loss"]), metrics
