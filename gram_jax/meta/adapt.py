"""The inner loop: a few regulated gradient steps on a task's support set, differentiable."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.errors import InputError
from gram_jax.regulators import Regulator
from gram_jax.tuning.schedules import per_leaf

Array = jax.Array
PyTree = Any

GRADIENTS = ("exact", "first_order")


def adapt(
    loss: Callable[[PyTree, PyTree], Array],
    prompt: PyTree,
    phi: PyTree,
    support: PyTree,
    *,
    regulator: Regulator,
    steps: int,
    learning_rate: PyTree,
    context: Any = None,
    gradient: str | int = "exact",
    trajectory: bool = False,
) -> PyTree | tuple[PyTree, Array]:
    """Adapts a prompt to a support set by regulated gradient descent, differentiably.

        theta_{k+1} = theta_k - alpha R_phi(grad L(theta_k; support), context),    k = 0, ..., K - 1

    All of theta_0, phi, alpha, context and the support may be differentiated. Of several steps each is recomputed when
    it is (its activations are not kept), so memory grows by one prompt for each step.

    Args:
      loss: `loss(prompt, batch) -> scalar`; what is frozen may be closed over where this is called inside `jit`.
      prompt: theta_0, a pytree of float arrays.
      phi: the regulator's parameters.
      support: the batch that every step sees.
      regulator: R.
      steps: K, >= 0.
      learning_rate: alpha, one number, or a pytree like the prompt with a number for each leaf.
      context: what the regulator reads about the task, as `regulator_context` makes it.
      gradient: how the result is differentiated. "exact": through everything, second derivatives of the loss
        included. "first_order": every raw gradient is a constant, so that d theta_K / d theta_0 = 1, while phi and
        alpha are differentiated as they act on these constants. A number k from 1 to K: exact through the last k
        steps; the ones before stand still: d theta_{K-k} / d theta_0 = 1, and phi and alpha are constants in them.
      trajectory: also return the support loss that each step started from.

    Returns:
      theta_K, of the prompt's structure, shapes and dtypes; with `trajectory`, a pair of it and the losses `[steps]`,
      which are not differentiated.

    Raises:
      InputError: if `steps` or `gradient` is not one of the above, or `learning_rate` has another structure.

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
    steps, last = check_steps(steps, gradient)
    rates = per_leaf(learning_rate, prompt)
    prompt = jax.tree.map(jnp.asarray, prompt)

    def step(theta: PyTree, constants: tuple[PyTree, PyTree]) -> tuple[PyTree, Array]:
        phi, rates = constants
        at = jax.lax.stop_gradient(theta) if gradient == "first_order" else theta
        value, grads = jax.value_and_grad(loss)(at, support)
        if gradient == "first_order":
            grads = jax.lax.stop_gradient(grads)
        grads = regulator.apply(phi, grads, context)
        theta = jax.tree.map(lambda leaf, rate, grad: leaf - (rate * grad).astype(leaf.dtype), theta, rates, grads)
        return theta, jax.lax.stop_gradient(value)

    def run(theta: PyTree, phi: PyTree, rates: PyTree, length: int) -> tuple[PyTree, Array]:
        # Inside a scan nothing can be merged with the recomputation, so it need not be fenced off. First-order keeps
        # no activations of the loss, and would only compute its gradient a second time; of a single step they are kept
        # as briefly as they would be recomputed.
        once = gradient == "first_order" or length == 1
        body = step if once else jax.checkpoint(step, prevent_cse=False)
        return jax.lax.scan(lambda theta, _: body(theta, (phi, rates)), theta, length=length)

    early = []
    theta = prompt
    if last < steps:
        reached, losses = run(*jax.lax.stop_gradient((prompt, phi, rates)), steps - last)
        early.append(losses)
        # The value is exactly the one reached; the derivative with respect to the start is 1.
        theta = jax.tree.map(
            lambda end, start: jax.lax.stop_gradient(end) + (start - jax.lax.stop_gradient(start)), reached, prompt
        )
    theta, losses = run(theta, phi, rates, last)
    return (theta, jnp.concatenate([*early, losses])) if trajectory else theta


def check_steps(steps: Any, gradient: Any) -> tuple[int, int]:
    """Checks the inner loop's settings.

    Args:
      steps: number of steps.
      gradient: as in `adapt`.

    Returns:
      The number of steps, and how many of the last ones are differentiated.

    Raises:
      InputError: names the setting and the value found.
    """
    count = _integer(steps)
    if count is None or count < 0:
        raise InputError(f"steps is {steps!r}; give a number of inner steps, 0 or more.")
    if isinstance(gradient, str) and gradient in GRADIENTS:
        return count, count
    last = _integer(gradient)
    if last is None or not 1 <= last <= count:
        raise InputError(
            f'gradient is {gradient!r} at steps={count}; choose "exact", "first_order", or how many of the last steps '
            "are differentiated, a number from 1 to steps."
        )
    return count, last


def _integer(value: Any) -> int | None:
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
