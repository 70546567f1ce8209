"""Tip-Adapter's cache of labeled features: its logits, the search for its two settings, and the tuning of its keys."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gram_jax.clip import logits

Array = jax.Array
State = dict[str, Array]

_TOPS, _STEPS = {"alpha": 3.0, "beta": 7.0}, {"alpha": 20, "beta": 200}  # the published grids start at 0.1


def cached_logits(state: State, logit_scale: Array, features: Array) -> Array:
    """Returns exp(logit_scale) <f, t_c> + alpha sum_i exp(-beta (1 - <f, k_i>)) y_ic, `[images, classes]`.

    The state holds "texts" `[classes, embed_dim]`, "keys" `[cached, embed_dim]`, "values" `[cached, classes]` one-hot,
    and the scalars "alpha" and "beta"; features are `[images, embed_dim]`, normalized.
    """
    affinities = jnp.matmul(features, state["keys"].T, precision="highest")
    cache = jnp.matmul(jnp.exp(-state["beta"] * (1 - affinities)), state["values"], precision="highest")
    return logits(features, state["texts"], logit_scale) + state["alpha"] * cache


def search(
    state: State, logit_scale: Array, queries: np.ndarray, answers: np.ndarray, alpha: float | None, beta: float | None
) -> tuple[float, float]:
    """Returns the alpha and beta of the best accuracy on labeled queries `[images, embed_dim]`; given ones stay.

    Of equal ones, the first on the published grid counts; its inner loop is over alpha.
    """
    alphas, betas = (
        np.arange(_STEPS[name]) * (_TOPS[name] - 0.1) / _STEPS[name] + 0.1 if given is None else np.array([given])
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


def tune_keys(
    state: State, logit_scale: Array, labels: np.ndarray, epochs: int, learning_rate: float, batch_size: int, seed: int
) -> Array:
    """Returns the keys `[cached, embed_dim]`, at first the labeled features, tuned by AdamW with a cosine schedule."""
    orders = jnp.asarray(_orders(len(labels), batch_size, epochs, seed))
    schedule = optax.cosine_decay_schedule(learning_rate, len(orders))
    optimizer = optax.adamw(schedule, eps=1e-4, weight_decay=0.01)
    images, targets = state["keys"], jnp.asarray(labels)

    @jax.jit
    def run(keys: Array, orders: Array) -> Array:
        def step(carry: tuple[Array, Any], chosen: Array) -> tuple[tuple[Array, Any], None]:
            keys, memory = carry
            there = chosen >= 0

            def loss(keys: Array) -> Array:
                scores = cached_logits(state | {"keys": keys}, logit_scale, images[chosen])
                losses = optax.softmax_cross_entropy_with_integer_labels(scores, targets[chosen])
                return jnp.sum(losses * there) / jnp.sum(there)

            updates, memory = optimizer.update(jax.grad(loss)(keys), memory, keys)
            return (optax.apply_updates(keys, updates), memory), None

        return jax.lax.scan(step, (keys, optimizer.init(keys)), orders)[0][0]

    return run(images, orders)


def _orders(count: int, batch_size: int, epochs: int, seed: int) -> np.ndarray:
    """Returns the indices of batches, int `[steps, batch]`; -1 fills up the last batch of a pass."""
    size, rng = min(batch_size, count), np.random.default_rng(seed)
    filled = [np.pad(rng.permutation(count), (0, -count % size), constant_values=-1) for _ in range(epochs)]
    return np.concatenate(filled).reshape(-1, size)
