"""Slots: what a method may add inside the blocks of a frozen transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax

Array = jax.Array
PROJECTIONS = ("query", "key", "value", "out")
PLACES = ("attention", "mlp", "block")
NORMS = ("norm_1", "norm_2")


def bottleneck(params: Mapping[str, Array], x: Array) -> Array:
    """Returns an adapter's output  relu(x W_down + b_down) W_up + b_up  for tokens `[..., width]`.

    Args:
      params: "down" `[width, rank]` and "up" `[rank, width]`; "down_bias" `[rank]` and "up_bias" `[width]` may be
        missing.
      x: the tokens.

    Reference:
      "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition", section 3.2, equation 3, without s.
    """
    hidden = jax.nn.relu(x @ params["down"] + params.get("down_bias", 0.0))
    return hidden @ params["up"] + params.get("up_bias", 0.0)


@flax.struct.dataclass
class Slots:
    """Learned parts inside the blocks `layers` of a transformer; a part that is missing changes nothing.

    Block l with tokens x and its parts, norms n_1 and n_2, attention heads left out::

        n = n_1(x),  q = n W_q + (n D_q) U_q,  k, v likewise of [n, n_1(prompts)]
        a = softmax(q k^T / sqrt(d)) v
        y = x + a W_o + (a D_o) U_o + adapter_attention(x)
        z = y + mlp(n_2(y)) + adapter_mlp(y) + adapter_block(n)

    Prompts are keys and values only: they are no queries, they are not passed to the next block, no mask hides them,
    and no position rotates them. A factor such as alpha / r or s is part of the values that the caller passes.

    Every array has a leading axis, one entry per layer.

    Attributes:
      layers: the blocks, increasing numbers from 0.
      prompts: None, or `[layers, m, width]`; in the vision transformer also `[layers, images, m, width]`.
      low_rank: (D `[layers, width, r]`, U `[layers, r, width]`) by projection: "query", "key", "value", "out".
      norms: {"scale" or "bias": `[layers, width]`} by norm, "norm_1" or "norm_2"; they are added to the norm's own.
      adapters: the parameters of an adapter by place: "attention", "mlp" or "block".
      adapter: `adapter(parameters of one layer, tokens) -> [..., width]`, a pure function of each token by itself: in
        the last block, some transformers compute one token only.

    Example:
      >>> import jax.numpy as jnp
      >>> slots = Slots((0, 1), prompts=jnp.zeros((2, 4, 64)))
      >>> slots.at(1).prompts.shape
      (4, 64)
      >>> slots.at(2) is None
      True

    Reference:
      Prompts: "Visual Prompt Tuning in Null Space for Continual Learning", section 3. Low rank: "LoRA", section 4.1.
      Adapters: "AdaptFormer" ("attention", "mlp"), "MMA: Multi-Modal Adapter" ("block").
    """

    layers: tuple[int, ...] = flax.struct.field(pytree_node=False)
    prompts: Array | None = None
    low_rank: Mapping[str, tuple[Array, Array]] = flax.struct.field(default_factory=dict)
    norms: Mapping[str, Mapping[str, Array]] = flax.struct.field(default_factory=dict)
    adapters: Mapping[str, Any] = flax.struct.field(default_factory=dict)
    adapter: Callable[[Any, Array], Array] = flax.struct.field(pytree_node=False, default=bottleneck)

    def at(self, layer: int) -> Slots | None:
        """Returns the parts of one block, without the axis of layers; None if it has none."""
        if layer not in self.layers:
            return None
        index = self.layers.index(layer)
        return jax.tree.map(lambda leaf: leaf[index], self)

    def span(self, start: int, stop: int) -> Slots:
        """Returns the parts of the blocks start, ..., stop - 1, all of which are in `layers`."""
        first = self.layers.index(start)
        return jax.tree.map(lambda leaf: leaf[first : first + stop - start], self)
