"""The exact shortcuts of the library: sides that compute the same step, each with one more shortcut."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gram_jax import tuning
from gram_jax.clip import Classes, Clip, TextPrompt, encode_classes, encode_image, logits, text
from gram_jax.clip.modules import layer_norm, make_block, project, run_layers, take_tokens
from gram_jax.objectives.base import normalize

from .inputs import Array, Problem, Setup, with_features
from .sides import Side, compilation_cache, compiled_side

Features = Callable[[Clip, Classes, TextPrompt], Array]


def text_shortcuts(setup: Setup, problem: Problem) -> dict[str, Callable[[], Side]]:
    """Returns functions that build the CoOp step, each with one more shortcut."""
    batch, sizes, length = problem.batches["support"], setup.sizes, setup.clip.config.text.context_length
    short = batch["classes"]
    fill = ((0, 0), (0, length - 1 - sizes.context - short.tail_ids.shape[-1]))
    whole = short.replace(tail_ids=jnp.pad(short.tail_ids, fill, mode="edge"))
    pixels, stored = batch["images"], with_features(setup, problem)["support"]["images"]

    def step(features: Features, classes: Classes, images: Array, **settings: Any) -> Callable[[], Side]:
        clip = setup.clip.replace(config=dataclasses.replace(setup.clip.config, **settings))

        def build() -> Side:
            def loss(prompt: Any, clip: Clip, classes: Classes, images: Array) -> Array:
                images = encode_image(clip, images) if images.ndim == 4 else images
                texts = features(clip, classes, TextPrompt(prompt["context"]))
                scores = logits(images, texts, clip.params["logit_scale"])
                return optax.softmax_cross_entropy_with_integer_labels(scores, batch["labels"]).mean()

            return _gradient_side(loss, problem.prompt, clip, classes, images)

        return build

    def unshared(clip: Clip, classes: Classes, prompt: TextPrompt) -> Array:
        return normalize(text.class_features(clip.params["text"], clip.config, classes, prompt, share=False))

    def cached() -> Side:
        for _ in range(2):  # the second time from files: the cache is opened again, nothing is taken from memory
            with compilation_cache(str(setup.folder / "compilation_cache")):
                side = shared()
        return side

    unrolled = functools.partial(_full_features, unrolled=True)
    shared = step(encode_classes, short, stored)
    chunks = {"class_chunk": sizes.class_chunk}
    return {
        f"{length} tokens, images in every step, layers written out": step(unrolled, whole, pixels),
        "text layers in a loop": step(_full_features, whole, pixels),
        "image features stored": step(_full_features, whole, stored),
        "cut to the longest class": step(_full_features, short, stored),
        "last layer: end token only": step(unshared, short, stored),
        "shared prefix, names as a tree": shared,
        "the same, from the compilation cache": cached,
        f"{sizes.class_chunk} classes at a time, recomputed": step(encode_classes, short, stored, **chunks),
        "layers recomputed as well": step(encode_classes, short, stored, **chunks, remat=True),
    }


def image_shortcuts(setup: Setup, problem: Problem) -> dict[str, Callable[[], Side]]:
    """Returns functions that build the VPT step, with class texts in every step and with stored ones."""
    batch, loss = problem.batches["support"], tuning.classification_loss(problem.tuner)

    def step(classes: Any) -> Callable[[], Side]:
        return lambda: _gradient_side(loss, problem.prompt, setup.clip, batch | {"classes": classes})

    stored = jax.jit(encode_classes)(setup.clip, batch["classes"])
    return {"class texts in every step": step(batch["classes"]), "text features stored": step(stored)}


def _gradient_side(loss: Callable[..., Array], *arguments: Any) -> Side:
    """Returns a side that computes a loss and its gradient."""
    step = jax.jit(jax.value_and_grad(loss))
    return compiled_side(step, lambda: arguments, lambda out: (out[0], optax.tree.norm(out[1])))


def _full_features(clip: Clip, classes: Classes, prompt: TextPrompt, unrolled: bool = False) -> Array:
    """Returns text features without shortcuts: all tokens of every class run through all layers."""
    params, config = clip.params["text"], clip.config.text
    start, tail = text.embed(params, classes.token_ids[:, :1]), text.embed(params, classes.tail_ids)
    context = jnp.broadcast_to(prompt.context, (len(tail), *prompt.context.shape))
    x = jnp.concatenate([start, context, tail], axis=1)
    x = x + params["position_embedding"][: x.shape[1]]
    mask = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
    block = make_block(config, clip.config.compute_dtype)

    def step(x: Array, layer: Any, deep: None, slots: None) -> Array:
        del deep, slots
        return block.apply({"params": layer}, x, mask)[0]

    if unrolled:
        for number in range(config.layers):
            x = step(x, jax.tree.map(lambda leaf, number=number: leaf[number], params["layers"]), None, None)
    else:
        x = run_layers(step, x, params["layers"], range(config.layers))
    x = take_tokens(x, 1 + prompt.context.shape[0] + classes.tail_eot[:, None])[:, 0]
    x = layer_norm(config.norm_eps).apply({"params": params["final_norm"]}, x)
    return normalize(project(x, params))
