"""Learning-rate schedules, and settings with one value for each leaf of a prompt."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.choices import SCHEDULES
from gram_jax.errors import InputError, require_known

Array = jax.Array
PyTree = Any

WARMUP_RATE = 1e-5  # independent of the learning rate


def scheduled_rate(
    schedule: str,
    rate: Array,
    step: Array,
    total_steps: Array | int,
    epoch_steps: Array | int,
    warmup_epochs: Array | float = 1.0,
    warmup_rate: float = WARMUP_RATE,
) -> Array:
    """Returns the learning rate of one step.

    With k the step, K the total, S the steps of an epoch and W the epochs of the warm-up:

        constant        rate
        cosine          rate (1 + cos(pi k / K)) / 2
        warmup_cosine   1e-5 in the first W epochs, then rate (1 + cos(pi (e - W) / E)) / 2 with e = floor(k / S) and
                        E = ceil(K / S)

    Public code of prompt tuning uses the last one. Its cosine starts after the warm-up, changes once per epoch, and has
    the length of the whole run, so it never reaches 0.

    Args:
      schedule: one of `choices.SCHEDULES`.
      rate, step, total_steps, epoch_steps, warmup_epochs: the learning rate, k from 0, K, S and W, scalars.
      warmup_rate: the rate during the warm-up.

    Returns:
      A scalar.

    Example:
      >>> [round(float(scheduled_rate("warmup_cosine", 0.0035, e, 5, 1)), 6) for e in range(5)]
      [1e-05, 0.0035, 0.003166, 0.002291, 0.001209]

    Reference:
      "SGDR: Stochastic Gradient Descent with Warm Restarts", equation 5. "warmup_cosine": Dassl's
      `ConstantWarmupScheduler` before PyTorch's `CosineAnnealingLR`, with `WARMUP_RECOUNT`.
    """
    require_known("schedule", schedule, SCHEDULES)
    if schedule == "constant":
        return rate
    if schedule == "cosine":
        return 0.5 * (1.0 + jnp.cos(jnp.pi * (step / jnp.maximum(total_steps, 1)))) * rate
    epoch, epochs = step // epoch_steps, -(-total_steps // epoch_steps)
    annealed = 0.5 * (1.0 + jnp.cos(jnp.pi * ((epoch - warmup_epochs) / epochs))) * rate
    return jnp.where(epoch < warmup_epochs, warmup_rate, annealed)


def per_leaf(value: PyTree, prompt: PyTree, name: str = "learning_rate", dtype: Any = None) -> PyTree:
    """Returns a setting, one number or a pytree of numbers like the prompt, as a scalar array for each leaf.

    Example:
      >>> {name: float(rate) for name, rate in per_leaf(0.5, {"bias": 0, "kernel": 0}).items()}
      {'bias': 0.5, 'kernel': 0.5}
    """
    structures: list[Any] = [jax.tree.structure(tree) for tree in (0.0, value, prompt)]
    leaf, given, structure = structures
    if given == structure:
        return jax.tree.map(lambda number: jnp.asarray(number, dtype), value)
    if given != leaf or jnp.ndim(value):
        raise InputError(
            f"{name} has the structure {given}, and the prompt {structure}; give one number, "
            "or one number for each leaf of the prompt"
        )
    return jax.tree.map(lambda _: jnp.asarray(value, dtype), prompt)
