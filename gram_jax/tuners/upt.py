"""UPT: text and visual prompts attend to each other before they are used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from gram_jax.clip import Classes, Clip, TextPrompt, VisualPrompt, encode_image
from gram_jax.clip.modules import Block
from gram_jax.clip.prompts import CLASS_POSITIONS, PLACEMENTS
from gram_jax.clip.validation import require_visual_prompts
from gram_jax.errors import require_int, require_known
from gram_jax.tuners.base import (
    Outputs,
    Prompt,
    Tuner,
    check_depth,
    check_room,
    make_outputs,
    random_vectors,
    text_features,
)
from gram_jax.tuners.networks import NORM_EPS, dense, dense_init, norm_init, uniform

_GROWTH = 4  # hidden units of the block's perceptron, in widths


def upt(
    num_text: int = 4,
    num_visual: int = 4,
    depth: int = 12,
    width: int = 128,
    position: str = "middle",
    placement: str = "after_class",
) -> Tuner:
    """Returns the tuner of unified prompt tuning: one small transformer layer mixes the text and the visual prompts.

    With n text vectors A, m visual vectors V_l for each of the first D layers, and dense layers down_T, down_V to the
    small width and up_T, up_V back,

        U  = [down_T(A) ; down_V(V_0) ; ... ; down_V(V_{D-1})]          n + D m rows
        U' = U + attention(norm_1(U)),    U^ = U' + mlp(norm_2(U'))     one head, no mask
        [A^ ; V^_0 ; ...] = U^,    text prompt = up_T(A^),    visual prompt of layer l = up_V(V^_l).

    No path skips the dense layers: the initialization is no text, and far from zero-shot. The text prompt is in the
    first layer only; visual layer l < D reads [c, up_V(V^_l), patches].

    The prompt is `{"context": [n, text width], "tokens": [depth, m, vision width], "down": {"text", "visual"}, "block":
    {"norm_1", "attention", "norm_2", "mlp"}, "up": {"text", "visual"}}`. A is initialized from N(0, 0.02^2), V from
    U(-b, b) with b^2 = 6 / (3 p^2 + vision width) for patches of p pixels, the layers like PyTorch's.

    Args:
      num_text: n.
      num_visual: m.
      depth: D, the number of vision layers with tokens of their own, the first one included.
      width: width of the small layer.
      position: the place of the class name: "end" (after the context), "middle" or "front".
      placement: the place of the visual tokens; see `VisualPrompt`.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(vision_layers=3), upt(num_visual=2, depth=3, width=8)
      >>> prompt = tuner.init(jax.random.key(0), clip, None)
      >>> prompt["tokens"].shape == (3, 2, clip.config.vision.width)
      True

    Reference:
      "Unified Vision and Language Prompt Learning", section 3; the layer, its projections and its settings as in the
      public code of "Multitask Vision-Language Prompt Tuning", whose authors build on it. There, the layer gets
      [1, rows, width] but attends along the first axis, so that no row sees another; here they do, as in the paper.
    """
    require_known("position", position, CLASS_POSITIONS)
    require_known("placement", placement, PLACEMENTS)
    sizes = {"num_text": num_text, "num_visual": num_visual, "depth": depth, "width": width}
    for name, value in sizes.items():
        require_int(name, value)
    settings: Mapping[str, Any] = FrozenDict({**sizes, "position": position, "placement": placement})
    block = Block(heads=1, mlp_width=_GROWTH * width, activation="quick_gelu", norm_eps=NORM_EPS)

    def init(key: jax.Array, clip: Clip, classes: Classes | None) -> Prompt:
        check_depth(depth, clip, "vision")
        vision = require_visual_prompts(clip.config.vision)
        sides = (("text", clip.config.text.width), ("visual", vision.width))
        context_key, tokens_key, block_key, *dense_keys = jax.random.split(key, 7)
        context = random_vectors(context_key, num_text, clip.config.text.width)
        check_room(clip, context, classes)
        bound = math.sqrt(6 / (3 * vision.patch_size**2 + vision.width))
        return {
            "context": context,
            "tokens": uniform(tokens_key, bound, depth, num_visual, vision.width),
            "down": {
                side: dense_init(key, wide, width) for (side, wide), key in zip(sides, dense_keys[:2], strict=True)
            },
            "block": _block_init(block_key, width),
            "up": {side: dense_init(key, width, wide) for (side, wide), key in zip(sides, dense_keys[2:], strict=True)},
        }

    def apply(prompt: Prompt, clip: Clip, classes: Classes, images: jax.Array) -> Outputs:
        down, up = prompt["down"], prompt["up"]
        rows = [dense(down["text"], prompt["context"]), dense(down["visual"], prompt["tokens"]).reshape(-1, width)]
        with jax.default_matmul_precision("highest"):  # prompts are computed in full precision on every device
            mixed, _ = block.apply({"params": prompt["block"]}, jnp.concatenate(rows))
        context = dense(up["text"], mixed[:num_text])
        tokens = dense(up["visual"], mixed[num_text:]).reshape(prompt["tokens"].shape)
        visual = VisualPrompt(tokens[0], tokens[1:] if depth > 1 else None, placement=placement)
        texts = text_features(clip, classes, TextPrompt(context, class_position=position))
        return make_outputs(clip, encode_image(clip, images, visual), texts)

    return Tuner("upt", settings, init, apply, needs_pixels=True, needs_names=True)


def _block_init(key: jax.Array, width: int) -> Prompt:
    """Returns a layer of CLIP's transformers as PyTorch initializes it."""
    *attention_keys, up_key, down_key = jax.random.split(key, 6)
    # In PyTorch, queries, keys and values are one matrix [width, 3 width], drawn by Glorot's rule.
    bound = math.sqrt(6 / (width + 3 * width))
    bounds = {"query": bound, "key": bound, "value": bound, "out": width**-0.5}
    attention = {
        name: {"kernel": uniform(own, bounds[name], width, width), "bias": jnp.zeros(width, jnp.float32)}
        for name, own in zip(bounds, attention_keys, strict=True)
    }
    return {
        "norm_1": norm_init(width),
        "attention": attention,
        "norm_2": norm_init(width),
        "mlp": {"up": dense_init(up_key, width, _GROWTH * width), "down": dense_init(down_key, _GROWTH * width, width)},
    }
