"""VPT as extra keys and values: learned tokens that the patches attend to, and that never move on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from gram_jax.clip import Classes, Clip, Slots, encode_image
from gram_jax.clip.validation import require_visual_prompts
from gram_jax.errors import require_int
from gram_jax.tuners.base import IMAGE, Outputs, Prompt, Tuner, check_depth, frozen_text_features, make_outputs


def vpt_kv(num_tokens: int = 4, depth: int | None = None, first: int = 0) -> Tuner:
    """Returns the tuner of visual prompts that are keys and values only.

    In layer l, first <= l < first + D, the tokens x attend to themselves and to the prompt P_l:

        attention(Q, K, V) with Q = W_q n(x),  K = W_k n([x; P_l]),  V = W_v n([x; P_l])

    P_l passes the layer's first norm n, has no query and is dropped after attention. The text side is frozen, under the
    template of the classes: `classes` may be text features. The prompt is `{"prompts": [D, num_tokens, width]}`; it is
    initialized from U(-1, 1).

    Args:
      num_tokens: the tokens of a layer.
      depth: D, the number of layers with tokens; None: all from `first`.
      first: the first layer with tokens, from 0.

    Reference:
      "Visual Prompt Tuning in Null Space for Continual Learning", section 3; its public code has 4 tokens in layers 0
      to 3 of CLIP.
    """
    require_int("num_tokens", num_tokens)
    require_int("first", first, 0)
    if depth is not None:
        require_int("depth", depth)
    settings = {"num_tokens": num_tokens, "depth": depth, "first": first}

    def init(key: jax.Array, clip: Clip, classes: Classes | jax.Array | None) -> Prompt:
        vision = require_visual_prompts(clip.config.vision)
        check_depth(first + (depth or 1), clip, "vision", setting="first + depth")
        shape = vision.layers - first if depth is None else depth, num_tokens, vision.width
        return {"prompts": jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0)}

    def apply(prompt: Prompt, clip: Clip, classes: Classes | jax.Array, images: jax.Array) -> Outputs:
        texts = frozen_text_features(clip, classes)
        return make_outputs(clip, encode_image(clip, images, slots=kv_slots(prompt, first)), texts)

    return Tuner("vpt_kv", FrozenDict(settings), init, apply, needs_pixels=True, needs_names=False, changes=IMAGE)


def kv_slots(prompt: Prompt, first: int = 0) -> Slots:
    """Returns the slots of a prompt of `vpt_kv`, for the forward passes of the clip.

    Args:
      prompt, first: the prompt, and the first layer with tokens.
    """
    return Slots(tuple(range(first, first + len(prompt["prompts"]))), prompts=prompt["prompts"])
