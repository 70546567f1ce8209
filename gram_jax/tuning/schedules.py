"""The learning rate along a run."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gram_jax.errors import InputError

Array = jax.Array

SCHEDULES = ("constant", "cosine", "warmup_cosine")
WARMUP_RATE = 1e-5  # of the first epochs, whatever the learning rate


def scheduled_rate(
    schedule: str,
    rate: Array,
    step: Array,
    total_steps: Array,
    epoch_steps: Array,
    warmup_epochs: Array | float = 1.0,
    warmup_rate: float = WARMUP_RATE,
) -> Array:
    """The rate of one step.

    With k the step, K the total, S the steps of an epoch and W the epochs of the warm-up:

        constant        rate
        cosine          rate (1 + cos(pi k / K)) / 2
        warmup_cosine   1e-5 in the first W epochs, then rate (1 + cos(pi (e - W) / E)) / 2 with e = floor(k / S) and
                        E = ceil(K / S)

    The last is what public code of prompt tuning runs: its cosine begins behind the warm-up, moves once an epoch,
    is as long as the whole run, and so never reaches 0.

    Args:
      schedule: one of `SCHEDULES`.
      rate: the learning rate, a scalar.
      step: k, from 0, int scalar.
      total_steps: K, int scalar.
      epoch_steps: S, int scalar, at least 1; only "warmup_cosine" looks at it.
      warmup_epochs: W, a scalar, at least 0; only "warmup_cosine" looks at it.
      warmup_rate: the rate of these epochs, a scalar.

    Returns:
      A scalar.

    Raises:
      InputError: for an unknown schedule.

    Example:
      >>> [round(float(scheduled_rate("warmup_cosine", 0.0035, e, 5, 1)), 6) for e in range(5)]
      [1e-05, 0.0035, 0.003166, 0.002291, 0.001209]

    Reference:
      "SGDR: Stochastic Gradient Descent with Warm Restarts", equation 5. "warmup_cosine": Dassl's
      `ConstantWarmupScheduler` before PyTorch's `CosineAnnealingLR`, with `WARMUP_RECOUNT`.
    """
    check_schedule(schedule)
    if schedule == "constant":
        return rate
    if schedule == "cosine":
        return 0.5 * (1.0 + jnp.cos(jnp.pi * (step / jnp.maximum(total_steps, 1)))) * rate
    epoch, epochs = step // epoch_steps, -(-total_steps // epoch_steps)
    annealed = 0.5 * (1.0 + jnp.cos(jnp.pi * ((epoch - warmup_epochs) / epochs))) * rate
    return jnp.where(epoch < warmup_epochs, warmup_rate, annealed)


def check_schedule(schedule: str) -> None:
    """Raises InputError for an unknown schedule."""
    if schedule not in SCHEDULES:
        raise InputError(f"schedule must be one of {', '.join(map(repr, SCHEDULES))}, found {schedule!r}.")
