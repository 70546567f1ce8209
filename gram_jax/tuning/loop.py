"""The tuning loop: a step on each batch, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.clip import Clip
from gram_jax.errors import InputError, require_int
from gram_jax.summary import short
from gram_jax.tuning.step import Tuning

Array = jax.Array
PyTree = Any


class Recipe(NamedTuple):
    """The learning rate and the length of a run, and the averaging of its prompts.

    Attributes:
      learning_rate, warmup_epochs: alpha and the epochs of the warm-up, one number, or one for each leaf of a prompt.
      total_steps, epoch_steps: the number of steps of the run and, for schedules that count epochs, of an epoch.
      epoch_weights: a weight for the prompts after each epoch, `[epochs]`, e.g. `objectives.gaussian_weights(20, 15,
        1)`; the result of the last step is then their weighted sum. None: the last prompts.
    """

    learning_rate: PyTree
    total_steps: int
    epoch_steps: int = 1
    warmup_epochs: PyTree = 1
    epoch_weights: np.ndarray | None = None


class Cost(NamedTuple):
    """The cost of one tuning step, all runs together.

    Attributes:
      seconds: the mean time of a step, including its input, without the first step, which compiles.
      bytes: the device memory: arguments, results and temporary buffers.
    """

    seconds: float
    bytes: int


class Tuned(NamedTuple):
    """The result of `tune`.

    Attributes:
      prompts: the prompts `[runs, ...]`, by the number of completed steps.
      metrics: the metrics of `make_tuning` by name, each `[steps, runs]`.
      cost: the cost of a step; None if it was not measured.
    """

    prompts: dict[int, PyTree]
    metrics: dict[str, np.ndarray]
    cost: Cost | None = None

    def __repr__(self) -> str:
        return short(self)


def tune(
    tuning: Tuning,
    prompts: PyTree,
    phi: PyTree,
    clip: Clip,
    batches: Iterable[dict[str, Any]],
    recipe: Recipe,
    *,
    report: Collection[int] = (),
    measure_cost: bool = False,
) -> Tuned:
    """Tunes a stack of prompts, one step on each batch.

    Args:
      tuning, clip: the result of `make_tuning`, and the frozen clip.
      prompts: the initial prompts of the runs, each leaf `[runs, ...]`.
      phi: the regulator's parameters, frozen; for `make_alternating` their initial values, each leaf `[runs, ...]`.
      batches: at least `recipe.total_steps` batches in the form that `make_tuning` describes.
      recipe: the learning rate and the length of the run.
      report: the numbers of steps after which the prompts are kept; the final ones are always kept.
      measure_cost: measures time and memory of a step, if there are two or more; compiles the step once more, or reads
        it from the compilation cache.

    Returns:
      The prompts, the metrics of every step, and the cost of a step.

    Example:
      >>> from gram_jax import regulators, tuners
      >>> from gram_jax.tuning import make_tuning, pad_classes
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(text_layers=1), tuners.coop(init_text="a photo of a")
      >>> classes, valid = pad_classes(clip, clip.class_tokens(["cat", "dog"]))
      >>> prompts = jax.tree.map(lambda leaf: leaf[None], tuner.init(jax.random.key(0), clip, None))
      >>> images = jax.random.normal(jax.random.key(1), (1, 8, 16)) / 4
      >>> batch = {"classes": classes, "valid": valid, "images": images, "labels": jnp.arange(8)[None] % 2}
      >>> tuning = make_tuning(tuner, regulators.identity())
      >>> tuned = tune(tuning, prompts, {"context": {}}, clip, [batch] * 5, Recipe(0.01, 5), report=(0, 1))
      >>> list(tuned.prompts), tuned.metrics["loss"].shape, bool(tuned.metrics["loss"][4] < tuned.metrics["loss"][0])
      ([0, 1, 5], (5, 1), True)
    """
    rate, total, epoch_steps, warmup, weights = recipe
    wanted = {*report, total}
    _check_recipe(recipe, wanted)
    state = tuning.init(prompts, phi)
    mean = None if weights is None else jax.tree.map(jnp.zeros_like, state.prompts)
    kept = {0: state.prompts} if 0 in wanted else {}
    history: list[dict[str, Array]] = []
    begun, source = 0.0, iter(batches)
    for done in range(1, total + 1):
        batch = next(source, None)
        if batch is None:
            raise InputError(f"total_steps={total}, but there are only {done - 1} batches; give one for each step")
        state, metrics = tuning.step(state, phi, clip, batch, rate, total, epoch_steps, warmup)
        history.append(metrics)
        if measure_cost and done == 1:
            jax.block_until_ready(state)
            begun = time.monotonic()
        if done in wanted:
            kept[done] = state.prompts
        if weights is not None and done % epoch_steps == 0:
            weight = float(weights[done // epoch_steps - 1])
            mean = jax.tree.map(lambda total, leaf, weight=weight: total + weight * leaf, mean, state.prompts)
    if weights is not None and total:
        kept[total] = mean
    cost = None
    if measure_cost and total > 1:
        jax.block_until_ready(state)
        seconds = (time.monotonic() - begun) / (total - 1)
        lowered = tuning.lower(state, phi, clip, batch, rate, total, epoch_steps, warmup)
        cost = Cost(seconds, memory_bytes(lowered.compile()))
    names = history[0] if history else ()
    return Tuned(kept, {name: np.stack([metrics[name] for metrics in history]) for name in names}, cost)


def join(results: Sequence[Tuned]) -> Tuned:
    """Returns the results of several calls of `tune` with equal recipes as one, the runs of all after each other.

    The cost of a step is the mean time and the largest memory.

    Args:
      results: the results, at least one.
    """
    first, costs = results[0], [each.cost for each in results if each.cost is not None]
    prompts = {
        step: jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(each.prompts[step] for each in results))
        for step in first.prompts
    }
    metrics = {name: np.concatenate([each.metrics[name] for each in results], axis=1) for name in first.metrics}
    cost = Cost(float(np.mean([c.seconds for c in costs])), max(c.bytes for c in costs)) if costs else None
    return Tuned(prompts, metrics, cost)


def _check_recipe(recipe: Recipe, wanted: set[int]) -> None:
    require_int("total_steps", recipe.total_steps, least=0)
    require_int("epoch_steps", recipe.epoch_steps)
    if not all(0 <= number <= recipe.total_steps for number in wanted):
        raise InputError(f"report={sorted(wanted)} with total_steps={recipe.total_steps}: report steps up to the total")
    weights = recipe.epoch_weights
    if weights is not None and len(weights) * recipe.epoch_steps != recipe.total_steps:
        length = f"total_steps={recipe.total_steps} with epoch_steps={recipe.epoch_steps}"
        raise InputError(f"{len(weights)} epoch_weights do not fit {length}; give one weight for each epoch")


def memory_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns the device memory that a compiled program needs.

    Args:
      compiled: the result of `jitted.lower(...).compile()`.

    Returns:
      Bytes of arguments, of results that share no memory with them, and of temporary buffers; 0 if the compiler does
      not report them.

    Example:
      >>> memory_bytes(jax.jit(lambda x: x + 1).lower(jnp.zeros(256)).compile())
      2048
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    sizes = analysis.argument_size_in_bytes, analysis.output_size_in_bytes, analysis.temp_size_in_bytes
    return sum(sizes) - analysis.alias_size_in_bytes
