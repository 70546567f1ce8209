"""The text transformer, with prompts.

Attention is causal: a token attends to itself and to earlier tokens. Four shortcuts are exact because of this:

* Nothing after the end token is computed, since the feature of a text is read at its end token.
* In the last layer, only end tokens are computed: their queries, their rows of attention and their perceptrons.
* A prefix that all classes share runs once. Under a prompt that precedes the name, class c is the sequence (prefix P,
  tail T_c) with P = [SOS] v_1 ... v_n and T_c = name . [EOS]. The hidden states of P do not depend on T_c. In every
  layer, the keys and values (K_P, V_P) of the prefix are computed once, and a query q of a tail attends to both parts:

      softmax( q [K_P, K_c]^T / sqrt(d) ) [V_P, V_c]

* Tails that begin with the same tokens share the hidden states of these tokens: they form a tree, whose nodes are
  packed into rows (`classes.py`). K_c and V_c are those of a node's ancestors and of the node itself.

If the tokens before or within names differ between classes, the last two do not apply: sequences run whole, several of
them side by side in a row, and a token attends to its own sequence.

Without `TextConfig.causal`, a token attends to all tokens, padding included. Then every sequence is filled with padding
to the context length and has a row of its own, and only the last layer is cut: to the pooled token.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.clip.classes import Classes, Packed
from gram_jax.clip.config import ClipConfig, TextConfig
from gram_jax.clip.modules import (
    apply_norm,
    at_least_float32,
    make_block,
    project,
    run_block,
    run_layers,
    slice_layers,
)
from gram_jax.clip.prompts import TextPrompt
from gram_jax.clip.slots import Slots

Array = jax.Array

_MOST_DEVICES = 16  # that share the rows of a class list


def find_end(config: TextConfig, token_ids: Array) -> Array:
    """Returns the position of the end token in token ids `[..., tokens]`, int32 `[...]`, see `TextConfig.eos_rule`."""
    ends = token_ids if config.eos_rule == "highest" else token_ids == config.eos_token_id
    end = jnp.argmax(ends, axis=-1).astype(jnp.int32)
    if config.causal:
        return end
    # A text that was cut without its end token is read to its last token.
    return jnp.where(jnp.any(ends, axis=-1), end, token_ids.shape[-1] - 1)


def embed(params: Any, token_ids: Array) -> Array:
    """Returns rows of the token embedding, at least float32; NaN for an id outside the vocabulary."""
    return at_least_float32(jnp.take(params["token_embedding"], token_ids, axis=0))


def text_features(
    params: Any, config: ClipConfig, token_ids: Array, end: Array | None = None, slots: Slots | None = None
) -> Array:
    """Returns the features `[..., embed_dim]` of texts without a prompt, read at `end`, int `[...]`; not normalized."""
    end = find_end(config.text, token_ids) if end is None else end
    token_ids = _fill(config.text, token_ids, end, config.text.context_length)
    length = token_ids.shape[-1]
    x = embed(params, token_ids) + params["position_embedding"][:length]
    mask = jnp.tril(jnp.ones((length, length), bool)) if config.text.causal else None
    read = jnp.full_like(end, length - 1) if config.text.pooling == "last" else end
    return _run(params, config, x, mask, read[..., None], slots)[..., 0, :]


def _fill(config: TextConfig, token_ids: Array, end: Array, length: int) -> Array:
    """Returns token ids that have padding after the end token, up to `length`, if the transformer reads padding."""
    if config.causal:
        return token_ids
    more = length - token_ids.shape[-1]
    token_ids = jnp.pad(token_ids, [*[(0, 0)] * (token_ids.ndim - 1), (0, more)])
    return jnp.where(jnp.arange(length) <= end[..., None], token_ids, jnp.int32(config.pad_token_id))


def class_features(
    params: Any,
    config: ClipConfig,
    classes: Classes,
    prompt: TextPrompt,
    share: bool = True,
    slots: Slots | None = None,
) -> Array:
    """Returns the features of classes under a text prompt, computed about `config.class_chunk` classes at a time.

    `params` is the `text` branch of the parameters. With `share`, tokens that classes have in common run only once
    where that is exact (see the module's docstring). The features are `[classes, embed_dim]`, or `[images, classes,
    embed_dim]` if the prompt is per image; they are not normalized.
    """
    # All classes start with the same token, or with none; config.bos_token_id is wrong in files before mid-2023.
    start = embed(params, classes.token_ids[0, : int(config.text.start_token)])  # [first, width]
    own = tuple(name for name, each in zip(("context", "deep"), _per_class(prompt), strict=True) if each)
    if share and config.text.causal and prompt.class_position == "end" and not own:
        function, packed = _branches, classes.tree
    else:
        function, (packed, prompt) = _sequences, _side_by_side(config.text, classes, prompt)
    run = functools.partial(function, params, config, start, slots)
    features = _in_chunks(run, packed, prompt, own, len(classes.tail_ids), config.class_chunk)
    features = features.reshape(*features.shape[:-3], -1, features.shape[-1])  # [(images,) rows * reads, embed_dim]
    return jnp.take(features, packed.place, axis=-2)


def _in_chunks(
    run: Callable[[Packed, TextPrompt], Array],
    packed: Packed,
    prompt: TextPrompt,
    own: tuple[str, ...],
    count: int,
    most: int,
) -> Array:
    """Runs chunks of rows with about `most` of `count` classes in sequence, and recomputes each in the backward pass.

    The result is exact, because rows do not interact. `own` names the prompts that differ between rows. Chunk i holds
    rows i, i + chunks, i + 2 chunks, ..., so that rows that are spread over devices stay spread within each chunk.
    """
    rows = len(packed.ids)
    size = max(1, rows * most // count) if most else rows
    if size >= rows:
        return run(packed, prompt)
    # Rows that devices share are a multiple of their number. So are those of a chunk, or each device would run all.
    unit = min(math.gcd(rows, _MOST_DEVICES), 1 << (size.bit_length() - 1))
    size = unit * math.ceil(rows / (unit * math.ceil(rows / size)))
    chunks = math.ceil(rows / size)

    def split(x: Array, axis: int) -> Array:
        axis %= x.ndim
        filled = jnp.pad(x, [(0, size * chunks - rows if i == axis else 0) for i in range(x.ndim)], mode="edge")
        return jnp.moveaxis(filled.reshape(*x.shape[:axis], size, chunks, *x.shape[axis + 1 :]), axis + 1, 0)

    parts = jax.tree.map(lambda x: split(x, 0), packed.replace(place=None))  # type: ignore[attr-defined]  # flax adds it
    prompts = {name: split(getattr(prompt, name), -4) for name in own}

    def one(chunk: tuple[Packed, dict[str, Array]]) -> Array:
        return run(chunk[0], prompt.replace(**chunk[1]))  # type: ignore[attr-defined]  # flax adds it

    # Inside a loop, XLA cannot merge the recomputation with the first computation, so no barrier is needed.
    features = jax.lax.map(jax.checkpoint(one, prevent_cse=False), (parts, prompts))
    features = jnp.moveaxis(features, 0, -3)  # [(images,) size, chunks, reads, embed_dim]
    return features.reshape(*features.shape[:-4], size * chunks, *features.shape[-2:])[..., :rows, :, :]


def _per_class(prompt: TextPrompt) -> tuple[bool, bool]:
    """Returns whether the context, and the deep prompts, differ between classes."""
    deep = () if prompt.deep is None else prompt.deep.shape[1:-2]
    context = prompt.context.shape[:-2]
    return bool(context) and context[-1] != 1, bool(deep) and deep[-1] != 1


def _branches(
    params: Any, config: ClipConfig, start: Array, slots: Slots | None, packed: Packed, prompt: TextPrompt
) -> Array:
    """Runs the prefix [SOS] context once; the nodes of the tree attend to its keys and values.

    Returns features `[(images,) rows, reads, embed_dim]` (see `Packed`).
    """
    block = make_block(config.text, config.compute_dtype)
    deep_leading = () if prompt.deep is None else prompt.deep.shape[1:-2]
    leading = jnp.broadcast_shapes(prompt.context.shape[:-2], deep_leading)
    prefix = _join(start, prompt.context, leading)  # [(images, 1,) prefix, width]
    split = prefix.shape[-2]
    prefix = prefix + params["position_embedding"][:split]
    x = embed(params, packed.ids) + params["position_embedding"][split + packed.depth]
    x = jnp.broadcast_to(x.astype(prefix.dtype), (*leading[:-1], *x.shape))  # [(images,) rows, length, width]
    prefix_mask = jnp.tril(jnp.ones((split, split), bool))

    def step(carry: tuple[Array, Array], layer: Any, deep: Array | None, slots: Slots | None) -> tuple[Array, Array]:
        prefix, x = carry
        if deep is not None:
            prefix = _replace(prefix, deep, len(start))
        prefix, memory = run_block(block, layer, prefix, prefix_mask, slots=slots)
        return prefix, run_block(block, layer, x, packed.mask, memory, slots=slots)[0]

    last = config.text.layers - 1
    prefix, x = run_layers(step, (prefix, x), params["layers"], range(last), prompt.deep, prompt.layers, config, slots)
    if prompt.deep is not None and last in prompt.layers:
        prefix = _replace(prefix, prompt.deep[-1], len(start))
    layer, filled = slice_layers(params["layers"], last), None if slots is None else slots.at(last)
    memory = run_block(block, layer, prefix, prefix_mask, slots=filled)[1]
    x, _ = run_block(block, layer, x, _rows(packed.mask, packed.ends), memory, read=packed.ends, slots=filled)
    return _project(params, config, x)


def _side_by_side(config: TextConfig, classes: Classes, prompt: TextPrompt) -> tuple[Packed, TextPrompt]:
    """Returns rows of whole sequences: in each row [SOS] and context of every sequence, followed by the tails.

    In the result, `depth` is the position in the sequence, wherever the context stands. `mask` and `ends` refer to the
    longer rows, `ids` to the tails. Prompts have the leading axes `[..., rows, beside]`, or 1 where they are the same.
    """
    first, n = int(config.start_token), prompt.context.shape[-2]
    packed = classes.apart if config.causal else _one_a_row(config, classes, config.context_length - first - n)
    rows, beside = packed.ends.shape
    member = jnp.zeros(rows * beside, jnp.int32).at[packed.place].set(jnp.arange(len(packed.place), dtype=jnp.int32))
    member = member.reshape(rows, beside)  # the class of each sequence
    belongs = _rows(packed.mask, packed.ends)  # [rows, beside, length]
    owner = jnp.where(jnp.any(belongs, axis=1), jnp.argmax(belongs, axis=1), -1)  # [rows, length]; -1: unused
    before = {"end": n, "middle": n // 2, "front": 0}[prompt.class_position]  # context tokens before the name
    length = classes.name_length[member]
    head = jnp.arange(first + n)
    head = jnp.where(head < first + before, head, head + length[..., None])  # [rows, beside, first + n]
    in_name = packed.depth < jnp.take_along_axis(length, jnp.maximum(owner, 0), axis=1)
    tail = first + packed.depth + jnp.where(in_name, before, n)
    place = jnp.concatenate([head.reshape(rows, -1), tail], axis=1)
    head_owner = jnp.broadcast_to(jnp.repeat(jnp.arange(beside), first + n), (rows, beside * (first + n)))
    owner = jnp.concatenate([head_owner, owner], axis=1)
    mask = (owner[:, :, None] == owner[:, None]) & (place[:, :, None] >= place[:, None]) if config.causal else None
    packed = Packed(packed.ids, place, mask, packed.ends + beside * (first + n), packed.place)  # type: ignore[arg-type]

    def by_row(x: Array, own: bool, axes: int) -> Array:
        if own:
            return jnp.take(x, member, axis=-3)
        return jnp.expand_dims(x, -3) if x.ndim > axes else jnp.expand_dims(x, (-3, -4))

    own_context, own_deep = _per_class(prompt)
    deep = None if prompt.deep is None else by_row(prompt.deep, own_deep, 3)
    return packed, prompt.replace(context=by_row(prompt.context, own_context, 2), deep=deep)  # type: ignore[attr-defined]


def _one_a_row(config: TextConfig, classes: Classes, length: int) -> Packed:
    """Returns one class per row, filled with padding that the transformer reads."""
    ids = _fill(config, classes.tail_ids, classes.tail_eot, length)
    ends = jnp.full_like(classes.tail_eot, length - 1) if config.pooling == "last" else classes.tail_eot
    depth = jnp.broadcast_to(jnp.arange(length), ids.shape)
    mask = jnp.ones((*ids.shape, length), bool)
    return Packed(ids, depth, mask, ends[:, None], jnp.arange(len(ids)))


def _sequences(
    params: Any, config: ClipConfig, start: Array, slots: Slots | None, packed: Packed, prompt: TextPrompt
) -> Array:
    """Runs rows of whole sequences (see `_side_by_side`); returns features `[(images,) rows, beside, embed_dim]`."""
    rows, beside = packed.ends.shape
    deep_leading = () if prompt.deep is None else prompt.deep.shape[1:-4]
    images = jnp.broadcast_shapes(prompt.context.shape[:-4], deep_leading)
    heads = _join(start, prompt.context, (*images, rows, beside))
    first, head, width = len(start), heads.shape[-2], heads.shape[-1]
    x = jnp.broadcast_to(embed(params, packed.ids).astype(heads.dtype), (*images, *packed.ids.shape, width))
    x = jnp.concatenate([heads.reshape(*images, rows, beside * head, width), x], axis=-2)

    def replace(x: Array, deep: Array) -> Array:
        split = beside * head
        heads = _replace(x[..., :split, :].reshape(*x.shape[:-2], beside, head, width), deep, first)
        return jnp.concatenate([heads.reshape(*x.shape[:-2], split, width), x[..., split:, :]], axis=-2)

    x = x + params["position_embedding"][packed.depth]
    return _run(params, config, x, packed.mask, packed.ends, slots, prompt, replace)


def _join(start: Array, context: Array, leading: tuple[int, ...]) -> Array:
    """Returns the sequence [SOS] context with leading axes, `[*leading, first + n, width]`."""
    parts = [jnp.broadcast_to(part, (*leading, *part.shape[-2:])) for part in (start, context)]
    return jnp.concatenate(parts, axis=-2)


def _replace(prefix: Array, deep: Array, first: int) -> Array:
    """Replaces the first context tokens of [SOS] context by deep prompts; `first` is the number of start tokens."""
    deep = jnp.broadcast_to(deep, (*prefix.shape[:-2], *deep.shape[-2:])).astype(prefix.dtype)
    return jnp.concatenate([prefix[..., :first, :], deep, prefix[..., first + deep.shape[-2] :, :]], axis=-2)


def _rows(mask: Array, read: Array) -> Array:
    """Returns the rows of a mask, `[tokens, tokens]` or `[..., tokens, tokens]`, at the places `[..., reads]`."""
    return mask[read] if mask.ndim == 2 else jnp.take_along_axis(mask, read[..., None], axis=-2)


def _run(
    params: Any,
    config: ClipConfig,
    x: Array,
    mask: Array | None,
    read: Array,
    slots: Slots | None,
    prompt: TextPrompt | None = None,
    replace: Callable[[Array, Array], Array] = lambda x, deep: x,
) -> Array:
    """Runs embedded tokens `[..., tokens, width]` and returns the features read at `[..., reads]`.

    `mask` tells which tokens a token attends to; None: all. `replace(x, deep)` inserts the deep prompts of `prompt`.
    """
    block = make_block(config.text, config.compute_dtype)
    deep, deep_layers = (None, ()) if prompt is None else (prompt.deep, prompt.layers)

    def step(x: Array, layer: Any, deep: Array | None, slots: Slots | None) -> Array:
        x = x if deep is None else replace(x, deep)
        return run_block(block, layer, x, mask, slots=slots)[0]

    last = config.text.layers - 1
    x = run_layers(step, x, params["layers"], range(last), deep, deep_layers, config, slots)
    if deep is not None and last in deep_layers:
        x = replace(x, deep[-1])
    mask = None if mask is None else _rows(mask, read)
    layer, filled = slice_layers(params["layers"], last), None if slots is None else slots.at(last)
    x, _ = run_block(block, layer, x, mask, read=read, slots=filled)
    return _project(params, config, x)


def _project(params: Any, config: ClipConfig, x: Array) -> Array:
    """Returns features `[..., embed_dim]` of final hidden states `[..., width]`."""
    return project(apply_norm(config.text.norm_eps, params["final_norm"], x), params)
