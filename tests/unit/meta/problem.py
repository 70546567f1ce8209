"""A small problem on a real clip: text and visual prompts, a regulator away from the identity."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gram_jax import encode_classes, encode_image, logits
from gram_jax.clip import TextPrompt, VisualPrompt
from gram_jax.meta import Meta, Task

NAMES = ["cat", "small dog", "large green frog"]


def clip_loss(prompt, frozen, batch):
    """Cross-entropy under a context, visual tokens, or whichever of them the prompt has."""
    text, vision = prompt.get("text"), prompt.get("vision")
    image = encode_image(frozen, batch["images"], vision and VisualPrompt(vision["tokens"]))
    classes = encode_classes(frozen, batch["classes"], text and TextPrompt(text["context"]))
    scores = logits(image, classes, frozen.params["logit_scale"])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, batch["labels"]))


def make_batch(rng, clip, num_images, dtype=np.float32):
    size = clip.config.vision.image_size
    return {
        "images": jnp.asarray(rng.normal(size=(num_images, size, size, 3)), dtype),
        "classes": clip.class_tokens(NAMES),
        "labels": jnp.asarray(np.arange(num_images) % len(NAMES)),
    }


def make_tasks(clip, count, context_dim, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    tasks = [
        Task(
            support=make_batch(rng, clip, 3, dtype),
            same=make_batch(rng, clip, 2, dtype),
            cross=make_batch(rng, clip, 2, dtype),
            context=jnp.asarray(rng.normal(size=context_dim), dtype),
        )
        for _ in range(count)
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)


def make_meta(clip, regulator, rng, dtype=np.float32, rate=0.02, sides=("text", "vision")):
    """A prompt, parameters that are far from the identity, and step sizes."""

    def draw(tree, std):
        return jax.tree.map(lambda leaf: jnp.asarray(std * rng.normal(size=leaf.shape), dtype), tree)

    text, vision = clip.config.text.width, clip.config.vision.width
    shapes = {
        "text": {"context": np.empty((2, text), dtype)},
        "vision": {"tokens": np.empty((2, vision), dtype)},
    }
    prompt = draw({side: shapes[side] for side in sides}, 0.5)
    phi = draw(jax.eval_shape(regulator.init, jax.random.key(0), prompt), 0.5)
    rates = jax.tree.map(lambda leaf: jnp.asarray(np.log(rate) + 0.1 * rng.normal(), dtype), prompt)
    return Meta(prompt, phi, rates)
