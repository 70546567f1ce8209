"""The text transformer, with prompts.

Attention is causal: a token attends to itself and to earlier tokens. Three shortcuts are exact because of this:

* Nothing after the end token is computed, since the feature of a text is read at its end token.
* In the last layer, only the end token is computed: its query, its row of attention and its perceptron.
* A prefix that all classes share runs once. Under a prompt that precedes the name, class c is the sequence (prefix P,
  tail T_c) with P = [SOS] v_1 ... v_n and T_c = name . [EOS]. The hidden states of P do not depend on T_c. In every
  layer, the keys and values (K_P, V_P) of the prefix are computed once, and a query q of a tail attends to both parts:

      softmax( q [K_P, K_c]^T / sqrt(d) ) [V_P, V_c]

Without `TextConfig.causal`, a token attends to all tokens, padding included. Then every sequence is filled with padding
to the context length, no prefix is shared, and only the last layer is cut: to the pooled token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

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
from gram_jax.clip.tokenizer import Classes

Array = jax.Array


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
    return _full(params, config, embed(params, token_ids), end, slots=slots)


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
    share_prefix: bool = True,
    slots: Slots | None = None,
) -> Array:
    """Returns the features of classes under a text prompt, computed `config.class_chunk` classes at a time.

    `params` is the `text` branch of the parameters. With `share_prefix`, a prefix that all classes share runs only once
    (see the module's docstring). The features are `[classes, embed_dim]`, or `[images, classes, embed_dim]` if the
    prompt is per image; they are not normalized.
    """

    def run(classes: Classes, prompt: TextPrompt) -> Array:
        return _class_features(params, config, classes, prompt, share_prefix, slots)

    count = classes.tail_ids.shape[0]
    chunks = math.ceil(count / config.class_chunk) if config.class_chunk else 1
    return run(classes, prompt) if chunks <= 1 else _in_chunks(run, classes, prompt, count, chunks)


def _in_chunks(
    run: Callable[[Classes, TextPrompt], Array], classes: Classes, prompt: TextPrompt, count: int, chunks: int
) -> Array:
    """Runs chunks of classes one after the other, and recomputes each in the backward pass.

    The result is exact, because classes do not interact. Chunk i holds classes i, i + chunks, i + 2 chunks, ..., so
    that classes that are spread over devices stay spread within each chunk.
    """
    size = math.ceil(count / chunks)

    def split(x: Array, axis: int) -> Array:
        axis %= x.ndim
        filled = jnp.pad(x, [(0, size * chunks - count if i == axis else 0) for i in range(x.ndim)], mode="edge")
        return jnp.moveaxis(filled.reshape(*x.shape[:axis], size, chunks, *x.shape[axis + 1 :]), axis + 1, 0)

    own = {"classes": jax.tree.map(lambda x: split(x, 0), classes)}
    for name, per_class in zip(("context", "deep"), _per_class(prompt), strict=True):
        if per_class:
            own[name] = split(getattr(prompt, name), -3)

    def one(own: dict[str, Any]) -> Array:
        own = dict(own)
        return run(own.pop("classes"), prompt.replace(**own))  # type: ignore[attr-defined]  # flax adds it

    # Inside a loop, XLA cannot merge the recomputation with the first computation, so no barrier is needed.
    features = jax.lax.map(jax.checkpoint(one, prevent_cse=False), own)  # [chunks, (images,) size, embed_dim]
    features = jnp.moveaxis(features, 0, -2)
    return features.reshape(*features.shape[:-3], size * chunks, features.shape[-1])[..., :count, :]


def _class_features(
    params: Any, config: ClipConfig, classes: Classes, prompt: TextPrompt, share_prefix: bool, slots: Slots | None
) -> Array:
    # All classes start with the same token, or with none; config.bos_token_id is wrong in files before mid-2023.
    first, n = int(config.text.start_token), prompt.context.shape[-2]
    start = embed(params, classes.token_ids[:1, :first])  # [1, first, width]
    tail_ids = _fill(config.text, classes.tail_ids, classes.tail_eot, config.text.context_length - first - n)
    tail = embed(params, tail_ids)  # [classes, tail, width]
    if share_prefix and config.text.causal and prompt.class_position == "end" and not any(_per_class(prompt)):
        return _shared_prefix(params, config, start, tail, classes.tail_eot, prompt, slots)
    leading = jnp.broadcast_shapes(
        (tail.shape[0],), prompt.context.shape[:-2], () if prompt.deep is None else prompt.deep.shape[1:-2]
    )
    parts = [jnp.broadcast_to(part, (*leading, *part.shape[-2:])) for part in (start, prompt.context, tail)]
    x = jnp.concatenate(parts, axis=-2)  # [..., classes, first + n + tail, width], the context before the name
    end = first + n + classes.tail_eot
    if prompt.class_position == "end":
        return _full(params, config, x, end, prompt, jnp.broadcast_to(jnp.arange(x.shape[-2]), x.shape[-3:-1]), slots)
    source = _order(prompt.class_position, first, n, classes.name_length, x.shape[-2])
    return _full(params, config, jnp.take_along_axis(x, _expand(source, x), axis=-2), end, prompt, source, slots)


def _per_class(prompt: TextPrompt) -> tuple[bool, bool]:
    """Returns whether the context, and the deep prompts, differ between classes."""
    deep = () if prompt.deep is None else prompt.deep.shape[1:-2]
    context = prompt.context.shape[:-2]
    return bool(context) and context[-1] != 1, bool(deep) and deep[-1] != 1


def _order(class_position: str, first: int, n: int, name_length: Array, length: int) -> Array:
    """Returns, for each place of a sequence, its token's place in [SOS] context name rest; int `[classes, length]`.

    There are `first` start tokens, 0 or 1.
    """
    before = n // 2 if class_position == "middle" else 0  # context tokens before the name
    place = jnp.arange(length) - first  # from the start token on
    name_length = name_length[:, None]
    source = jnp.where(place >= n + name_length, place, place - name_length)
    source = jnp.where(place < before + name_length, place + n - before, source)
    return jnp.where(place < before, place, source) + first


def _expand(index: Array, x: Array) -> Array:
    return jnp.broadcast_to(index, x.shape[:-1])[..., None]


def _replace(x: Array, deep: Array, source: Array | None, first: int) -> Array:
    """Replaces the first m context tokens, at any position, by deep prompts; `first` is the number of start tokens."""
    assert source is not None  # every prompt comes with the order of its tokens
    m = deep.shape[-2]
    deep = jnp.broadcast_to(deep, (*x.shape[:-2], *deep.shape[-2:])).astype(x.dtype)
    new = jnp.take_along_axis(deep, _expand(jnp.clip(source - first, 0, m - 1), x), axis=-2)
    return jnp.where(_expand((source >= first) & (source < first + m), x), new, x)


def _full(
    params: Any,
    config: ClipConfig,
    x: Array,
    end: Array,
    prompt: TextPrompt | None = None,
    source: Array | None = None,
    slots: Slots | None = None,
) -> Array:
    """Runs whole sequences of embedded tokens `[..., tokens, width]` and returns their features.

    `end` is the position of the end token, int `[...]`.
    """
    block = make_block(config.text, config.compute_dtype)
    length, first = x.shape[-2], int(config.text.start_token)
    x = x + params["position_embedding"][:length]
    mask = jnp.tril(jnp.ones((length, length), bool)) if config.text.causal else None
    deep, deep_layers = (None, ()) if prompt is None else (prompt.deep, prompt.layers)

    def step(x: Array, layer: Any, deep: Array | None, slots: Slots | None) -> Array:
        if deep is not None:
            x = _replace(x, deep, source, first)
        return run_block(block, layer, x, mask, slots=slots)[0]

    last = config.text.layers - 1
    x = run_layers(step, x, params["layers"], range(last), deep, deep_layers, config.remat, slots)
    if deep is not None and last in deep_layers:
        x = _replace(x, deep[-1], source, first)
    if config.text.causal:
        mask = jnp.arange(length) <= end[..., None, None]  # [..., 1, tokens]
    read = length - 1 if config.text.pooling == "last" else end
    layer, filled = slice_layers(params["layers"], last), None if slots is None else slots.at(last)
    x, _ = run_block(block, layer, x, mask, read=read, slots=filled)
    return _project(params, config, x)


def _shared_prefix(
    params: Any,
    config: ClipConfig,
    start: Array,
    tail: Array,
    tail_end: Array,
    prompt: TextPrompt,
    slots: Slots | None,
) -> Array:
    """Runs the prefix [SOS] context once; the tails attend to its keys and values (see the module's docstring)."""
    block = make_block(config.text, config.compute_dtype)
    deep_leading = () if prompt.deep is None else prompt.deep.shape[1:-2]
    leading = jnp.broadcast_shapes(prompt.context.shape[:-2], deep_leading)
    context = jnp.broadcast_to(prompt.context, (*leading, *prompt.context.shape[-2:]))
    start = jnp.broadcast_to(start[0], (*leading, *start.shape[-2:]))
    prefix = jnp.concatenate([start, context], axis=-2)  # [(images, 1,) prefix, width]
    first, split = start.shape[-2], prefix.shape[-2]
    prefix = prefix + params["position_embedding"][:split]
    tail = tail + params["position_embedding"][split : split + tail.shape[-2]]
    tail = jnp.broadcast_to(tail.astype(prefix.dtype), (*leading[:-1], *tail.shape))  # [(images,) classes, tail, width]
    prefix_mask, tail_mask = (jnp.tril(jnp.ones((n, n), bool)) for n in (split, tail.shape[-2]))

    def replace(prefix: Array, deep: Array) -> Array:
        deep = jnp.broadcast_to(deep, (*leading, *deep.shape[-2:])).astype(prefix.dtype)
        return jnp.concatenate([prefix[..., :first, :], deep, prefix[..., first + deep.shape[-2] :, :]], axis=-2)

    def step(carry: tuple[Array, Array], layer: Any, deep: Array | None, slots: Slots | None) -> tuple[Array, Array]:
        prefix, tail = carry
        if deep is not None:
            prefix = replace(prefix, deep)
        prefix, memory = run_block(block, layer, prefix, prefix_mask, slots=slots)
        return prefix, run_block(block, layer, tail, tail_mask, memory, slots=slots)[0]

    last = config.text.layers - 1
    prefix, tail = run_layers(
        step, (prefix, tail), params["layers"], range(last), prompt.deep, prompt.layers, config.remat, slots
    )
    if prompt.deep is not None and last in prompt.layers:
        prefix = replace(prefix, prompt.deep[-1])
    layer, filled = slice_layers(params["layers"], last), None if slots is None else slots.at(last)
    memory = run_block(block, layer, prefix, prefix_mask, slots=filled)[1]
    mask = jnp.arange(tail.shape[-2]) <= tail_end[:, None, None]  # [classes, 1, tail]
    tail, _ = run_block(block, layer, tail, mask, memory, read=tail_end, slots=filled)
    return _project(params, config, tail)


def _project(params: Any, config: ClipConfig, x: Array) -> Array:
    """Returns the feature `[..., embed_dim]` of a final hidden state `[..., 1, width]`."""
    return project(apply_norm(config.text.norm_eps, params["final_norm"], x[..., 0, :]), params)
