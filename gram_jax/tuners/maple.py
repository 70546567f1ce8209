"""MaPLe: deep prompts of the text transformer, and linear maps of them in the vision transformer."""

from __future__ import annotations

import jax
from flax.core import FrozenDict

from gram_jax.clip import Classes, Clip, VisualPrompt, encode_image
from gram_jax.clip.prompts import PLACEMENTS
from gram_jax.errors import require_int, require_known
from gram_jax.tuners.base import Outputs, Prompt, Tuner, check_depth, make_outputs, text_features, words_setting
from gram_jax.tuners.networks import dense, dense_init
from gram_jax.tuners.text_deep import text_init, text_prompt


def maple(
    num_tokens: int | None = 2, depth: int = 9, init_text: str | None = "a photo of a", placement: str = "before_norm"
) -> Tuner:
    """Returns the tuner of multi-modal prompt learning: the visual prompts are linear functions of the text prompts.

    Layer l < D of the text transformer reads [SOS] V_l name . [EOS], layer l < D of the vision transformer reads
    [c, patches, F_l(V_l)], with

        F_l(v) = v W_l + b_l                               W_l: text width -> vision width;

    later layers read the outputs at the places of V_{D-1} and F_{D-1}(V_{D-1}). With the published n = 2 and "a photo
    of a", the words "of a" remain, frozen, between V_l and the name.

    The prompt is `{"text": {"context": [n, text width], "deep": [depth - 1, n, text width]}, "coupling": {"first":
    {"kernel", "bias"}, "deep": {"kernel": [depth - 1, ...], "bias": [depth - 1, ...]}}}`, without `"deep"` at depth 1.
    V_1, ... are initialized from N(0, 0.02^2), F_0 and F_1 like PyTorch's dense layers, and F_2, ... like F_1.

    Args:
      num_tokens: n, for text and vision. None: the number of tokens of `init_text`, or 4 without it.
      depth: D, the number of layers with a prompt of their own, the first one included; 1 is the shallow MaPLe.
      init_text: words whose first n embeddings initialize V_0; the rest follow V_l, frozen. None: N(0, 0.02^2).
      placement: the place of the visual tokens; see `VisualPrompt`.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(), maple(depth=3)
      >>> prompt = tuner.init(jax.random.key(0), clip, None)
      >>> prompt["coupling"]["deep"]["kernel"].shape == (2, clip.config.text.width, clip.config.vision.width)
      True

    Reference:
      "MaPLe: Multi-modal Prompt Learning", section 3.2; initialization and frozen words as in its public code.
    """
    require_known("placement", placement, PLACEMENTS)
    words = words_setting("num_tokens", num_tokens, init_text)
    require_int("depth", depth)
    settings = {"num_tokens": words.count, "depth": depth, "init_text": init_text, "placement": placement}

    def init(key: jax.Array, clip: Clip, classes: Classes | None) -> Prompt:
        check_depth(depth, clip, "text", "vision")
        context_key, text_key, first_key, deep_key = jax.random.split(key, 4)
        widths = clip.config.text.width, clip.config.vision.width
        coupling = {"first": dense_init(first_key, *widths)}
        if depth > 1:
            # One draw for all of them: the public code copies one layer.
            layer = dense_init(deep_key, *widths)
            coupling["deep"] = jax.tree.map(lambda leaf: leaf[None].repeat(depth - 1, axis=0), layer)
        return {"text": text_init(words, context_key, text_key, clip, classes, depth), "coupling": coupling}

    def apply(prompt: Prompt, clip: Clip, classes: Classes, images: jax.Array) -> Outputs:
        text, coupling = prompt["text"], prompt["coupling"]
        texts = text_features(clip, classes, text_prompt(words, text, clip, "end"))
        tokens = dense(coupling["first"], text["context"])
        deep = jax.vmap(dense)(coupling["deep"], text["deep"]) if "deep" in text else None
        return make_outputs(clip, encode_image(clip, images, VisualPrompt(tokens, deep, placement=placement)), texts)

    return Tuner("maple", FrozenDict(settings), init, apply, needs_pixels=True, needs_names=True)
