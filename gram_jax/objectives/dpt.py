"""The loss of DPT in two stages: first each side against the other's frozen features, then both together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gram_jax.clip import Clip, logits
from gram_jax.errors import InputError, require_number
from gram_jax.objectives.base import exclude
from gram_jax.tuners import Prompt, Tuner, frozen_outputs
from gram_jax.tuners.dpt import dpt_outputs
from gram_jax.tuners.networks import linear, norm

Array = jax.Array
_BOTH = 0.1  # weight of the prompted logits in the first stage


def dpt_loss(tuner: Tuner, class_weight: float = 0.3) -> Callable[[Prompt, Clip, dict[str, Any]], Array]:
    """Makes the loss that DPT is trained with.

    With f, t the prompted features, f0, t0 the frozen ones under the template of the classes, <f, t> the scaled
    cosines, and C_j the classifier's logits of the attention output of class j (see `dpt`),

        guided      CE(<f0, t>) + CE(<f, t0>) + 0.1 CE(<f, t>)         in the first 30 epochs, as published
        afterwards  CE(<f, t>)
        always      + alpha mean CE(C_y),    over layers and images whose own class y is among the selected classes.

    Args:
      tuner: a tuner that `dpt` made.
      class_weight: alpha, >= 0. Unless it is 0, the tuner must have `class_specific=True`.

    Returns:
      `loss(prompt, clip, batch) -> scalar`, as `gram_jax.tuning.make_tuning` takes it. `batch` is a dictionary:
      "classes" and "images" for the tuner, "labels" int `[images]`, "guided" bool, a scalar, and "valid" bool
      `[classes]` (missing if every class counts).

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
        raise InputError(f"dpt_loss needs the tuner 'dpt', not {tuner.name!r}")
    require_number("class_weight", class_weight, least=0)
    if class_weight and not tuner.settings["class_specific"]:
        raise InputError(
            f"class_weight={class_weight} needs a dpt with class_specific=True; make it so, or set class_weight=0"
        )

    def loss(prompt: Prompt, clip: Clip, batch: dict[str, Any]) -> Array:
        forward = dpt_outputs(tuner.settings, prompt, clip, batch["classes"], batch["images"])
        outputs, labels, valid = forward.outputs, jnp.asarray(batch["labels"]), batch.get("valid")
        frozen = forward.frozen or frozen_outputs(clip, batch["classes"], batch["images"])
        scale = clip.params["logit_scale"]
        both = _losses(outputs.logits, labels, valid).mean()
        by_text = _losses(logits(frozen.image_features, outputs.text_features, scale), labels, valid).mean()
        by_image = _losses(logits(outputs.image_features, frozen.text_features, scale), labels, valid).mean()
        total = jnp.where(batch["guided"], by_text + by_image + _BOTH * both, both)
        if not class_weight:
            return total
        classifier, count = prompt["classifier"], outputs.logits.shape[1]
        if classifier["kernel"].shape[-1] != count:
            raise InputError(
                f"the classifier of the DPT prompt has {classifier['kernel'].shape[-1]} classes, and there are {count};"
                " train on the class list that the prompt was initialized for"
            )
        scores = jax.vmap(lambda own, x: linear(own["kernel"], norm(own["norm"], x)))(classifier, forward.attended)
        losses = _losses(scores, jnp.broadcast_to(labels[:, None], scores.shape[:-1]), valid)  # [layers, images, k]
        assert forward.keep is not None  # `class_specific` needs class-aware layers
        own_class = jnp.broadcast_to(forward.keep & (forward.selected == labels[:, None]), losses.shape)
        return total + class_weight * jnp.sum(losses * own_class) / jnp.maximum(jnp.sum(own_class), 1)

    return loss


def _losses(scores: Array, labels: Array, valid: Array | None) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(exclude(scores, valid), labels)
