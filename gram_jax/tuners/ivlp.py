"""IVLP: independent deep prompts of the text and the vision transformer."""

from __future__ import annotations

import jax
from flax.core import FrozenDict

from gram_jax.clip import Classes, Clip, encode_image
from gram_jax.clip.prompts import CLASS_POSITIONS, PLACEMENTS
from gram_jax.errors import require_int, require_known
from gram_jax.tuners.base import Outputs, Prompt, Tuner, check_depth, make_outputs, text_features, words_setting
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
    """Returns the tuner of independent vision-language prompting: deep prompts in both transformers that share nothing.

    Layer l < D of the text transformer reads [SOS] V_l name . [EOS], layer l < D of the vision transformer reads
    [c, patches, P_l]; later layers read the outputs at the places of V_{D-1} and P_{D-1}. This is the tuner of UNIGRAM
    and PromptSRC, whose settings are the defaults; MaPLe's are `num_text=2, num_visual=2, depth=12`.

    The prompt is `{"text": {"context": [n, width], "deep": [depth - 1, n, width]}, "visual": {"tokens": [m, width],
    "deep": [depth - 1, m, width]}}`, without `"deep"` at depth 1. All but V_0 is initialized from N(0, 0.02^2).

    Args:
      num_text: n. None: the number of tokens of `init_text`, or 4 without it.
      num_visual: m.
      depth: D, the number of layers with a prompt of their own, the first one included.
      init_text: words whose first n embeddings initialize V_0; the rest follow V_l, frozen. None: N(0, 0.02^2).
      position: the place of the class name: "end" (after the context), "middle" or "front".
      placement: the place of the visual tokens; see `VisualPrompt`.

    Reference:
      "MaPLe: Multi-modal Prompt Learning", section 4.2 ("independent V-L prompting"), and "Self-regulating Prompts:
      Foundational Model Adaptation without Forgetting" (PromptSRC), section 3.1. The words that remain frozen are as in
      MaPLe's public code.
    """
    require_known("position", position, CLASS_POSITIONS)
    require_known("placement", placement, PLACEMENTS)
    words = words_setting("num_text", num_text, init_text)
    require_int("num_visual", num_visual)
    require_int("depth", depth)
    sizes = {"num_text": words.count, "num_visual": num_visual, "depth": depth}
    settings = {**sizes, "init_text": init_text, "position": position, "placement": placement}

    def init(key: jax.Array, clip: Clip, classes: Classes | None) -> Prompt:
        check_depth(depth, clip, "text", "vision")
        context_key, text_key, visual_key = jax.random.split(key, 3)
        text = text_init(words, context_key, text_key, clip, classes, depth)
        return {"text": text, "visual": visual_init(visual_key, clip, num_visual, depth)}

    def apply(prompt: Prompt, clip: Clip, classes: Classes, images: jax.Array) -> Outputs:
        texts = text_features(clip, classes, text_prompt(words, prompt["text"], clip, position))
        return make_outputs(clip, encode_image(clip, images, visual_prompt(prompt["visual"], placement)), texts)

    return Tuner("ivlp", FrozenDict(settings), init, apply, needs_pixels=True, needs_names=True)
