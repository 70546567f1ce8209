"""Deep language prompts: a separate context for each of the first layers of the text transformer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from gram_jax.clip import Classes, Clip, TextPrompt
from gram_jax.clip.prompts import CLASS_POSITIONS
from gram_jax.errors import require_int, require_known
from gram_jax.tuners.base import (
    TEXT,
    Outputs,
    Prompt,
    Tuner,
    Words,
    check_depth,
    check_room,
    context_vectors,
    frozen_image_features,
    make_outputs,
    random_vectors,
    text_features,
    word_vectors,
    words_setting,
)


def text_deep(
    num_tokens: int | None = None, depth: int = 12, init_text: str | None = "a photo of a", position: str = "end"
) -> Tuner:
    """Returns the tuner of deep language prompting: CoOp's context, replaced before each of the next layers.

    Layer l < D of the text transformer reads [SOS] V_l name . [EOS] with n vectors V_l; later layers read the outputs
    at the places of V_{D-1}. Depth 1 is CoOp.

    The image side is frozen: `images` may be image features. The prompt is `{"context": [n, width]}`, with
    `"deep": [depth - 1, n, width]` if it is deep. V_1, ... are initialized from N(0, 0.02^2).

    Args:
      num_tokens: n. None: the number of tokens of `init_text`, or 4 without it.
      depth: D, the number of layers with a context of their own, the first one included.
      init_text: words whose first n embeddings initialize V_0; the rest follow V_l, frozen. None: N(0, 0.02^2).
      position: the place of the class name: "end" (after the context), "middle" or "front".

    Reference:
      "MaPLe: Multi-modal Prompt Learning", section 4.2 ("deep language prompting"); the defaults are those of its
      public code.
    """
    require_known("position", position, CLASS_POSITIONS)
    require_int("depth", depth)
    words = words_setting("num_tokens", num_tokens, init_text)
    settings = {"num_tokens": words.count, "depth": depth, "init_text": init_text, "position": position}

    def init(key: jax.Array, clip: Clip, classes: Classes | None) -> Prompt:
        context_key, deep_key = jax.random.split(key)
        return text_init(words, context_key, deep_key, clip, classes, depth)

    def apply(prompt: Prompt, clip: Clip, classes: Classes, images: jax.Array) -> Outputs:
        texts = text_features(clip, classes, text_prompt(words, prompt, clip, position))
        return make_outputs(clip, frozen_image_features(clip, images), texts)

    return Tuner("text_deep", FrozenDict(settings), init, apply, needs_pixels=False, needs_names=True, changes=TEXT)


def text_init(
    words: Words, context_key: jax.Array, deep_key: jax.Array, clip: Clip, classes: Classes | None, depth: int
) -> Prompt:
    """Returns the contexts of the first `depth` text layers; the words may have more tokens than the context."""
    check_depth(depth, clip, "text")
    whole = context_vectors(words, context_key, clip, spare=True)
    check_room(clip, whole, classes)
    context = whole[: words.count]
    deep = {"deep": random_vectors(deep_key, depth - 1, *context.shape)} if depth > 1 else {}
    return {"context": context} | deep


def text_prompt(words: Words, prompt: Prompt, clip: Clip, position: str) -> TextPrompt:
    """Returns the prompt of `text_init` for the forward pass: the frozen words follow the learned context."""
    context = prompt["context"]
    if words.text is not None and words.count is not None:
        frozen = word_vectors(words, clip, spare=True)[words.count :]
        context = jnp.concatenate([context, frozen.astype(context.dtype)])
    return TextPrompt(context, prompt.get("deep"), class_position=position)
