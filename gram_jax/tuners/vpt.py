"""VPT: learned tokens among the patches."""

from __future__ import annotations

import jax
from flax.core import FrozenDict

from gram_jax.clip import Classes, Clip, VisualPrompt, encode_image
from gram_jax.clip.prompts import PLACEMENTS
from gram_jax.errors import require_int, require_known
from gram_jax.tuners.base import (
    IMAGE,
    Outputs,
    Prompt,
    Tuner,
    check_depth,
    frozen_text_features,
    make_outputs,
    random_vectors,
)


def vpt(num_tokens: int = 8, depth: int = 1, placement: str = "before_norm") -> Tuner:
    """Returns the tuner of visual prompt tuning: free tokens join the patches of every image.

    With tokens P_0, ..., P_{D-1} of n vectors each, layer l < D of the vision transformer reads [c, patches, P_l];
    later layers read the outputs at the places of P_{D-1}. Depth 1 is VPT-shallow, more is VPT-deep.

    The text side is frozen, under the template of the classes: `classes` may be text features. The prompt is
    `{"tokens": [n, width]}`, with `"deep": [depth - 1, n, width]` if it is deep; it is initialized from N(0, 0.02^2).

    Args:
      num_tokens: n.
      depth: D, the number of layers with tokens of their own, the first one included.
      placement: "before_norm" (MaPLe, PromptSRC), "after_norm" (DPT) or "after_class" (UPT); see `VisualPrompt`.

    Reference:
      "Visual Prompt Tuning", section 3.2, equations 4 to 7; for CLIP as in the public code of "MaPLe: Multi-modal
      Prompt Learning".
    """
    require_known("placement", placement, PLACEMENTS)
    require_int("num_tokens", num_tokens)
    require_int("depth", depth)
    settings = {"num_tokens": num_tokens, "depth": depth, "placement": placement}

    def init(key: jax.Array, clip: Clip, classes: Classes | jax.Array | None) -> Prompt:
        return visual_init(key, clip, num_tokens, depth)

    def apply(prompt: Prompt, clip: Clip, classes: Classes | jax.Array, images: jax.Array) -> Outputs:
        texts = frozen_text_features(clip, classes)
        return make_outputs(clip, encode_image(clip, images, visual_prompt(prompt, placement)), texts)

    return Tuner("vpt", FrozenDict(settings), init, apply, needs_pixels=True, needs_names=False, changes=IMAGE)


def visual_init(key: jax.Array, clip: Clip, num_tokens: int, depth: int) -> Prompt:
    """Returns random visual tokens for the first `depth` layers, those of layer 0 apart."""
    check_depth(depth, clip, "vision")
    drawn = random_vectors(key, depth, num_tokens, clip.config.vision.width)
    return {"tokens": drawn[0]} | ({"deep": drawn[1:]} if depth > 1 else {})


def visual_prompt(prompt: Prompt, placement: str) -> VisualPrompt:
    """Returns the prompt of `visual_init` for the forward pass."""
    return VisualPrompt(prompt["tokens"], prompt.get("deep"), placement=placement)
