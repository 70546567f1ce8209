"""Deep language prompts: a context of its own for each of the first layers of the text transformer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from gram_jax.clip import Classes, Clip, TextPrompt, encode_classes
from gram_jax.clip.prompts import CLASS_POSITIONS
from gram_jax.errors import require_int, require_known
from gram_jax.tuners.base import (
    Outputs,
    Prompt,
    Tuner,
    check_depth,
    check_names,
    check_room,
    check_words,
    frozen_image_features,
    make_outputs,
    random_vectors,
    word_vectors,
)


def text_deep(
    num_tokens: int | None = None,
    depth: int = 12,
    init_text: str | None = "a photo of a",
    position: str = "end",
) -> Tuner:
    """Deep language prompting: CoOp's context, and a new one in its place before each of the next layers.

    Layer l < D of the text transformer reads [SOS] V_l name . [EOS] with n vectors V_l; later layers read what has
    become of V_{D-1}. Depth 1 is CoOp.

    The image side is untouched: `images` may be frozen image features. The prompt is `{"context": [n, width]}`, with
    `"deep": [depth - 1, n, width]` if it is deep. All but V_0 starts at N(0, 0.02^2).

    Args:
      num_tokens: n. None takes as many as `init_text` has tokens for the clip, or 4 without it.
      depth: D, the number of layers with a context of their own, the first one included.
      init_text: words whose first n token embeddings V_0 starts as; further ones stay, frozen, behind V_l. None:
        N(0, 0.02^2).
      position: where the name stands: "end" (behind the context), "middle" or "front".

    Returns:
      The tuner.

    Raises:
      InputError: a setting has an impossible value. `init` raises it if the clip has fewer text layers than `depth`,
        the words are fewer than `num_tokens` tokens, or context and class names do not fit the context length.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(text_layers=3), text_deep(depth=3)
      >>> prompt = tuner.init(jax.random.key(0), clip, None)
      >>> prompt["deep"].shape == (2, 4, clip.config.text.width)
      True

    Reference:
      "MaPLe: Multi-modal Prompt Learning", section 4.2 ("deep language prompting"), whose public code's settings are
      the defaults.
    """
    require_known("position", position, CLASS_POSITIONS)
    require_int("depth", depth)
    num_tokens = check_words("num_tokens", num_tokens, init_text)
    settings = {"num_tokens": num_tokens, "depth": depth, "init_text": init_text, "position": position}

    def init(key: jax.Array, clip: Clip, classes: Classes | None) -> Prompt:
        check_depth(depth, {"text": clip.config.text.layers})
        context_key, deep_key = jax.random.split(key)
        return text_init(context_key, deep_key, clip, classes, ("num_tokens", num_tokens), depth, init_text)

    def apply(prompt: Prompt, clip: Clip, classes: Classes, images: jax.Array) -> Outputs:
        check_names(classes)
        features = frozen_image_features(clip, images)
        text = text_prompt(prompt, clip, ("num_tokens", num_tokens), init_text, position)
        return make_outputs(clip, features, encode_classes(clip, classes, text))

    changes = frozenset({"text"})
    return Tuner("text_deep", FrozenDict(settings), init, apply, needs_pixels=False, needs_names=True, changes=changes)


def text_init(
    context_key: jax.Array,
    deep_key: jax.Array,
    clip: Clip,
    classes: Classes | None,
    count: tuple[str, int | None],
    depth: int,
    init_text: str | None,
) -> Prompt:
    """Contexts of the first `depth` text layers, that of layer 0 on its own; `count` is a setting and its value."""
    name, number = count
    if init_text is None:
        words = context = random_vectors(context_key, number, clip.config.text.width)
    else:
        words = word_vectors(clip, init_text, number, name, spare=True)
        context = words[:number]
    check_room(clip, words, classes)
    deep = {"deep": random_vectors(deep_key, depth - 1, *context.shape)} if depth > 1 else {}
    return {"context": context} | deep


def text_prompt(
    prompt: Prompt, clip: Clip, count: tuple[str, int | None], init_text: str | None, position: str
) -> TextPrompt:
    """What `text_init` made, as the forward pass takes it: words that are not learned stand behind those that are."""
    name, number = count
    context = prompt["context"]
    if init_text is not None and number is not None:
        frozen = word_vectors(clip, init_text, number, name, spare=True)[number:]
        context = jnp.concatenate([context, frozen.astype(context.dtype)])
    return TextPrompt(context, prompt.get("deep"), class_position=position)
