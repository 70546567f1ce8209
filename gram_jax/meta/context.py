"""The context of a task, and its relation to the themes of the hierarchy."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from gram_jax.clip import Clip
from gram_jax.errors import InputError

Array = jax.Array

_SHORTEST = 1e-12  # added to squared lengths


def task_context(clip: Clip, image_features: Array, text_features: Array) -> Array:
    """What a regulator reads about a task: the mean image of its support and the mean text of its classes.

        c = [ mean_i f_i ; mean_k t_k ]

    Args:
      clip: the frozen clip.
      image_features: frozen features of the support, `[images, embed_dim]`.
      text_features: frozen features of its classes under "a photo of a {}.", `[classes, embed_dim]`.

    Returns:
      float32 `[2 * embed_dim]`.

    Raises:
      InputError: if a shape does not fit the clip.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> task_context(tiny_clip(), jnp.ones((6, 16)), jnp.zeros((3, 16))).sum().item()
      16.0

    Reference:
      Our own choice.
    """
    for kind, features in (("image", image_features), ("text", text_features)):
        shape = jnp.shape(features)
        if len(shape) != 2 or shape[1] != clip.config.embed_dim or not shape[0]:
            raise InputError(
                f"{kind} features of a task must have shape [count, {clip.config.embed_dim}] with a count of at least "
                f"1, found {list(shape)}; encode them with this clip."
            )
    return jnp.concatenate([jnp.mean(image_features, 0), jnp.mean(text_features, 0)]).astype(jnp.float32)


@flax.struct.dataclass
class Structure:
    """The kinds of task that a structured start or regulator knows; none of it is learned by gradients.

    Attributes:
      prototypes: float32 `[prototypes, context_dim]`, the context of each kind of task.
      center: float32 `[context_dim]`, what contexts are measured from.
      temperature: float32, of the softmax over prototypes.

    Example:
      >>> Structure(jnp.eye(2), jnp.full(2, 0.5), jnp.float32(0.1)).prototypes.shape
      (2, 2)
    """

    prototypes: Array
    center: Array
    temperature: Array


def relation(structure: Structure, context: Array) -> Array:
    """How near a task is to each prototype.

        w_p = softmax_p( cos(c - m, c_p - m) / tau )

    Args:
      structure: prototypes c_p, their center m and the temperature tau.
      context: c, float `[context_dim]`, what is known of the task before adaptation.

    Returns:
      float32 `[prototypes]`, positive, sum 1.

    Raises:
      InputError: if the context has another length.

    Example:
      >>> structure = Structure(jnp.eye(2), jnp.full(2, 0.5), jnp.float32(0.5))
      >>> [round(weight, 3) for weight in relation(structure, jnp.array([1.0, 0.0])).tolist()]
      [0.982, 0.018]

    Reference:
      Our own choice, after "Hierarchically Structured Meta-learning" (Yao et al., 2019) and the prototypes of GRAM's
      journal version, "Structure-Induced Gradient Regulation".
    """
    context = jnp.asarray(context, jnp.float32)
    if context.shape != structure.center.shape:
        raise InputError(
            f"the prototypes have {structure.center.shape[0]} channels, and the context has shape "
            f"{list(context.shape)}; pass one vector [{structure.center.shape[0]}] a task."
        )

    def unit(vector: Array) -> Array:
        return vector / jnp.sqrt(jnp.sum(vector**2, -1, keepdims=True) + _SHORTEST)

    nearness = unit(structure.prototypes - structure.center) @ unit(context - structure.center)
    return jax.nn.softmax(nearness / structure.temperature)
