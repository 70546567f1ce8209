"""The context of a task: the facts known before adaptation, and their relation to the themes of the hierarchy."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from gram_jax.clip import Clip
from gram_jax.errors import InputError

Array = jax.Array

_EPSILON = 1e-12  # added to squared lengths


def task_context(clip: Clip, image_features: Array, text_features: Array) -> Array:
    """Returns the context of a task: its mean support image feature and its mean class text feature.

        c = [ mean_i f_i ; mean_k t_k ]

    Args:
      clip, image_features: the frozen clip, and its features of the support, `[images, embed_dim]`.
      text_features: its features of the classes under "a photo of a {}.", `[classes, embed_dim]`.

    Returns:
      float32 `[2 * embed_dim]`.
    """
    for name, features in (("image_features", image_features), ("text_features", text_features)):
        shape = jnp.shape(features)
        if len(shape) != 2 or shape[1] != clip.config.embed_dim or not shape[0]:
            expected = f"[1 or more, {clip.config.embed_dim}]"
            raise InputError(f"{name} of a task have shape {list(shape)}, not {expected}; encode them with this clip")
    return jnp.concatenate([jnp.mean(image_features, 0), jnp.mean(text_features, 0)]).astype(jnp.float32)


@flax.struct.dataclass
class Structure:
    """The prototypes of themes that a structured initialization or regulator uses; gradients do not change it.

    Attributes:
      prototypes, temperature: the context of each theme, float32 `[prototypes, context_dim]`, and tau, float32.
      center: float32 `[context_dim]`, the origin from which contexts are measured.
    """

    prototypes: Array
    center: Array
    temperature: Array


def relation(structure: Structure, context: Array) -> Array:
    """Returns the similarity of a task to each prototype.

        w_p = softmax_p( cos(c - m, c_p - m) / tau )

    Args:
      structure, context: prototypes c_p, their center m and tau; and c, float `[context_dim]`, see `task_context`.

    Returns:
      float32 `[prototypes]`, positive, with sum 1.

    Example:
      >>> structure = Structure(jnp.eye(2), jnp.full(2, 0.5), jnp.float32(0.5))
      >>> [round(weight, 3) for weight in relation(structure, jnp.array([1.0, 0.0])).tolist()]
      [0.982, 0.018]

    Reference:
      "Hierarchically Structured Meta-learning" (Yao et al., 2019); the prototypes of GRAM's journal version,
      "Structure-Induced Gradient Regulation".
    """
    context = jnp.asarray(context, jnp.float32)
    if context.shape != structure.center.shape:
        shape, channels = list(context.shape), len(structure.center)
        text = f"the context has shape {shape}, the prototypes have {channels} channels"
        raise InputError(f"{text}; pass one vector [{channels}] per task")

    def unit(vector: Array) -> Array:
        return vector / jnp.sqrt(jnp.sum(vector**2, -1, keepdims=True) + _EPSILON)

    cosine = unit(structure.prototypes - structure.center) @ unit(context - structure.center)
    return jax.nn.softmax(cosine / structure.temperature)
