"""The inner loop: a few regulated gradient steps on the support of a task, differentiable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.choices import INNER_SCHEDULES
from gram_jax.errors import InputError, require_int, require_known
from gram_jax.regulators import Regulator
from gram_jax.tuning.schedules import per_leaf, scheduled_rate

Array = jax.Array
PyTree = Any

GRADIENTS = ("exact", "first_order")


def adapt(  # long: each argument is a symbol of the formula, or a setting of how it is differentiated
    loss: Callable[[PyTree, PyTree], Array],
    prompt: PyTree,
    phi: PyTree,
    support: PyTree,
    *,
    regulator: Regulator,
    steps: int,
    learning_rate: PyTree,
    schedule: str = "constant",
    context: Any = None,
    gradient: str | int = "exact",
    depths: Array | None = None,
    trajectory: bool = False,
) -> PyTree | tuple[PyTree, Array]:
    """Adapts a prompt to a support set by regulated gradient descent, differentiably.

        theta_{k+1} = theta_k - alpha_k R_phi( grad L(theta_k; support), context ),    k = 0, ..., K - 1
        alpha_k     = alpha,  or  alpha (1 + cos(pi k / K)) / 2  with the schedule "cosine"

    The result can be differentiated with respect to theta_0, phi, alpha, context and support. If there are several
    steps, their activations are recomputed and not stored: memory grows by one prompt per step.

    Args:
      loss: `loss(prompt, batch) -> scalar`; it may close over frozen values if this is called inside `jit`.
      prompt: theta_0, a pytree of float arrays.
      phi, regulator: the regulator's parameters, and R.
      support: the batch of every step.
      steps, learning_rate: K, >= 0, and alpha, one number, or a number for each leaf of the prompt.
      schedule: "constant" or "cosine", the change of alpha over the steps.
      context: the regulator's input, see `regulator_context`.
      gradient: how the result is differentiated. "exact": through everything, including second derivatives of the
        loss. "first_order": every raw gradient is a constant, so that d theta_K / d theta_0 = 1; phi and alpha are
        differentiated as factors of these constants. It stores one gradient per step and no activations, so that
        hundreds of steps need hardly more memory than one. A number k from 1 to K: exact through the last k steps;
        before them d theta_{K-k} / d theta_0 = 1, and phi and alpha are constants.
      depths: int `[depths]`, each from 0 to K; return the prompts after these numbers of steps. Not with a number of
        last steps as the gradient.
      trajectory: also return the support loss before each step.

    Returns:
      theta_K; with `depths`, the prompts theta_k stacked, `[depths, ...]` each leaf. With `trajectory`, also the losses
      `[steps]`, which are not differentiated.

    Example:
      >>> from gram_jax.regulators import identity
      >>> prompt = {"context": jnp.ones((2, 3))}
      >>> loss = lambda prompt, batch: jnp.sum(prompt["context"] ** 2) / 2
      >>> adapt(loss, prompt, {"context": {}}, None, regulator=identity(), steps=2, learning_rate=0.5)["context"][0, 0]
      Array(0.25, dtype=float32)

    Reference:
      "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", equation 1, with the gradient regulated
      as in "Gradient-Regulated Meta-Prompt Learning for Generalizable Vision-Language Models".
    """
    last = differentiated_steps(steps, gradient)
    require_known("schedule", schedule, INNER_SCHEDULES)
    if depths is not None and last < steps:
        raise InputError(
            f"gradient={gradient} with depths: prompts before the last steps have no gradient; use 'exact'"
        )
    rates = per_leaf(learning_rate, prompt)
    prompt = jax.tree.map(jnp.asarray, prompt)

    def step(theta: PyTree, number: Array, phi: PyTree, rates: PyTree) -> tuple[PyTree, tuple[Array, PyTree]]:
        at = jax.lax.stop_gradient(theta) if gradient == "first_order" else theta
        value, grads = jax.value_and_grad(loss)(at, support)
        if gradient == "first_order":
            grads = jax.lax.stop_gradient(grads)
        grads = regulator.apply(phi, grads, context)
        scale = scheduled_rate(schedule, jnp.ones(()), number, steps, 1)
        theta = jax.tree.map(
            lambda leaf, rate, grad: leaf - (scale * rate * grad).astype(leaf.dtype), theta, rates, grads
        )
        return theta, (jax.lax.stop_gradient(value), None if depths is None else theta)

    def run(theta: PyTree, phi: PyTree, rates: PyTree, numbers: Array) -> tuple[PyTree, tuple[Array, PyTree]]:
        # First order stores no activations of the loss. A single step stores them as briefly as recomputing would.
        # Inside a scan nothing can be merged with the recomputation, so that no barrier is needed (prevent_cse).
        stored = gradient == "first_order" or len(numbers) == 1
        body = step if stored else jax.checkpoint(step, prevent_cse=False)
        return jax.lax.scan(lambda theta, number: body(theta, number, phi, rates), theta, numbers)

    theta, early, numbers = prompt, [], jnp.arange(steps)
    if last < steps:
        reached, (losses, _) = run(*jax.lax.stop_gradient((prompt, phi, rates)), numbers[: steps - last])
        early.append(losses)
        # The value is the reached one; the derivative with respect to theta_0 is 1.
        theta = jax.tree.map(
            lambda end, first: jax.lax.stop_gradient(end) + (first - jax.lax.stop_gradient(first)), reached, prompt
        )
    theta, (losses, thetas) = run(theta, phi, rates, numbers[steps - last :])
    if depths is not None:
        theta = jax.tree.map(lambda first, after: jnp.concatenate([first[None], after])[depths], prompt, thetas)
    return (theta, jnp.concatenate([*early, losses])) if trajectory else theta


def differentiated_steps(steps: int, gradient: str | int) -> int:
    """Checks the settings of `adapt` and returns the number of last steps that are differentiated."""
    require_int("steps", steps, least=0)
    if isinstance(gradient, str) and gradient in GRADIENTS:
        return steps
    if isinstance(gradient, bool) or not isinstance(gradient, int) or not 1 <= gradient <= steps:
        remedy = "choose 'exact', 'first_order', or a number of last steps from 1 to steps"
        raise InputError(f"gradient={gradient!r} with steps={steps}: {remedy}")
    return gradient
