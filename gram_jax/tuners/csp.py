"""CSP: learned tokens of attributes and objects, which make up the texts of pairs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from gram_jax.clip import Clip
from gram_jax.errors import require_bool, require_number
from gram_jax.tuners.base import (
    TEXT,
    Outputs,
    Prompt,
    Tuner,
    context_vectors,
    frozen_image_features,
    make_outputs,
    words_setting,
)
from gram_jax.tuners.pairs import PairClasses, check_pairs, name_embeddings, token_features

Array = jax.Array


def csp(init_text: str = "a photo of", learn_context: bool = False, dropout: float = 0.3) -> Tuner:
    """Returns the tuner of compositional soft prompting: one learned token for each attribute and each object.

    With the words v_1, ..., v_n of the context and tables A `[attributes, width]` and O `[objects, width]`,

        t_(a,o) = text([SOS] v_1 ... v_n A_a O_o [EOS]),    logits[b, p] = exp(logit_scale) * <image(x_b), t_p>.

    Pairs that are not trained on are texts of trained tokens. Classes come from `pair_classes`. The image side is
    frozen: `images` may be image features. The prompt is `{"attributes": A, "objects": O}`, with `learn_context` also
    `{"context": [n, width]}`; it belongs to one list of attributes and objects. A row starts as the mean of the token
    embeddings of its name.

    `apply` has a fifth argument, `key=None`: with a key, entries of both tables are dropped with probability `dropout`
    and the others are divided by 1 - `dropout`. `gram_jax.objectives.pair_loss` passes the key of a batch.

    Args:
      init_text: the words of the context.
      learn_context: whether the context is learned, too, as in DFSP.
      dropout: as described, in [0, 1).

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> from gram_jax.tuners.pairs import pair_classes
      >>> clip, tuner = tiny_clip(), csp()
      >>> classes = pair_classes(clip, ["red", "small"], ["cat", "dog", "bird"], [[0, 0], [1, 2]])
      >>> prompt = tuner.init(jax.random.key(0), clip, classes)
      >>> tuner.apply(prompt, clip, classes, jnp.ones((5, 16)) / 4).logits.shape
      (5, 2)

    Reference:
      "Learning to Compose Soft Prompts for Compositional Zero-Shot Learning", section 4, and its public code.
    """
    words = words_setting("num_tokens", None, init_text)
    require_bool("learn_context", learn_context)
    require_number("dropout", dropout, least=0, below=1)
    settings = {"init_text": init_text, "learn_context": learn_context, "dropout": float(dropout)}

    def init(key: Array, clip: Clip, classes: PairClasses) -> Prompt:
        check_pairs(classes)
        context = {"context": context_vectors(words, key, clip)} if learn_context else {}
        return context | primitives(clip, classes)

    def apply(prompt: Prompt, clip: Clip, classes: PairClasses, images: Array, key: Array | None = None) -> Outputs:
        check_pairs(classes)
        context = prompt["context"] if learn_context else context_vectors(words, jax.random.key(0), clip)
        texts = token_features(clip, classes, "pair", context, table_of(drop(prompt, dropout, key)))
        return make_outputs(clip, frozen_image_features(clip, images), texts)

    return Tuner("csp", FrozenDict(settings), init, apply, False, True, changes=TEXT, needs_pairs=True)


def primitives(clip: Clip, classes: PairClasses) -> Prompt:
    """Returns the initial tables of attributes and objects."""
    return {side: name_embeddings(clip, getattr(classes, side)) for side in ("attributes", "objects")}


def drop(prompt: Prompt, rate: float, key: Array | None) -> Prompt:
    """Returns a prompt whose tables have entries dropped; itself without a key."""
    if key is None or not rate:
        return prompt
    tables = {}
    for side, own in zip(("attributes", "objects"), jax.random.split(key), strict=True):
        kept = jax.random.bernoulli(own, 1 - rate, prompt[side].shape)
        tables[side] = jnp.where(kept, prompt[side] / (1 - rate), 0.0)
    return prompt | tables


def table_of(prompt: Prompt) -> Array:
    """Returns the rows of attributes, then of objects, `[A + O, width]`."""
    return jnp.concatenate([prompt["attributes"], prompt["objects"]])
