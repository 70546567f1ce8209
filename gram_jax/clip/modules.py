"""One layer of CLIP's transformers as linen modules, and the scan over a stack of layers."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from gram_jax.clip.activations import ACTIVATIONS
from gram_jax.clip.config import ClipConfig, TextConfig, VisionConfig
from gram_jax.clip.slots import Slots

Array = jax.Array
# Flax traces the initializer of a parameter for its shape. `init_params` draws the weights: zeros are enough here.
Dense = functools.partial(nn.Dense, kernel_init=nn.initializers.zeros)
# Keys and values of tokens that other tokens may attend to, each [..., heads, tokens, head width].
Memory = tuple[Array, Array]


def at_least_float32(x: Array) -> Array:
    """Casts half precision to float32; leaves float32 and float64 unchanged."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def take_tokens(x: Array, places: int | Array) -> Array:
    """Returns tokens `[..., reads, width]` of every sequence `[..., tokens, width]`.

    `places` is int `[..., reads]`, or one static place, the same in every sequence.
    """
    if isinstance(places, int):
        return x[..., places : places + 1, :]
    index = jnp.broadcast_to(places, (*x.shape[:-2], places.shape[-1]))[..., None]
    return jnp.take_along_axis(x, index, axis=-2)


class Attention(nn.Module):
    """Multi-head attention written as explicit products, so that derivatives of every order exist.

    `dtype` is that of the matrix products; None for the promoted dtype of inputs and parameters. `out_width` is the
    width of the output; None: that of the tokens.
    """

    heads: int
    dtype: Any = None
    out_width: int | None = None

    @nn.compact
    def __call__(
        self,
        queries: Array,
        tokens: Array,
        mask: Array | None = None,
        memory: Memory | None = None,
        angles: tuple[Array, Array] | None = None,
        prompts: Array | None = None,
        low_rank: Mapping[str, tuple[Array, Array]] = MappingProxyType({}),
    ) -> tuple[Array, Memory]:
        """Lets `queries` attend to all of `memory` and `prompts`, and to the `tokens` that `mask` allows.

        Queries are `[..., queries, width]`, tokens `[..., tokens, width]`; the mask is bool and broadcasts to
        `[..., queries, tokens]` (None allows all); memory holds earlier keys and values, whose leading axes broadcast;
        `angles` of queries and of keys `[queries or tokens, head width / 2]` rotate them (see `rotate`); prompts and
        low-rank updates are as in `Slots`, without the axis of layers, prompts after the norm.
        Returns the output `[..., queries, width]`, and the keys and values of `tokens`.
        """
        width = tokens.shape[-1]
        layers = {name: Dense(width, dtype=self.dtype, name=name) for name in ("query", "key", "value")}
        layers["out"] = Dense(self.out_width or width, dtype=self.dtype, name="out")

        def dense(name: str, x: Array) -> Array:
            y = layers[name](x)
            if name not in low_rank:
                return y
            down, up = low_rank[name]
            return y + (x @ down @ up).astype(y.dtype)

        def split(x: Array) -> Array:
            return jnp.swapaxes(x.reshape(*x.shape[:-1], self.heads, width // self.heads), -2, -3)

        query = split(dense("query", queries) * (width // self.heads) ** -0.5)
        key, value = split(dense("key", tokens)), split(dense("value", tokens))
        if angles is not None:
            query, key = rotate(query, angles[0]), rotate(key, angles[1])
        scores = at_least_float32(_scores(query, key))  # [..., heads, queries, tokens]
        if mask is not None:
            scores = jnp.where(mask[..., None, :, :], scores, jnp.finfo(scores.dtype).min)
        more = [] if memory is None else [memory]
        if prompts is not None:
            more.append((split(dense("key", prompts)), split(dense("value", prompts))))
        if not more:
            mixed = _mix(jax.nn.softmax(scores).astype(value.dtype), value)
        else:
            seen = [at_least_float32(_scores(query, keys)) for keys, _ in more]  # each [..., heads, queries, m]
            weights = jax.nn.softmax(jnp.concatenate([*seen, scores], axis=-1)).astype(value.dtype)
            ends = list(itertools.accumulate(part.shape[-1] for part in seen))
            parts = zip(jnp.split(weights, ends, axis=-1), [*more, (key, value)], strict=True)
            mixed = functools.reduce(operator.add, [_mix(part, values) for part, (_, values) in parts])
        mixed = jnp.swapaxes(mixed, -2, -3)
        mixed = mixed.reshape(*mixed.shape[:-2], width)
        return dense("out", mixed), (key, value)


_scores = functools.partial(jnp.einsum, "...hqd,...hkd->...hqk")  # of queries and keys
_mix = functools.partial(jnp.einsum, "...hqk,...hkd->...hqd")  # of weights and values


def rotate(x: Array, angles: Array) -> Array:
    """Rotates pairs of neighboring entries of vectors `[..., tokens, width]` by angles `[tokens, width / 2]`.

    Reference:
      "RoFormer: Enhanced Transformer with Rotary Position Embedding", section 3.2.2.
    """
    pairs = at_least_float32(x).reshape(*x.shape[:-1], -1, 2)
    first, second, cos, sin = pairs[..., 0], pairs[..., 1], jnp.cos(angles), jnp.sin(angles)
    rotated = jnp.stack([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)


class Mlp(nn.Module):
    """Two dense layers with an activation between them."""

    hidden: int
    activation: str
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = Dense(self.hidden, dtype=self.dtype, name="up")(x)
        return Dense(x.shape[-1], dtype=self.dtype, name="down")(ACTIVATIONS[self.activation](hidden))


class Block(nn.Module):
    """A pre-norm transformer layer: `x += attention(norm_1(x)); x += mlp(norm_2(x))`, residuals at least float32."""

    heads: int
    mlp_width: int
    activation: str
    norm_eps: float
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array | None = None,
        memory: Memory | None = None,
        read: int | Array | None = None,
        angles: Array | None = None,
        slots: Slots | None = None,
    ) -> tuple[Array, Memory]:
        """Returns the tokens after the layer, and the layer's keys and values, those of prompts left out.

        `mask` and `memory` are as in `Attention`; `read` are the places of the only tokens whose output is needed (see
        `take_tokens`), None for all tokens of `x`, `[..., tokens, width]`; `angles` of the tokens rotate their queries
        and keys; `slots` are those of this layer, `Slots.at`, without their norms, see `run_block`.
        """
        slots = slots or Slots(())
        norm_1 = layer_norm(self.norm_eps, name="norm_1")
        normed = norm_1(x)
        prompts = None if slots.prompts is None else norm_1(slots.prompts)
        queries, turns = normed, None if angles is None else (angles, angles)
        if read is not None:
            x, queries = take_tokens(x, read), take_tokens(normed, read)
            turns = None if angles is None else (take_tokens(angles, read), angles)
        attention = Attention(self.heads, self.dtype, name="attention")
        attended, memory = attention(queries, normed, mask, memory, turns, prompts, slots.low_rank)
        y = _adapt(slots, "attention", x + attended, x)
        normed = layer_norm(self.norm_eps, name="norm_2")(y)
        z = y + Mlp(self.mlp_width, self.activation, self.dtype, name="mlp")(normed)
        return _adapt(slots, "block", _adapt(slots, "mlp", z, y), queries), memory


def _adapt(slots: Slots, place: str, total: Array, x: Array) -> Array:
    """Adds the adapter of a place, applied to `x`, to a sum; returns the sum if there is none."""
    return total + slots.adapter(slots.adapters[place], x) if place in slots.adapters else total


def run_block(block: Block, layer: Any, x: Array, *given: Any, slots: Slots | None = None, **named: Any) -> Any:
    """Applies a block with the parameters and the slots (`Slots.at`) of a layer; other arguments as in `Block`."""
    for norm, deltas in () if slots is None else slots.norms.items():
        shifted = {name: layer[norm][name] + delta for name, delta in deltas.items()}
        layer = {**layer, norm: {**layer[norm], **shifted}}
    return block.apply({"params": layer}, x, *given, slots=slots, **named)


def layer_norm(epsilon: float, name: str | None = None) -> nn.LayerNorm:
    """Returns a layer norm with the two-pass variance; the fast one loses digits on CLIP's large activations."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, name=name)


def apply_norm(epsilon: float, params: Any, x: Array) -> Array:
    """Applies a tower's layer norm with its parameters."""
    return cast(Array, layer_norm(epsilon).apply({"params": params}, x))


class AttentionPool(nn.Module):
    """Pools tokens by a learned query: `a = attention(probe, tokens); a + mlp(norm(a))`.

    Reference:
      "Scaling Vision Transformers", section 3.3, "multihead attention pooling".
    """

    heads: int
    mlp_width: int
    activation: str
    norm_eps: float
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Returns one token `[..., width]` of `[..., tokens, width]`."""
        probe = self.param("probe", nn.initializers.zeros, tokens.shape[-1:])
        query = jnp.broadcast_to(probe, (*tokens.shape[:-2], 1, tokens.shape[-1]))
        pooled = at_least_float32(Attention(self.heads, self.dtype, name="attention")(query, tokens)[0])
        normed = layer_norm(self.norm_eps, name="norm")(pooled)
        return (pooled + Mlp(self.mlp_width, self.activation, self.dtype, name="mlp")(normed))[..., 0, :]


def slice_layers(layers: Any, index: int | slice) -> Any:
    """Returns the parameters of one layer, or of a range of them, from a tower's stack."""
    return jax.tree.map(lambda leaf: leaf[index], layers)


def project(x: Array, params: Any) -> Array:
    """Projects features `[..., width]` into the joint space `[..., embed_dim]`, in full precision on every device.

    `params` is a tower's branch of the parameters; what it lacks, the kernel or its bias, is left out.
    """
    if "projection" in params:
        x = jnp.matmul(x, at_least_float32(params["projection"]), precision="highest")
    return x + params["projection_bias"] if "projection_bias" in params else x


def make_block(config: TextConfig | VisionConfig, compute_dtype: str) -> Block:
    """Returns the layer of a tower; its parameters are one slice of the tower's stacked `layers`."""
    dtype = jnp.bfloat16 if compute_dtype == "bfloat16" else None
    return Block(config.heads, config.mlp_width, config.activation, config.norm_eps, dtype)


def run_layers(
    step: Callable[..., Any],
    carry: Any,
    layers: Any,
    span: range,
    deep: Array | None = None,
    deep_layers: tuple[int, ...] = (),
    config: ClipConfig | None = None,
    slots: Slots | None = None,
) -> Any:
    """Runs `carry = step(carry, parameters, deep prompt or None, slots or None)` over the layers of `span`.

    Consecutive layers with a deep prompt are one scan, and so are those without, and likewise for slots. Returns the
    last carry.

    Args:
      step, carry: the function above, and the value passed from layer to layer.
      layers: parameters with a leading axis of layers.
      span: the range of layers; may be empty.
      deep: prompts with a leading axis as long as `deep_layers`.
      deep_layers: increasing layer numbers; those outside the range are ignored.
      config: it tells whether layers are recomputed (`remat`) and written out (`unroll`); None: neither.
      slots: the slots of the tower.

    Example:
      >>> step = lambda x, layer, deep, slots: (x if deep is None else deep) * layer
      >>> float(run_layers(step, jnp.float32(1), jnp.array([2.0, 3.0, 5.0]), range(3), jnp.array([10.0]), (1,)))
      150.0
    """

    def body(carry: Any, xs: tuple[Any, Any, Any]) -> tuple[Any, None]:
        return step(carry, *xs), None

    remat = config is not None and config.remat
    # Written out, the recomputation of `remat` would be merged with the first computation.
    most = 0 if config is None or remat else config.unroll
    body = jax.checkpoint(body, prevent_cse=False) if remat else body
    slotted = () if slots is None else slots.layers
    kinds = itertools.groupby(span, lambda layer: (layer in deep_layers, layer in slotted))
    for (prompted, own_slots), group in kinds:
        run = list(group)
        first, end = run[0], run[-1] + 1
        own = deep[deep_layers.index(first) :][: len(run)] if prompted and deep is not None else None
        filled = slots.span(first, end) if own_slots and slots is not None else None
        xs = (slice_layers(layers, slice(first, end)), own, filled)
        carry, _ = jax.lax.scan(body, carry, xs, unroll=len(run) <= most)
    return carry
