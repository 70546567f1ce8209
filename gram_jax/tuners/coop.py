"""CoOp: a learned context around the class names."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from gram_jax.clip import Classes, Clip, TextPrompt, encode_classes
from gram_jax.clip.prompts import CLASS_POSITIONS
from gram_jax.errors import InputError, require_known
from gram_jax.tuners.base import (
    Outputs,
    Prompt,
    Tuner,
    check_names,
    check_room,
    check_words,
    frozen_image_features,
    make_outputs,
    random_vectors,
    word_vectors,
)


def coop(
    num_tokens: int | None = None,
    init_text: str | None = None,
    position: str = "end",
    class_specific: bool = False,
) -> Tuner:
    """Context optimization: the words around a class name become free vectors.

    With context v_1, ..., v_n and E the frozen token embedding,

        t_c = text([SOS] v_1 ... v_n E(name_c) . [EOS]),    logits[b, c] = exp(logit_scale) * <image(x_b), t_c>.

    The image side is untouched: `images` may be frozen image features. The prompt is `{"context": [n, width]}`, or
    `{"context": [classes, n, width]}` if it is per class.

    Args:
      num_tokens: n. None takes as many as `init_text` has tokens for the clip, or 4 without it.
      init_text: words whose token embeddings the context starts as; then the start is exactly the hand-crafted
        template "WORDS NAME.". None: N(0, 0.02^2).
      position: where the name stands: "end" (behind the context), "middle" or "front".
      class_specific: a context for each class. Such a prompt belongs to one class list; a shared one to none.

    Returns:
      The tuner.

    Raises:
      InputError: a setting has an impossible value. `init` raises it if the words are not `num_tokens` tokens, or
        context and class names do not fit the clip's context length.

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
    if not isinstance(class_specific, bool):
        raise InputError(f"class_specific must be True or False, found {class_specific!r}.")
    num_tokens = check_words("num_tokens", num_tokens, init_text)
    settings = {
        "num_tokens": num_tokens,
        "init_text": init_text,
        "position": position,
        "class_specific": class_specific,
    }

    def init(key: jax.Array, clip: Clip, classes: Classes | None) -> Prompt:
        count = ()
        if class_specific:
            check_names(classes)
            count = (len(classes.tail_ids),)
        if init_text is None:
            context = random_vectors(key, *count, num_tokens, clip.config.text.width)
        else:
            words = word_vectors(clip, init_text, num_tokens, "num_tokens")
            context = jnp.broadcast_to(words, (*count, *words.shape))
        check_room(clip, context, classes)
        return {"context": context}

    def apply(prompt: Prompt, clip: Clip, classes: Classes, images: jax.Array) -> Outputs:
        check_names(classes)
        features = frozen_image_features(clip, images)
        texts = encode_classes(clip, classes, TextPrompt(prompt["context"], class_position=position))
        return make_outputs(clip, features, texts)

    changes = frozenset({"text"})
    return Tuner("coop", FrozenDict(settings), init, apply, needs_pixels=False, needs_names=True, changes=changes)
