"""Troika: texts of pairs, attributes and objects in three branches, each refined by the patches of the image."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from gram_jax.clip import Clip, Slots, encode_patches, logits
from gram_jax.clip.validation import require_visual_prompts
from gram_jax.errors import require_int, require_number
from gram_jax.tuners.attention import block, block_init
from gram_jax.tuners.base import IMAGE, TEXT, Outputs, Prompt, Tuner, context_vectors, words_setting
from gram_jax.tuners.csp import drop, primitives, table_of
from gram_jax.tuners.dfsp import check_heads
from gram_jax.tuners.networks import dense, dense_init, norm, norm_init, uniform
from gram_jax.tuners.pairs import PairClasses, check_pairs, token_features

Array = jax.Array
SIDES = ("attribute", "object")
KINDS = ("pair", *SIDES)
_TINY = 1e-12  # a feature without an active unit remains 0
_ADAPTER = 0.1  # factor of an adapter's output, its second bias included
_TRACTION = 0.1  # initial weight of the refinement


def troika(
    init_text: str = "a photo of", layers: int = 2, heads: int = 8, dropout: float = 0.3, adapter: int = 64
) -> Tuner:
    """Returns the tuner with three branches, cross-modal traction, and adapters in the image transformer.

    Each branch has a context of its own; the tokens of attributes and objects, as in `csp`, are shared:

        pair        [SOS] c_1 ... c_n A_a O_o [EOS]        the image feature f_b
        attribute   [SOS] a_1 ... a_n A_a [EOS]            relu(norm(W_a f_b + b_a))
        object      [SOS] o_1 ... o_n O_o [EOS]            relu(norm(W_o f_b + b_o))

    A stack of transformer blocks, shared by the branches, lets the texts t attend to the patches z_b of the image;
    t' = normalize(t + lambda * (stack(t; z_b) - t)), with a learned vector lambda that starts at 0.1. All logits are
    scaled cosines, and a pair is scored as

        logits[b, (a, o)] = pair logit + softmax(attribute logits)[a] * softmax(object logits)[o].

    In every block of the image transformer, two adapters 0.1 (relu(x W_down + b_down) W_up + b_up) stand beside
    attention and perceptron. W_up and the biases start at 0.

    Differences from the public code: a layer norm for the batch norm and the dropout of the two image networks; no
    dropout in adapters; blocks of the traction that begin as the identity.

    The prompt is `{"contexts": {"pair", "attribute", "object"}, "attributes", "objects", "images": {"attribute",
    "object"}, "blocks", "traction", "adapters": {"attention", "mlp"}}`. `apply` has a fifth argument, `key`, as in
    `csp`.

    Args:
      init_text, dropout: as in `csp`.
      layers: blocks of the traction; 3 on MIT-States and 2 on UT-Zappos and C-GQA are published.
      heads: attention heads, which must divide the clip's `embed_dim`.
      adapter: units of an adapter; 0: none, and the image transformer stays frozen.

    Reference:
      "Troika: Multi-Path Cross-Modal Traction for Compositional Zero-Shot Learning", section 3, and its public code.
    """
    words = words_setting("num_tokens", None, init_text)
    require_int("layers", layers)
    require_int("heads", heads)
    require_int("adapter", adapter, least=0)
    require_number("dropout", dropout, least=0, below=1)
    settings = {"init_text": init_text, "layers": layers, "heads": heads, "dropout": float(dropout), "adapter": adapter}

    def init(key: Array, clip: Clip, classes: PairClasses) -> Prompt:
        check_pairs(classes)
        check_heads(heads, clip)
        context, width = context_vectors(words, key, clip), clip.config.embed_dim
        block_key, adapter_key, *keys = jax.random.split(key, 4)
        images = {
            side: {"dense": dense_init(own, width, width), "norm": norm_init(width)}
            for side, own in zip(SIDES, keys, strict=True)
        }
        return {
            "contexts": dict.fromkeys(KINDS, context),
            **primitives(clip, classes),
            "images": images,
            "blocks": block_init(block_key, width, layers),
            "traction": jnp.full(width, _TRACTION, jnp.float32),
            **({"adapters": _adapters(adapter_key, adapter, clip)} if adapter else {}),
        }

    def apply(prompt: Prompt, clip: Clip, classes: PairClasses, images: Array, key: Array | None = None) -> Outputs:
        return troika_branches(settings, prompt, clip, classes, images, key)[0]

    changes = TEXT | IMAGE if adapter else TEXT
    return Tuner("troika", FrozenDict(settings), init, apply, True, True, changes=changes, needs_pairs=True)


def _adapters(key: Array, units: int, clip: Clip) -> Prompt:
    """Draws the adapters beside attention and perceptron of every block of the image transformer."""
    config = require_visual_prompts(clip.config.vision)

    def one(key: Array) -> dict[str, Array]:
        down = uniform(key, config.width**-0.5, config.layers, config.width, units)
        shapes = {"up": (units, config.width), "down_bias": (units,), "up_bias": (config.width,)}
        return {"down": down} | {
            name: jnp.zeros((config.layers, *shape), jnp.float32) for name, shape in shapes.items()
        }

    return dict(zip(("attention", "mlp"), map(one, jax.random.split(key)), strict=True))


def _slots(prompt: Prompt, clip: Clip) -> Slots | None:
    if "adapters" not in prompt:
        return None
    scaled = {
        place: own | {name: _ADAPTER * own[name] for name in ("up", "up_bias")}
        for place, own in prompt["adapters"].items()
    }
    return Slots(tuple(range(require_visual_prompts(clip.config.vision).layers)), adapters=scaled)


def troika_branches(
    settings: Any, prompt: Prompt, clip: Clip, classes: PairClasses, images: Array, key: Array | None = None
) -> tuple[Outputs, dict[str, Array]]:
    """Returns the outputs, and the logits of the branches: "pair", "attribute" and "object"."""
    check_pairs(classes)
    features, patches = encode_patches(clip, images, slots=_slots(prompt, clip))
    table = table_of(drop(prompt, settings["dropout"], key))
    texts = {kind: token_features(clip, classes, kind, prompt["contexts"][kind], table) for kind in KINDS}
    of_image = {"pair": features}
    for side, own in prompt["images"].items():
        hidden = jax.nn.relu(norm(own["norm"], dense(own["dense"], features)))
        of_image[side] = hidden * jax.lax.rsqrt(jnp.maximum(jnp.sum(hidden**2, -1, keepdims=True), _TINY))
    refined = {kind: _refine(settings["heads"], prompt, own, patches) for kind, own in texts.items()}
    scale = clip.params["logit_scale"]
    branches = {kind: logits(of_image[kind], refined[kind], scale) for kind in KINDS}
    attribute, object_ = (
        jax.nn.softmax(branches[side])[:, parts] for side, parts in zip(SIDES, classes.pair.T, strict=True)
    )
    return Outputs(branches["pair"] + attribute * object_, features, refined["pair"]), branches


def _refine(heads: int, prompt: Prompt, texts: Array, patches: Array) -> Array:
    """Returns texts that have attended to the patches of each image, `[images, classes, embed_dim]`, normalized."""

    def step(x: Array, layer: Any) -> tuple[Array, None]:
        return block(layer, heads, x, patches), None

    begun = jnp.broadcast_to(texts, (len(patches), *texts.shape))
    ended, _ = jax.lax.scan(step, begun, prompt["blocks"])
    moved = texts + prompt["traction"] * (ended - begun)
    return moved / jnp.linalg.norm(moved, axis=-1, keepdims=True)
