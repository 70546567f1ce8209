"""Gaussian prompt aggregation: a weighted mean of the prompts of all epochs."""

from __future__ import annotations

import numpy as np

from gram_jax.errors import require_int, require_number


def gaussian_weights(epochs: int, mean: float, std: float) -> np.ndarray:
    """Returns the weight of the prompt after each epoch.

    w_e = exp(-(e - mean)^2 / (2 std^2)) / sum_e' exp(-(e' - mean)^2 / (2 std^2)),    e = 1, ..., N

    Args:
      epochs: N.
      mean, std: the epoch of the largest weight, counted from 1, and the standard deviation in epochs.

    Returns:
      float64 `[epochs]`, of sum 1; `gram_jax.tuning.tune` takes them as `epoch_weights`.

    Example:
      >>> gaussian_weights(20, mean=15, std=1).round(3)[12:17].tolist()
      [0.054, 0.242, 0.399, 0.242, 0.054]

    Reference:
      "Self-regulating Prompts: Foundational Model Adaptation without Forgetting" (PromptSRC), section 3.2, prompt
      self-ensembling; mean 15 and std 1 over 20 epochs from base to new, 6 and 10 across datasets in its public code.
    """
    require_int("epochs", epochs)
    require_number("mean", mean)
    require_number("std", std, above=0)
    exponents = -0.5 * ((np.arange(1, epochs + 1) - mean) / std) ** 2
    # Far from every epoch, all values would underflow to 0; only their ratios matter.
    weights = np.exp(exponents - exponents.max())
    return weights / weights.sum()
