"""IVLP: independent deep prompts of the text and the vision transformer."""

from __future__ import annotations

import jax
from flax.core import FrozenDict

from gram_jax.clip import Classes, Clip, encode_classes, encode_image
from gram_jax.clip.prompts import CLASS_POSITIONS, PLACEMENTS
from gram_jax.errors import require_int, require_known
from gram_jax.tuners.base import (
    Outputs,
    Prompt,
    Tuner,
    check_depth,
    check_names,
    check_words,
    make_outputs,
)
from gram_jax.tuners.text_deep import text_init, text_prompt
from gram_jax.tuners.vpt import visual_init, visual_prompt


def ivlp(
    num_text: int | None = None,
    num_visual: int = 4,
    depth: int = 9,
    init_text: str | None = "a photo of a",
    position: str = "end",
    placement: str = "before_norm",
) -> Tuner:
    """Independent vision-language prompting: both transformers get deep prompts that share nothing.

    Layer l < D of the text transformer reads [SOS] V_l name . [EOS], layer l < D of the vision transformer [c, patches,
    P_l]; later layers read what has become of V_{D-1} and P_{D-1}. This is the tuner under UNIGRAM and PromptSRC, whose
    settings are the defaults; MaPLe's are `num_text=2, num_visual=2, depth=12`.

    The prompt is `{"text": {"context": [n, width], "deep": [depth - 1, n, width]}, "visual": {"tokens": [m, width],
    "deep": [depth - 1, m, width]}}`, without `"deep"` at depth 1. All but V_0 starts at N(0, 0.02^2).

    Args:
      num_text: n. None takes as many as `init_text` has tokens for the clip, or 4 without it.
      num_visual: m.
      depth: D, the number of layers with a prompt of their own, the first one included.
      init_text: words whose first n token embeddings V_0 starts as; further ones stay, frozen, behind V_l. None:
        N(0, 0.02^2).
      position: where the name stands: "end" (behind the context), "middle" or "front".
      placement: where the visual tokens stand; see `VisualPrompt`.

    Returns:
      The tuner.

    Raises:
      InputError: a setting has an impossible value. `init` raises it if a transformer of the clip has fewer layers than
        `depth`, the words are fewer than `num_text` tokens, or context and class names do not fit the context length.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(), ivlp(num_visual=2, depth=3)
      >>> prompt = tuner.init(jax.random.key(0), clip, None)
      >>> prompt["text"]["deep"].shape == (2, 4, clip.config.text.width)
      True

    Reference:
      "MaPLe: Multi-modal Prompt Learning", section 4.2 ("independent V-L prompting"), and "Self-regulating Prompts:
      Foundational Model Adaptation without Forgetting" (PromptSRC), section 3.1, with the words that stay frozen as in
      the public code of the former.
    """
    require_known("position", position, CLASS_POSITIONS)
    require_known("placement", placement, PLACEMENTS)
    num_text = check_words("num_text", num_text, init_text)
    require_int("num_visual", num_visual)
    require_int("depth", depth)
    settings = {
        "num_text": num_text,
        "num_visual": num_visual,
        "depth": depth,
        "init_text": init_text,
        "position": position,
        "placement": placement,
    }

    def init(key: jax.Array, clip: Clip, classes: Classes | None) -> Prompt:
        check_depth(depth, {"text": clip.config.text.layers, "vision": clip.config.vision.layers})
        context_key, text_key, visual_key = jax.random.split(key, 3)
        text = text_init(context_key, text_key, clip, classes, ("num_text", num_text), depth, init_text)
        return {"text": text, "visual": visual_init(visual_key, clip, num_visual, depth)}

    def apply(prompt: Prompt, clip: Clip, classes: Classes, images: jax.Array) -> Outputs:
        check_names(classes)
        text = text_prompt(prompt["text"], clip, ("num_text", num_text), init_text, position)
        features = encode_image(clip, images, visual_prompt(prompt["visual"], placement))
        return make_outputs(clip, features, encode_classes(clip, classes, text))

    return Tuner("ivlp", FrozenDict(settings), init, apply, needs_pixels=True, needs_names=True)
