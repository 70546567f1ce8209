"""Adaptive prompt tuning: the text features attend to the patches of each image."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from gram_jax.clip import Classes, Clip, encode_patches
from gram_jax.errors import require_int, require_number
from gram_jax.tuners.base import TEXT, Outputs, Prompt, Tuner, frozen_text_features, make_outputs
from gram_jax.tuners.networks import linear, uniform

Array = jax.Array


def adaptive(width: int | None = None, dropout: float = 0.1) -> Tuner:
    """Returns the tuner of adaptive prompt tuning: cross-attention from class texts to image patches, both frozen.

    With the frozen text features w_k of the classes and the frozen patches z_bp of image b in the joint space,

        a_bkp  = softmax_p( <w_k W_q, z_bp W_k> / sqrt(d) ),
        t_bk   = w_k + ( sum_p a_bkp z_bp W_v ) W_o,    logits[b, k] = exp(logit_scale) * cos(f_b, t_bk).

    Both transformers are frozen: `classes` may be text features. `apply` has a fifth argument, `key=None`: with a key,
    each a_bkp is dropped with probability `dropout` and the others are divided by 1 - `dropout`. The tuning loops pass
    no key, so they train without dropout; passing several keys gives Monte Carlo samples of the prediction.

    The prompt is `{"query", "key", "value": [embed_dim, d], "out": [d, embed_dim]}`. W_o is initialized with 0, which
    is exactly the zero-shot classifier; the others like PyTorch's dense layers.

    Args:
      width: d; None: the clip's `embed_dim`.
      dropout: probability that an attention weight is dropped, in [0, 1).

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(), adaptive(width=8)
      >>> classes, images = clip.class_tokens(["cat", "dog", "bird"]), jnp.ones((2, 12, 12, 3))
      >>> prompt = tuner.init(jax.random.key(0), clip, classes)
      >>> tuner.apply(prompt, clip, classes, images, jax.random.key(1)).text_features.shape
      (2, 3, 16)

    Reference:
      "Adaptive Prompt Tuning: Vision Guided Prompt Tuning with Cross-Attention for Fine-Grained Few-Shot Learning". Its
      text is not public in full: one head, the residual, patches in the joint space, the initialization, and the place
      and rate of the dropout are a reconstruction.
    """
    if width is not None:
        require_int("width", width)
    require_number("dropout", dropout, least=0, below=1)
    settings: dict[str, Any] = {"width": width, "dropout": float(dropout)}

    def init(key: Array, clip: Clip, classes: Classes | Array | None) -> Prompt:
        embed_dim = clip.config.embed_dim
        inner = embed_dim if width is None else width
        keys = dict(zip(("query", "key", "value"), jax.random.split(key, 3), strict=True))
        layers = {name: uniform(own, embed_dim**-0.5, embed_dim, inner) for name, own in keys.items()}
        return {**layers, "out": jnp.zeros((inner, embed_dim), jnp.float32)}

    def apply(prompt: Prompt, clip: Clip, classes: Classes | Array, images: Array, key: Array | None = None) -> Outputs:
        words = frozen_text_features(clip, classes)
        features, patches = encode_patches(clip, images)
        queries, keys = linear(prompt["query"], words), linear(prompt["key"], patches)
        scores = jnp.einsum("kd,bpd->bkp", queries, keys, precision="highest") / math.sqrt(queries.shape[-1])
        weights = jax.nn.softmax(scores)
        if key is not None:
            kept = jax.random.bernoulli(key, 1 - dropout, weights.shape)
            weights = jnp.where(kept, weights / (1 - dropout), 0.0)
        seen = jnp.einsum("bkp,bpd->bkd", weights, linear(prompt["value"], patches), precision="highest")
        texts = words + linear(prompt["out"], seen)
        return make_outputs(clip, features, texts / jnp.linalg.norm(texts, axis=-1, keepdims=True))

    return Tuner("adaptive", FrozenDict(settings), init, apply, needs_pixels=True, needs_names=False, changes=TEXT)
