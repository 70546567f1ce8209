"""DPT: CoOp's context, deep visual prompts, and visual prompts computed per image from its likely classes."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from gram_jax.clip import Classes, Clip, MaskedTokens, encode_classes, encode_image
from gram_jax.clip.prompts import CLASS_POSITIONS
from gram_jax.clip.validation import require_visual_prompts
from gram_jax.errors import InputError, require_bool, require_int, require_known
from gram_jax.tuners.base import (
    Outputs,
    Prompt,
    Tuner,
    Words,
    check_depth,
    check_names,
    frozen_outputs,
    make_outputs,
    random_vectors,
    words_setting,
)
from gram_jax.tuners.networks import dense, dense_init, linear, norm, norm_init, uniform
from gram_jax.tuners.text_deep import text_init, text_prompt
from gram_jax.tuners.vpt import visual_init, visual_prompt

Array = jax.Array
_QUERY_WIDTH = 32  # of queries and keys
_OWN_TOKENS = 10  # learned tokens that class prompts attend to, with those of the image


class DptOutputs(NamedTuple):
    """All results of a forward pass of DPT, for its loss.

    Attributes:
      outputs: the outputs of the tuner's `apply`.
      frozen: the outputs without a prompt; this and the rest are None without class-aware layers.
      selected: int `[images, c]`, the most likely classes of each image without a prompt, the most likely one first.
      keep: bool `[images, c]`, False if there are fewer classes than that.
      attended: `[layers, images, c, vision width]`, the attention output of each class, per class-aware layer.
    """

    outputs: Outputs
    frozen: Outputs | None
    selected: Array | None
    keep: Array | None
    attended: Array | None


def dpt(
    num_text: int | None = 16,
    num_visual: int = 10,
    num_classes: int = 10,
    class_layers: int = 1,
    init_text: str | None = None,
    position: str = "end",
    class_specific: bool = False,
) -> Tuner:
    """Returns the tuner of dual-modality prompt tuning, with class-aware visual prompts in the top layers.

    The text side is CoOp's. The lower L - T of the vision transformer's L layers read [c, patches, P_l] with m learned
    tokens each. Each of the upper T layers reads [c, patches, Q], with Q computed by that layer for each image: with
    the k classes that the frozen clip finds most likely under the template of the dataset, their prompted text features
    t_j, not normalized, the layer's own tokens x (without a gradient) and ten learned ones S,

        p_j = W_p t_j + a,    A_j = W_v sum_i softmax_i( <W_q p_j, W_k z_i> / sqrt(32) ) z_i,    z = [x ; S],
        Q_j = norm(A_j + p_j).

    In class lists that are padded by repeating the last class, the repetitions are ignored; with fewer than k classes
    there are fewer prompts. `objectives.dpt_loss` is the published loss in stages. With `class_layers=0` this is VLP,
    deep visual prompts with CoOp. It is a few-shot method: its class-aware prompts transfer poorly.

    The prompt is `{"text": {"context": [n, text width]}, "visual": {"tokens": [m, vision width], "deep": [L - T - 1, m,
    vision width]}, "class_aware": {"query": {"kernel", "bias"}, "attention": {"query", "key", "value"}, "tokens",
    "norm": {"scale", "bias"}}}`, each leaf of the last with a leading axis of T layers; a part without layers is
    missing. A class-specific prompt also has `"classifier": {"norm": {"scale", "bias"}, "kernel": [T, vision width,
    classes]}`, which only `dpt_loss` reads. Vectors are initialized from N(0, 0.02^2), the rest like PyTorch's layers.

    Args:
      num_text: n. None: the number of tokens of `init_text`, or 4 without it.
      num_visual, num_classes, class_layers: m, k and T.
      init_text: words whose first n embeddings initialize the context; the rest follow, frozen. None: N(0, 0.02^2).
      position: the place of the class name: "end" (after the context), "middle" or "front".
      class_specific: also learn the classifier of class prompts, as published. Such a prompt is trained on one class
        list, but can be applied to any.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(vision_layers=3), dpt(num_visual=2)
      >>> prompt = tuner.init(jax.random.key(0), clip, None)
      >>> prompt["visual"]["deep"].shape[0], sorted(prompt["class_aware"])
      (1, ['attention', 'norm', 'query', 'tokens'])

    Reference:
      "Dual Modality Prompt Tuning for Vision-Language Pre-Trained Model", section III; settings and order of operations
      as in its public code.
    """
    require_known("position", position, CLASS_POSITIONS)
    words = words_setting("num_text", num_text, init_text)
    require_int("num_visual", num_visual)
    require_int("num_classes", num_classes)
    require_int("class_layers", class_layers, least=0)
    require_bool("class_specific", class_specific)
    if class_specific and not class_layers:
        raise InputError("class_specific=True needs class_layers of at least 1: it classifies their prompts")
    sizes = {"num_visual": num_visual, "num_classes": num_classes, "class_layers": class_layers}
    others = {"init_text": init_text, "position": position, "class_specific": class_specific}
    settings: Mapping[str, Any] = FrozenDict({"num_text": words.count, **sizes, **others})

    def init(key: Array, clip: Clip, classes: Classes | None) -> Prompt:
        vision = require_visual_prompts(clip.config.vision)
        layers, width = vision.layers, vision.width
        check_depth(class_layers, clip, "vision", setting="class_layers")
        context_key, visual_key, aware_key, classifier_key = jax.random.split(key, 4)
        prompt = {"text": text_init(words, context_key, context_key, clip, classes, 1)}
        if class_layers < layers:
            prompt["visual"] = visual_init(visual_key, clip, num_visual, layers - class_layers)
        if class_layers:
            prompt["class_aware"] = _class_aware_init(aware_key, class_layers, clip.config.embed_dim, width)
        if class_specific:
            count = len(check_names(classes).tail_ids)
            kernel = uniform(classifier_key, width**-0.5, class_layers, width, count)
            prompt["classifier"] = {"norm": norm_init(width, class_layers), "kernel": kernel}
        return prompt

    def apply(prompt: Prompt, clip: Clip, classes: Classes, images: Array) -> Outputs:
        return dpt_outputs(settings, prompt, clip, classes, images).outputs

    return Tuner("dpt", settings, init, apply, needs_pixels=True, needs_names=True, reads_template=True)


def dpt_outputs(settings: Mapping[str, Any], prompt: Prompt, clip: Clip, classes: Classes, images: Array) -> DptOutputs:
    """Runs the forward pass of a `dpt` with these settings and returns all of its results."""
    check_names(classes)
    return _forward(prompt, clip, classes, images, settings=settings)


@functools.partial(jax.jit, static_argnames="settings")
def _forward(prompt: Prompt, clip: Clip, classes: Classes, images: Array, *, settings: Mapping[str, Any]) -> DptOutputs:
    words = Words("num_text", settings["num_text"], settings["init_text"])
    text = text_prompt(words, prompt["text"], clip, settings["position"])
    texts = encode_classes(clip, classes, text, normalize=False)
    unit_texts = texts / jnp.linalg.norm(texts, axis=-1, keepdims=True)
    visual = visual_prompt(prompt["visual"], "after_norm") if "visual" in prompt else None
    layers = require_visual_prompts(clip.config.vision).layers
    upper = range(layers - settings["class_layers"], layers)
    if not upper:
        return DptOutputs(make_outputs(clip, encode_image(clip, images, visual), unit_texts), None, None, None, None)
    frozen = frozen_outputs(clip, classes, images)
    scores = jnp.where(_repetitions(classes), -jnp.inf, frozen.logits)
    best, selected = jax.lax.top_k(scores, min(settings["num_classes"], scores.shape[1]))
    keep = best > -jnp.inf
    likely = texts[selected]  # [images, k, embed_dim]

    def make(own: Prompt, tokens: Array) -> tuple[MaskedTokens, Array]:
        prompts, attended = _class_prompts(own, likely, tokens)
        return MaskedTokens(prompts, keep), attended

    functions = {
        layer: functools.partial(make, jax.tree.map(lambda leaf, row=row: leaf[row], prompt["class_aware"]))
        for row, layer in enumerate(upper)
    }
    features, attended = encode_image(clip, images, visual, layer_prompts=functions, has_aux=True)
    attended = jnp.stack([attended[layer] for layer in upper])
    return DptOutputs(make_outputs(clip, features, unit_texts), frozen, selected, keep, attended)


def _class_prompts(own: Prompt, likely: Array, tokens: Array) -> tuple[Array, Array]:
    """Returns the prompt tokens of one layer, `[images, k, width]`, and the attention outputs, of the same shape."""
    attention = own["attention"]
    projected = dense(own["query"], likely)  # [images, k, width]
    tokens = jax.lax.stop_gradient(tokens)
    learned = jnp.broadcast_to(own["tokens"], (tokens.shape[0], *own["tokens"].shape)).astype(tokens.dtype)
    seen = jnp.concatenate([tokens, learned], axis=1)  # [images, tokens, width]
    queries, keys = linear(attention["query"], projected), linear(attention["key"], seen)
    scores = jnp.einsum("bqd,bkd->bqk", queries, keys, precision="highest") / math.sqrt(_QUERY_WIDTH)
    mixed = jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(scores), seen, precision="highest")
    attended = linear(attention["value"], mixed)
    return norm(own["norm"], attended + projected), attended


def _repetitions(classes: Classes) -> Array:
    """Returns which classes only pad the list, bool `[classes]`: the repetitions of the last one at its end."""
    like_last = jnp.all(classes.tail_ids == classes.tail_ids[-1], axis=1)
    of_the_end = jnp.flip(jnp.cumprod(jnp.flip(like_last))).astype(bool)
    return of_the_end & jnp.roll(of_the_end, 1).at[0].set(False)


def _class_aware_init(key: Array, layers: int, embed_dim: int, width: int) -> Prompt:
    dense_key, query_key, key_key, value_key, tokens_key = jax.random.split(key, 5)
    attention = {"query": (query_key, _QUERY_WIDTH), "key": (key_key, _QUERY_WIDTH), "value": (value_key, width)}
    return {
        "query": dense_init(dense_key, embed_dim, width, layers),
        "attention": {name: uniform(own, width**-0.5, layers, width, out) for name, (own, out) in attention.items()},
        "tokens": random_vectors(tokens_key, layers, _OWN_TOKENS, width),
        "norm": norm_init(width, layers),
    }
