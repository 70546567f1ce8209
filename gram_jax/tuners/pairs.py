"""Class lists of attribute-object pairs, as tuners read them, and texts of learned attribute and object tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.clip import Classes, Clip, TextPrompt, embed_tokens, encode_classes
from gram_jax.clip.classes import pack_classes
from gram_jax.clip.tokenizer import class_tokens
from gram_jax.errors import InputError
from gram_jax.summary import short_repr

Array = jax.Array
TEMPLATE = "a photo of {}"
_FIXED = 3  # rows of a small vocabulary before the learned ones: start, end, padding
_END = 1


@flax.struct.dataclass
class PairClasses:
    """A class list of pairs.

    Attributes:
      names: the pairs as ordinary classes, "ATTRIBUTE OBJECT"; tuners of class names read this field.
      attributes, objects: the A attributes and the O objects alone.
      pair: int32 `[P, 2]`, the attribute and the object of each pair.
      learned: texts of learned tokens, see `token_features`: "pair" [P], "attribute" [A] and "object" [O].
    """

    names: Classes
    attributes: Classes
    objects: Classes
    pair: Array
    learned: dict[str, Classes]

    __repr__ = short_repr


def pair_classes(
    clip: Clip, attributes: Sequence[str], objects: Sequence[str], pairs: Any, template: str = TEMPLATE
) -> PairClasses:
    """Returns a class list of pairs as tokens; no full stop follows the names, as published.

    Args:
      clip: the clip, with its tokenizer.
      attributes, objects: all names, also those without a pair.
      pairs: int `[P, 2]`, the attribute and the object of each class.
      template: a text with one "{}" for "ATTRIBUTE OBJECT".

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> found = pair_classes(tiny_clip(), ["red", "small"], ["cat", "dog", "bird"], [[0, 0], [1, 2]])
      >>> found.names.tail_ids.shape[0], found.objects.tail_ids.shape[0], found.pair.tolist()
      (2, 3, [[0, 0], [1, 2]])
    """
    pairs = np.asarray(pairs, np.int32)
    sizes = len(attributes), len(objects)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or np.any(pairs < 0) or np.any(pairs >= sizes):
        raise InputError(f"pairs have the shape {list(pairs.shape)}; expected [pairs, 2] of {sizes[0]} x {sizes[1]}")
    if clip.tokenizer is None:
        raise InputError("this clip has no tokenizer; add one with clip.replace(tokenizer=...)")
    names = [f"{attributes[a]} {objects[o]}" for a, o in pairs]
    tokens = [
        class_tokens(clip.tokenizer, list(each), template, "", allow_duplicates=True)
        for each in (names, attributes, objects)
    ]
    attribute, object_ = np.arange(sizes[0])[:, None], sizes[0] + np.arange(sizes[1])[:, None]
    rows = {"pair": pairs + np.array([0, sizes[0]]), "attribute": attribute, "object": object_}
    learned = {kind: _learned_classes(own) for kind, own in rows.items()}
    return PairClasses(*jax.device_put((*tokens, pairs, learned)))


def _learned_classes(rows: np.ndarray) -> Classes:
    """Returns classes whose tokens are rows `[C, k]` of a table, in the vocabulary of `token_features`."""
    count, length = rows.shape
    tail = np.concatenate([rows + _FIXED, np.full((count, 1), _END)], axis=1)
    full, none = np.full(count, length), np.zeros(count)
    return pack_classes(np.zeros((count, 1)), none, tail, full, full)


def check_pairs(classes: Any) -> PairClasses:
    """Returns a class list of pairs; raises InputError if it is anything else."""
    if not isinstance(classes, PairClasses):
        raise InputError(
            "this tuner learns attributes and objects: classes must come from gram_jax.tuners.pair_classes, not be of "
            f"type {type(classes).__name__}; use experiments.compositional"
        )
    return classes


def name_embeddings(clip: Clip, classes: Classes) -> Array:
    """Returns the mean token embedding of each name, float32 `[classes, width]`."""
    vectors = embed_tokens(clip, classes.tail_ids).astype(jnp.float32)
    inside = jnp.arange(vectors.shape[1]) < classes.name_length[:, None]
    return jnp.sum(vectors * inside[..., None], axis=1) / classes.name_length[:, None]


def token_features(clip: Clip, classes: PairClasses, kind: str, context: Array, table: Array) -> Array:
    """Returns the features `[C, embed_dim]` of texts whose tokens are rows of a table, which is learned.

        t_c = text([SOS] v_1 ... v_n table[r_c1] ... table[r_ck] [EOS])

    The start, end and padding tokens of the clip and the rows of the table are the whole vocabulary of the text
    transformer here. So classes with learned tokens are ordinary classes, which share what they have in common and are
    computed in chunks.

    Args:
      clip: the frozen clip.
      classes: the class list of pairs.
      kind: "pair", an attribute and an object; "attribute" or "object", one of them alone.
      context, table: v, `[n, width]`; and the rows of all attributes, then of all objects, `[A + O, width]`.
    """
    text, params, names = clip.config.text, clip.params["text"], classes.names
    end = names.tail_ids[0, names.tail_eot[0]]
    special = jnp.stack([names.token_ids[0, 0], end, jnp.asarray(text.pad_token_id or 0, names.tail_ids.dtype)])
    fixed = embed_tokens(clip, special)
    vocabulary = jnp.concatenate([fixed, table.astype(fixed.dtype)])
    small = dataclasses.replace(
        text, vocab_size=_FIXED + len(table), bos_token_id=0, eos_token_id=_END, pad_token_id=_END + 1
    )
    small_clip = dataclasses.replace(
        clip,
        params=clip.params | {"text": params | {"token_embedding": vocabulary}},
        config=dataclasses.replace(clip.config, text=small),
    )
    return encode_classes(small_clip, classes.learned[kind], TextPrompt(context))


def marginal(logits: Array, parts: Array, count: int) -> Array:
    """Returns log of the sum of exp(logits) over the classes of each part, `[images, count]`; -1e9 without a class.

    Args:
      logits: `[images, P]`.
      parts: int `[P]`, the part of each class, such as its attribute.
      count: the number of parts.

    Example:
      >>> sums = marginal(jnp.log(jnp.array([[1.0, 2.0, 6.0]])), jnp.array([0, 1, 1]), 2)
      >>> [round(value, 3) for value in sums[0].tolist()]
      [0.0, 2.079]
    """
    columns = logits.T
    top = jax.lax.stop_gradient(jax.ops.segment_max(columns, parts, count))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    total = jax.ops.segment_sum(jnp.exp(columns - top[parts]), parts, count)
    exists = total > 0
    return jnp.where(exists, jnp.log(jnp.where(exists, total, 1.0)) + top, -1e9).T


def mean_over(logits: Array, parts: Array, count: int) -> Array:
    """Returns the mean of the logits over the classes of each part, `[images, count]`; -1e9 without a class."""
    total = jax.ops.segment_sum(logits.T, parts, count)
    number = jax.ops.segment_sum(jnp.ones(len(parts)), parts, count)[:, None]
    return jnp.where(number > 0, total / jnp.maximum(number, 1), -1e9).T
