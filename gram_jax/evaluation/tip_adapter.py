"""Tip-Adapter's cache of labeled features: its logits, the search for its two settings, and the tuning of its keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gram_jax.clip import logits

Array = jax.Array
State = dict[str, Array]

TOPS = {"alpha": 3.0, "beta": 7.0}  # the ends of the grids that were published for ImageNet
_STEPS = {"alpha": 20, "beta": 200}  # all published grids start at 0.1


def cached_logits(state: State, logit_scale: Array, features: Array) -> Array:
    """Returns exp(logit_scale) <f, t_c> + alpha sum_i exp(-beta (1 - <f, k_i>)) y_ic, `[images, classes]`.

    The state holds "texts" `[classes, embed_dim]`, "keys" `[cached, embed_dim]`, "values" `[cached, classes]` one-hot,
    and the scalars "alpha" and "beta"; features are `[images, embed_dim]`, normalized.
    """
    affinities = jnp.matmul(features, state["keys"].T, precision="highest")
    cache = jnp.matmul(jnp.exp(-state["beta"] * (1 - affinities)), state["values"], precision="highest")
    return logits(features, state["texts"], logit_scale) + state["alpha"] * cache


def search(
    state: State,
    logit_scale: Array,
    queries: np.ndarray,
    answers: np.ndarray,
    alpha: float | None,
    beta: float | None,
    tops: Mapping[str, float] = TOPS,
) -> tuple[float, float]:
    """Returns the alpha and beta of the best accuracy on labeled queries `[images, embed_dim]`; given ones stay.

    `tops` are the ends of the grids of "alpha" and "beta".

    Of equal ones, the first on the published grid counts; its inner loop is over alpha.
    """
    alphas, betas = (
        np.arange(_STEPS[name]) * (tops[name] - 0.1) / _STEPS[name] + 0.1 if given is None else np.array([given])
        for name, given in (("alpha", alpha), ("beta", beta))
    )
    plain = np.asarray(logits(jnp.asarray(queries), state["texts"], logit_scale))
    affinities, values = queries @ np.asarray(state["keys"]).T, np.asarray(state["values"])
    best, most = (float(alphas[0]), float(betas[0])), -1.0
    for sharpness in betas:
        cache = np.exp(-sharpness * (1 - affinities)) @ values
        for weight in alphas:
            right = float(np.mean(np.argmax(plain + weight * cache, axis=1) == answers))
            if right > most:
                best, most = (float(weight), float(sharpness)), right
    return best


class KeyTuning(NamedTuple):
    """How keys are tuned: by AdamW, with the seed of the order of the features."""

    epochs: int
    learning_rate: float
    batch_size: int
    seed: int


def accuracy(state: State, logit_scale: Array, queries: np.ndarray, answers: np.ndarray) -> float:
    """Returns the share of labeled queries `[images, embed_dim]` that a cache classifies correctly."""
    return float(np.mean(np.argmax(cached_logits(state, logit_scale, jnp.asarray(queries)), axis=1) == answers))


def tune_keys(
    state: State,
    logit_scale: Array,
    labels: np.ndarray,
    how: KeyTuning,
    views: np.ndarray | None = None,
    score: Callable[[State], float] | None = None,
) -> Array:
    """Returns the keys `[cached, embed_dim]`, at first those of the state, tuned by AdamW with a cosine schedule.

    Args:
      state, logit_scale: as in `cached_logits`.
      labels: of the cached features, int `[cached]`.
      how: the settings of AdamW.
      views: what is classified in each epoch, `[cached, epochs, embed_dim]`, normalized; None: the first keys.
      score: rates a state after every epoch; the first of the best keys is returned. None: the last one.
    """
    orders = jnp.asarray(_orders(len(labels), how.batch_size, how.epochs, how.seed))
    schedule = optax.cosine_decay_schedule(how.learning_rate, len(orders))
    optimizer = optax.adamw(schedule, eps=1e-4, weight_decay=0.01)
    first, targets = state["keys"], jnp.asarray(labels)

    @jax.jit
    def run(carry: tuple[Array, Any], images: Array, orders: Array) -> tuple[Array, Any]:
        def step(carry: tuple[Array, Any], chosen: Array) -> tuple[tuple[Array, Any], None]:
            keys, memory = carry
            there = chosen >= 0

            def loss(keys: Array) -> Array:
                scores = cached_logits(state | {"keys": keys}, logit_scale, images[chosen])
                losses = optax.softmax_cross_entropy_with_integer_labels(scores, targets[chosen])
                return jnp.sum(losses * there) / jnp.sum(there)

            updates, memory = optimizer.update(jax.grad(loss)(keys), memory, keys)
            return (optax.apply_updates(keys, updates), memory), None

        return jax.lax.scan(step, carry, orders)[0]

    carry, best = (first, optimizer.init(first)), (-1.0, first)
    for epoch, order in enumerate(jnp.split(orders, how.epochs)):
        carry = run(carry, first if views is None else jnp.asarray(views[:, epoch]), order)
        value = best[0] + 1 if score is None else score(state | {"keys": carry[0]})
        best = (value, carry[0]) if value > best[0] else best
    return best[1]


def _orders(count: int, batch_size: int, epochs: int, seed: int) -> np.ndarray:
    """Returns the indices of batches, int `[steps, batch]`; -1 fills up the last batch of a pass."""
    size, rng = min(batch_size, count), np.random.default_rng(seed)
    filled = [np.pad(rng.permutation(count), (0, -count % size), constant_values=-1) for _ in range(epochs)]
    return np.concatenate(filled).reshape(-1, size)
