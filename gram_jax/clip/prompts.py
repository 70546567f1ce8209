"""Prompts: learned tokens, and the places at which the frozen transformers read them."""

from __future__ import annotations

from typing import NamedTuple

import flax.struct
import jax

CLASS_POSITIONS = ("end", "middle", "front")
PLACEMENTS = ("before_norm", "after_norm", "after_class")


def _layers(prompt: TextPrompt | VisualPrompt) -> tuple[int, ...]:
    """The layers before which deep prompts are inserted."""
    if prompt.deep is None:
        return ()
    return tuple(range(1, 1 + prompt.deep.shape[0]) if prompt.deep_layers is None else prompt.deep_layers)


@flax.struct.dataclass
class TextPrompt:
    """Context tokens around a class name.

    With context v_1, ..., v_n and a name of any length, the text transformer reads, by `class_position`::

        end      [SOS] v_1 ... v_n  name . [EOS]
        middle   [SOS] v_1 ... v_h  name  v_h+1 ... v_n . [EOS]      h = n // 2
        front    [SOS] name  v_1 ... v_n . [EOS]

    and `deep[i]` replaces v_1, ..., v_m before layer `deep_layers[i]` (layers count from 0).

    Attributes:
      context: `[..., n, width]`; the leading axes broadcast against (images, classes): `[n, width]` is shared,
        `[classes, n, width]` per class, `[images, 1, n, width]` per image, `[images, classes, n, width]` both.
      deep: None, or `[depth, ..., m, width]` with 1 <= m <= n and leading axes as in `context`.
      class_position: "end", "middle" or "front".
      deep_layers: increasing layer numbers from 1, one per deep prompt; None means 1, 2, ..., depth.

    Example:
      >>> import jax.numpy as jnp
      >>> TextPrompt(jnp.zeros((4, 64)), deep=jnp.zeros((8, 4, 64))).layers
      (1, 2, 3, 4, 5, 6, 7, 8)

    Reference:
      "Learning to Prompt for Vision-Language Models" (CoOp), section 3.2; deep prompts as in "MaPLe: Multi-modal
      Prompt Learning", section 3.2.
    """

    context: jax.Array
    deep: jax.Array | None = None
    class_position: str = flax.struct.field(pytree_node=False, default="end")
    deep_layers: tuple[int, ...] | None = flax.struct.field(pytree_node=False, default=None)
    layers = property(_layers)


@flax.struct.dataclass
class VisualPrompt:
    """Prompt tokens among the patches of an image.

    With class token c and patches z, the vision transformer's layers read, by `placement`::

        before_norm   [norm(c), norm(z), norm(tokens)]      MaPLe, PromptSRC
        after_norm    [norm(c), norm(z), tokens]            DPT
        after_class   [norm(c), tokens, norm(z)]            UPT, MVLPT

    and `deep[i]` replaces the prompt tokens before layer `deep_layers[i]` (layers count from 0). Without `tokens` the
    first deep prompt is inserted at the same place.

    Attributes:
      tokens: None, `[n, width]` shared, or `[images, n, width]` per image.
      deep: None, or `[depth, ..., n, width]` with leading axes as in `tokens`.
      placement: "before_norm", "after_norm" or "after_class".
      deep_layers: increasing layer numbers, one per deep prompt; None means 1, 2, ..., depth. Layer 0 is allowed only
        without `tokens`.

    Reference:
      "Visual Prompt Tuning" (VPT), section 3.2; the placements are those of the public code of the methods named.
    """

    tokens: jax.Array | None
    deep: jax.Array | None = None
    placement: str = flax.struct.field(pytree_node=False, default="before_norm")
    deep_layers: tuple[int, ...] | None = flax.struct.field(pytree_node=False, default=None)
    layers = property(_layers)


class MaskedTokens(NamedTuple):
    """Prompt tokens of a layer, some of which are masked.

    Attributes:
      tokens: `[images, n, width]`, or `[n, width]` shared.
      keep: bool `[images, n]`; no token attends to a token where this is False.
    """

    tokens: jax.Array
    keep: jax.Array
