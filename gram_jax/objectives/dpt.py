"""DPT's loss in stages: first each side beside the other's frozen one, then both together."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gram_jax.clip import Clip, logits
from gram_jax.errors import InputError
from gram_jax.tuners.base import Prompt, Tuner, frozen_outputs
from gram_jax.tuners.dpt import dpt_outputs
from gram_jax.tuners.networks import linear, norm

Array = jax.Array
_BOTH = 0.1  # weight of the prompted logits while each side is guided by the other's frozen one
_EXCLUDED = -1e9  # the logit of a class that only fills up the shape


def dpt_loss(tuner: Tuner, class_weight: float = 0.3) -> Callable[[Prompt, Clip, dict[str, Any]], Array]:
    """The loss that DPT is trained with.

    With f, t the prompted features, f0, t0 the frozen ones under the template of the classes, <f, t> the scaled
    cosines, and C_j the classifier's logits of what class j saw in the image (see `dpt`),

        guided      CE(<f0, t>) + CE(<f, t0>) + 0.1 CE(<f, t>)         in the first 30 epochs, as published
        afterwards  CE(<f, t>)
        always      + alpha mean CE(C_y),    the mean over layers and images whose own class y is among the likely ones.

    Args:
      tuner: as `dpt` makes it.
      class_weight: alpha, >= 0. It needs a tuner with `class_specific=True` unless it is 0.

    Returns:
      `loss(prompt, clip, batch) -> scalar`, as `gram_jax.meta.make_meta_step` takes it. `batch` is a dictionary:
      "classes" and "images" as the tuner takes them, "labels" int `[images]`, "guided" bool, a scalar, and "valid" bool
      `[classes]`, which may be missing where every class counts.

    Raises:
      InputError: if the tuner is another one, the weight is no number >= 0, or there is no classifier for it; the loss
        raises it if the classifier is for another number of classes.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> from gram_jax.tuners import dpt
      >>> clip, tuner = tiny_clip(), dpt(class_specific=True)
      >>> classes = clip.class_tokens(["cat", "dog"])
      >>> prompt = tuner.init(jax.random.key(0), clip, classes)
      >>> batch = {"classes": classes, "images": jnp.ones((1, 12, 12, 3)), "labels": jnp.array([1]), "guided": True}
      >>> dpt_loss(tuner)(prompt, clip, batch).shape
      ()

    Reference:
      "Dual Modality Prompt Tuning for Vision-Language Pre-Trained Model", section III, and its public code.
    """
    if tuner.name != "dpt":
        raise InputError(f"dpt_loss needs a tuner that dpt made, found {tuner.name!r}.")
    if isinstance(class_weight, bool) or not isinstance(class_weight, (int, float)) or not 0 <= class_weight < math.inf:
        raise InputError(f"class_weight must be a number, 0 or more, found {class_weight!r}.")
    if class_weight and not tuner.settings["class_specific"]:
        raise InputError(
            f"class_weight is {class_weight}, but this dpt has no classifier of class prompts; make it with "
            "class_specific=True, or set class_weight=0."
        )

    def loss(prompt: Prompt, clip: Clip, batch: dict[str, Any]) -> Array:
        found = dpt_outputs(tuner.settings, prompt, clip, batch["classes"], batch["images"])
        outputs, labels, valid = found.outputs, jnp.asarray(batch["labels"]), batch.get("valid")
        frozen = found.frozen if found.frozen is not None else frozen_outputs(clip, batch["classes"], batch["images"])
        scale = clip.params["logit_scale"]
        both = _mean(outputs.logits, labels, valid)
        by_text = _mean(logits(frozen.image_features, outputs.text_features, scale), labels, valid)
        by_image = _mean(logits(outputs.image_features, frozen.text_features, scale), labels, valid)
        total = jnp.where(batch["guided"], by_text + by_image + _BOTH * both, both)
        if not class_weight:
            return total
        classifier = prompt["classifier"]
        if classifier["kernel"].shape[-1] != outputs.logits.shape[1]:
            raise InputError(
                f"the classifier of class prompts is for {classifier['kernel'].shape[-1]} classes, but there are "
                f"{outputs.logits.shape[1]}; train on the class list that the prompt was made for."
            )
        scores = jax.vmap(lambda own, seen: linear(own["kernel"], norm(own["norm"], seen)))(classifier, found.attended)
        losses = _losses(scores, jnp.broadcast_to(labels[:, None], scores.shape[:-1]), valid)  # [layers, images, k]
        own_class = jnp.broadcast_to((found.selected == labels[:, None]) & found.keep, losses.shape)
        return total + class_weight * jnp.sum(losses * own_class) / jnp.maximum(jnp.sum(own_class), 1)

    return loss


def _mean(scores: Array, labels: Array, valid: Array | None) -> Array:
    return _losses(scores, labels, valid).mean()


def _losses(scores: Array, labels: Array, valid: Array | None) -> Array:
    scores = scores if valid is None else jnp.where(valid, scores, _EXCLUDED)
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels)
