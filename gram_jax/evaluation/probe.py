"""A linear probe: logistic regression on frozen features."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gram_jax.errors import InputError


@functools.partial(jax.jit, static_argnames=("num_classes", "steps"))
def _fit(features: jax.Array, labels: jax.Array, decay: float, num_classes: int, steps: int) -> dict[str, jax.Array]:
    def loss(weights: dict[str, jax.Array]) -> jax.Array:
        logits = features @ weights["kernel"] + weights["bias"]
        fit = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return fit + 0.5 * decay * jnp.sum(weights["kernel"] ** 2)

    solver = optax.lbfgs()
    weights = {"kernel": jnp.zeros((features.shape[1], num_classes)), "bias": jnp.zeros(num_classes)}
    value_and_grad = optax.value_and_grad_from_state(loss)

    def body(carry: tuple, _: None) -> tuple[tuple, None]:
        weights, state = carry
        value, grad = value_and_grad(weights, state=state)
        updates, state = solver.update(grad, state, weights, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(weights, updates), state), None

    (weights, _), _ = jax.lax.scan(body, (weights, solver.init(weights)), None, length=steps)
    return weights


def linear_probe(
    features: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    num_classes: int,
    decay: float = 1e-5,
    steps: int = 200,
) -> np.ndarray:
    """Fits multinomial logistic regression with L-BFGS and predicts.

    min over W, b of  mean_i CE(f_i W + b, y_i) + decay / 2 ||W||^2

    Args:
      features: float ``[images, embed]``, what it is fitted on.
      labels: int ``[images]``.
      queries: float ``[queries, embed]``.
      num_classes: the number of classes.
      decay: weight of the squared norm.
      steps: L-BFGS steps.

    Returns:
      int64 ``[queries]``, the predicted labels.

    Raises:
      InputError: where features and labels differ in number, or a label is out of range.

    Example:
      >>> linear_probe(np.eye(2), np.array([0, 1]), np.array([[0.9, 0.1]]), num_classes=2).tolist()
      [0]

    Reference:
      Radford et al. (2021), section 3.2: a linear probe by L-BFGS on frozen features.
    """
    if len(features) != len(labels) or not len(labels):
        raise InputError(f"{len(features)} features and {len(labels)} labels: give one label for each feature")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(f"labels run from {labels.min()} to {labels.max()}, but num_classes is {num_classes}")
    features = jnp.asarray(features, jnp.float32)
    weights = _fit(features, jnp.asarray(labels, jnp.int32), decay, num_classes, steps)
    return np.argmax(queries @ np.asarray(weights["kernel"]) + np.asarray(weights["bias"]), axis=-1)
