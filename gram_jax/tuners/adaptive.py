"""Adaptive prompt tuning: every image refines the text features by attending to its patches."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from gram_jax.clip import Classes, Clip, encode_patches
from gram_jax.errors import InputError, require_int
from gram_jax.tuners.base import Outputs, Prompt, Tuner, frozen_text_features, make_outputs
from gram_jax.tuners.networks import linear, uniform

Array = jax.Array


class Beliefs(NamedTuple):
    """What `monte_carlo` finds over its random passes.

    Attributes:
      mean: `[images, classes]`, mean probabilities.
      std: `[images, classes]`, their standard deviations over the passes.
      entropy: `[images]`, of the mean probabilities, in nats: how uncertain the prediction is.
      information: `[images]`, that entropy less the mean entropy of the passes, in nats: how much of it is disagreement
        between passes.

    Example:
      >>> Beliefs(jnp.ones((5, 1)), jnp.zeros((5, 1)), jnp.zeros(5), jnp.zeros(5)).mean.shape
      (5, 1)
    """

    mean: Array
    std: Array
    entropy: Array
    information: Array


def adaptive(width: int | None = None, dropout: float = 0.1) -> Tuner:
    """Adaptive prompt tuning: a cross-attention layer from class texts to image patches, beside two frozen towers.

    With the frozen text features w_k of the classes and the frozen patches z_bp of image b in the joint space,

        a_bkp  = softmax_p( <w_k W_q, z_bp W_k> / sqrt(d) ),
        t_bk   = w_k + ( sum_p a_bkp z_bp W_v ) W_o,    logits[b, k] = exp(logit_scale) * cos(f_b, t_bk).

    Both transformers run without a prompt: `classes` may be frozen text features. `apply` takes a fifth argument,
    `key=None`: with a key, each a_bkp is dropped with probability `dropout` and the rest is divided by 1 - `dropout`;
    without one, nothing is. Loops of training that give no key train without dropout; `monte_carlo` gives many.

    The prompt is `{"query", "key", "value": [embed_dim, d], "out": [d, embed_dim]}`. W_o starts at 0, so that the start
    is exactly the zero-shot classifier; the others start as PyTorch's dense layers.

    Args:
      width: d; None takes the clip's `embed_dim`.
      dropout: probability that an attention weight is dropped, in [0, 1).

    Returns:
      The tuner.

    Raises:
      InputError: a setting has an impossible value.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(), adaptive(width=8)
      >>> classes, images = clip.class_tokens(["cat", "dog", "bird"]), jnp.ones((2, 12, 12, 3))
      >>> prompt = tuner.init(jax.random.key(0), clip, classes)
      >>> tuner.apply(prompt, clip, classes, images, jax.random.key(1)).text_features.shape
      (2, 3, 16)

    Reference:
      "Adaptive Prompt Tuning: Vision Guided Prompt Tuning with Cross-Attention for Fine-Grained Few-Shot Learning". Its
      text is not public in full: one head, the residual, the joint space for patches, the start and the place and rate
      of the dropout are our own choices.
    """
    if width is not None:
        require_int("width", width)
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise InputError(f"dropout must be a number in [0, 1), found {dropout!r}.")
    settings = {"width": width, "dropout": float(dropout)}

    def init(key: Array, clip: Clip, classes: Classes | Array | None) -> Prompt:
        del classes
        embed_dim = clip.config.embed_dim
        inner = embed_dim if width is None else width
        query_key, key_key, value_key = jax.random.split(key, 3)
        bound = embed_dim**-0.5
        return {
            "query": uniform(query_key, bound, embed_dim, inner),
            "key": uniform(key_key, bound, embed_dim, inner),
            "value": uniform(value_key, bound, embed_dim, inner),
            "out": jnp.zeros((inner, embed_dim), jnp.float32),
        }

    def apply(prompt: Prompt, clip: Clip, classes: Classes | Array, images: Array, key: Array | None = None) -> Outputs:
        words = frozen_text_features(clip, classes)
        features, patches = encode_patches(clip, images)
        queries, keys = linear(prompt["query"], words), linear(prompt["key"], patches)
        scores = jnp.einsum("kd,bpd->bkp", queries, keys, precision="highest") / math.sqrt(queries.shape[-1])
        weights = jax.nn.softmax(scores)
        if key is not None:
            kept = jax.random.bernoulli(key, 1 - settings["dropout"], weights.shape)
            weights = jnp.where(kept, weights / (1 - settings["dropout"]), 0.0)
        seen = jnp.einsum("bkp,bpd->bkd", weights, linear(prompt["value"], patches), precision="highest")
        texts = words + linear(prompt["out"], seen)
        return make_outputs(clip, features, texts / jnp.linalg.norm(texts, axis=-1, keepdims=True))

    changes = frozenset({"text"})
    return Tuner("adaptive", FrozenDict(settings), init, apply, needs_pixels=True, needs_names=False, changes=changes)


def monte_carlo(
    tuner: Tuner,
    prompt: Prompt,
    clip: Clip,
    classes: Classes | Array,
    images: Array,
    key: Array,
    *,
    samples: int = 30,
) -> Beliefs:
    """Predictions of the adaptive tuner over many random dropouts, and how much they disagree.

    With p_s = softmax(logits under dropout s),

        mean = 1/S sum_s p_s,    entropy = H(mean),    information = H(mean) - 1/S sum_s H(p_s).

    The two transformers run once; only the attention layer runs for every sample.

    Args:
      tuner: as `adaptive` makes it.
      prompt: its prompt.
      clip: the frozen clip.
      classes: as the tuner takes them.
      images: `[images, size, size, channels]`.
      key: a PRNG key.
      samples: S.

    Returns:
      The `Beliefs`.

    Raises:
      InputError: if the tuner is another one, or `samples` is no positive integer.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(), adaptive()
      >>> classes, images = clip.class_tokens(["cat", "dog", "bird"]), jnp.ones((2, 12, 12, 3))
      >>> prompt = tuner.init(jax.random.key(0), clip, classes)
      >>> monte_carlo(tuner, prompt, clip, classes, images, jax.random.key(1), samples=5).mean.sum(axis=1).round(4)
      Array([1., 1.], dtype=float32)

    Reference:
      "Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep Learning", section 4, as "Adaptive
      Prompt Tuning" uses it; the information is that of "Bayesian Active Learning for Classification and Preference
      Learning", equation 2.
    """
    if tuner.name != "adaptive":
        raise InputError(f"monte_carlo needs a tuner that adaptive made, found {tuner.name!r}.")
    require_int("samples", samples)

    def one(key: Array) -> Array:
        return jax.nn.log_softmax(tuner.apply(prompt, clip, classes, images, key).logits)

    logs = jax.vmap(one)(jax.random.split(key, samples))  # [samples, images, classes]
    mean = jnp.mean(jnp.exp(logs), axis=0)
    entropy = -jnp.sum(jax.scipy.special.xlogy(mean, mean), axis=-1)
    within = -jnp.mean(jnp.sum(jnp.exp(logs) * logs, axis=-1), axis=0)
    return Beliefs(mean, jnp.std(jnp.exp(logs), axis=0), entropy, entropy - within)
