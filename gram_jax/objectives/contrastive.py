"""The symmetric contrastive loss of CLIP's pre-training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from gram_jax.errors import InputError


def contrastive_loss(image_features: jax.Array, text_features: jax.Array, logit_scale: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy, in nats, of picking each image's text, and each text's image, from the batch.

    With L = exp(logit_scale) F T^t,  loss = mean_i [ CE(L_i, i) + CE(L^t_i, i) ] / 2.

    Args:
      image_features: normalized, float `[batch, embed]`.
      text_features: normalized, float `[batch, embed]`; row i belongs to image i.
      logit_scale: the logarithm of the inverse temperature, a scalar.

    Example:
      >>> features = jnp.eye(2)
      >>> round(float(contrastive_loss(features, features, jnp.log(2.0))), 4)
      0.1269

    Reference:
      Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021), figure 3.
    """
    if image_features.shape != text_features.shape:
        raise InputError(
            f"image features {image_features.shape} and text features {text_features.shape} differ in shape; "
            "give one text per image"
        )
    logits = jnp.exp(logit_scale) * image_features @ text_features.T  # [batch, batch]
    own = jnp.arange(logits.shape[0])
    by_image = optax.softmax_cross_entropy_with_integer_labels(logits, own)
    by_text = optax.softmax_cross_entropy_with_integer_labels(logits.T, own)
    return (by_image.mean() + by_text.mean()) / 2.0
