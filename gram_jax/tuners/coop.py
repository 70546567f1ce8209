"""CoOp: a learned context around the class names."""

from __future__ import annotations

import jax
from flax.core import FrozenDict

from gram_jax.clip import Classes, Clip, TextPrompt
from gram_jax.clip.prompts import CLASS_POSITIONS
from gram_jax.errors import require_bool, require_known
from gram_jax.tuners.base import (
    TEXT,
    Outputs,
    Prompt,
    Tuner,
    check_names,
    check_room,
    context_vectors,
    frozen_image_features,
    make_outputs,
    text_features,
    words_setting,
)


def coop(
    num_tokens: int | None = None, init_text: str | None = None, position: str = "end", class_specific: bool = False
) -> Tuner:
    """Returns the tuner of context optimization: the words around a class name become free vectors.

    With context v_1, ..., v_n and E the frozen token embedding,

        t_c = text([SOS] v_1 ... v_n E(name_c) . [EOS]),    logits[b, c] = exp(logit_scale) * <image(x_b), t_c>.

    The image side is frozen: `images` may be image features. The prompt is `{"context": [n, width]}`, or
    `{"context": [classes, n, width]}` if it is per class.

    Args:
      num_tokens: n. None: the number of tokens of `init_text`, or 4 without it.
      init_text: words whose token embeddings initialize the context, which is then exactly the hand-crafted template
        "WORDS NAME.". None: N(0, 0.02^2).
      position: the place of the class name: "end" (after the context), "middle" or "front".
      class_specific: one context per class. Such a prompt belongs to one class list.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(), coop(init_text="a photo of a")
      >>> prompt = tuner.init(jax.random.key(0), clip, None)
      >>> prompt["context"].shape == (4, clip.config.text.width)
      True

    Reference:
      "Learning to Prompt for Vision-Language Models", section 3.2, equations 2 to 4.
    """
    require_known("position", position, CLASS_POSITIONS)
    require_bool("class_specific", class_specific)
    words = words_setting("num_tokens", num_tokens, init_text)
    context = {"num_tokens": words.count, "init_text": init_text}
    settings = {**context, "position": position, "class_specific": class_specific}

    def init(key: jax.Array, clip: Clip, classes: Classes | None) -> Prompt:
        axes = [len(check_names(classes).tail_ids)] if class_specific else []
        context = context_vectors(words, key, clip, *axes)
        check_room(clip, context, classes)
        return {"context": context}

    def apply(prompt: Prompt, clip: Clip, classes: Classes, images: jax.Array) -> Outputs:
        texts = text_features(clip, classes, TextPrompt(prompt["context"], class_position=position))
        return make_outputs(clip, frozen_image_features(clip, images), texts)

    return Tuner("coop", FrozenDict(settings), init, apply, needs_pixels=False, needs_names=True, changes=TEXT)
