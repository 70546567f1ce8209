"""DFSP: learned tokens of pairs, and image features that attend to the decomposed texts of attributes and objects."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from gram_jax.clip import Clip, encode_patches, logits
from gram_jax.errors import InputError, require_int, require_number
from gram_jax.tuners.attention import block, block_init
from gram_jax.tuners.base import Outputs, Prompt, Tuner, context_vectors, words_setting
from gram_jax.tuners.csp import drop, primitives, table_of
from gram_jax.tuners.pairs import PairClasses, check_pairs, mean_over, token_features

Array = jax.Array
BLOCKS = ("cross", "within")


def dfsp(init_text: str = "a photo of", mix: float = 0.2, heads: int = 8, dropout: float = 0.3) -> Tuner:
    """Returns the tuner of decomposed fusion with soft prompts, from text to image.

    The context and the tokens of attributes and objects are learned, as in `csp`. With t_p the text of pair p, t_a and
    t_o its means over the pairs of an attribute and of an object, f_b the image feature and z_b1, z_b2, ... the patches
    in the joint space,

        X_b  = within( cross( [f_b, z_b1, z_b2, ...]; [t_a..., t_o...] ) ),
        g_b  = normalize( (1 - mix) f_b + mix X_b[0] ),    logits[b, p] = exp(logit_scale) * <g_b, t_p>,

    where `cross` and `within` are transformer blocks; in the second one, the tokens of the image attend to themselves.

    The public code fuses the patches before the last norm and projection and drops 30 % of the activations of a block;
    here they are fused in the joint space, without dropout, and both blocks begin as the identity. Its other
    directions, image to text and both, are not built.

    The prompt is `{"context", "attributes", "objects", "cross", "within"}`. `apply` has a fifth argument, `key`, as in
    `csp`.

    Args:
      init_text, dropout: as in `csp`.
      mix: the share of the fused feature, in [0, 1].
      heads: attention heads, which must divide the clip's `embed_dim`.

    Reference:
      "Decomposed Soft Prompt Guided Fusion Enhancing for Compositional Zero-Shot Learning", section 3, and its code.
    """
    words = words_setting("num_tokens", None, init_text)
    require_number("mix", mix, least=0)
    require_number("dropout", dropout, least=0, below=1)
    require_int("heads", heads)
    settings = {"init_text": init_text, "mix": float(mix), "heads": heads, "dropout": float(dropout)}

    def init(key: Array, clip: Clip, classes: PairClasses) -> Prompt:
        check_pairs(classes)
        check_heads(heads, clip)
        blocks = dict(zip(BLOCKS, jax.random.split(key, 2), strict=True))
        own = {name: block_init(own, clip.config.embed_dim) for name, own in blocks.items()}
        return {"context": context_vectors(words, key, clip)} | primitives(clip, classes) | own

    def apply(prompt: Prompt, clip: Clip, classes: PairClasses, images: Array, key: Array | None = None) -> Outputs:
        return dfsp_branches(settings, prompt, clip, classes, images, key)[0]

    return Tuner("dfsp", FrozenDict(settings), init, apply, True, True, needs_pairs=True)


def check_heads(heads: int, clip: Clip) -> None:
    """Raises InputError unless the heads divide the width of the joint space."""
    if clip.config.embed_dim % heads:
        raise InputError(f"heads={heads}: it must divide embed_dim={clip.config.embed_dim} of this clip")


def dfsp_branches(
    settings: Any, prompt: Prompt, clip: Clip, classes: PairClasses, images: Array, key: Array | None = None
) -> tuple[Outputs, dict[str, Array]]:
    """Returns the outputs, and the logits of all terms of the loss: "pair", "unfused", "attribute" and "object"."""
    check_pairs(classes)
    table = table_of(drop(prompt, settings["dropout"], key))
    texts = token_features(clip, classes, "pair", prompt["context"], table)
    features, patches = encode_patches(clip, images)
    counts = {"attribute": len(prompt["attributes"]), "object": len(prompt["objects"])}
    parts = dict(zip(counts, classes.pair.T, strict=True))
    decomposed = jnp.concatenate([mean_over(texts.T, parts[side], counts[side]).T for side in counts])
    exists = jnp.concatenate([jnp.zeros(counts[side], bool).at[parts[side]].set(True) for side in counts])
    tokens = jnp.concatenate([features[:, None], patches], axis=1)
    tokens = block(prompt["cross"], settings["heads"], tokens, jnp.where(exists[:, None], decomposed, 0.0), exists)
    fused = block(prompt["within"], settings["heads"], tokens, tokens)[:, 0]
    fused = (1 - settings["mix"]) * features + settings["mix"] * fused
    fused = fused / jnp.linalg.norm(fused, axis=-1, keepdims=True)
    scale = clip.params["logit_scale"]
    scores, plain = logits(fused, texts, scale), logits(features, texts, scale)
    branches = {side: mean_over(plain, parts[side], counts[side]) for side in counts}
    return Outputs(scores, fused, texts), branches | {"pair": scores, "unfused": plain}
