"""A scorer as a function of images alone, traced for an open number of images."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jax.extend.core import ClosedJaxpr
from jax.interpreters import partial_eval

from gram_jax.clip import Clip
from gram_jax.evaluation.scoring import Scorer, score

BATCH = "batch"


def symbolic_images(clip: Clip) -> jax.ShapeDtypeStruct:
    """Returns the shape of the input, float32 `[batch, size, size, channels]`."""
    (batch,) = export.symbolic_shape(BATCH)
    vision = clip.config.vision
    return jax.ShapeDtypeStruct((batch, vision.image_size, vision.image_size, vision.channels), jnp.float32)


def traced(scorer: Scorer, images: jax.ShapeDtypeStruct) -> Any:
    """Returns the `ClosedJaxpr` of probabilities as a function of images.

    Weights are constants. Everything that the result does not need is left out: with fixed texts, the text transformer.
    """
    apply, (prompt, clip, _, classes, texts) = scorer.tuner.apply, scorer[1:]

    def probabilities(images: jax.Array) -> jax.Array:
        return score(apply, prompt, clip, classes, texts, images)

    closed = jax.jit(probabilities).trace(images).jaxpr
    jaxpr, used, _ = partial_eval.dce_jaxpr_consts(closed.jaxpr, [True], instantiate=True)
    return ClosedJaxpr(jaxpr, [const for const, needed in zip(closed.consts, used, strict=True) if needed])
