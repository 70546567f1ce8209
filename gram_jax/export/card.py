"""The JSON file beside every exported classifier: class names, the form of its input, and where it comes from."""

from __future__ import annotations

from typing import Any

import numpy as np

from gram_jax.clip import ImageTransform, weights_hash
from gram_jax.errors import InputError
from gram_jax.evaluation.scoring import Scorer

CARD = "classifier.json"


def describe(scorer: Scorer) -> dict[str, Any]:
    """Returns JSON values that describe an exported classifier.

    Args:
      scorer: the classifier, from `evaluation.make_scorer`.

    Returns:
      "class_names" in the order of the probabilities; "image_size", pixels; "logit_scale", the factor of the cosines;
      "preprocessing", the content of a Hugging Face `preprocessor_config.json`; "tuner" with its settings; and
      "clip_weights_hash".
    """
    clip = scorer.clip
    return {
        "class_names": list(scorer.names),
        "image_size": clip.config.vision.image_size,
        "logit_scale": float(np.exp(np.float64(clip.params["logit_scale"]))),
        "preprocessing": transform_of(scorer).to_hf(),
        "tuner": {"name": scorer.tuner.name, "settings": dict(scorer.tuner.settings)},
        "clip_weights_hash": weights_hash(clip.params),
    }


def transform_of(scorer: Scorer) -> ImageTransform:
    """Returns the image transform of a scorer's clip."""
    if scorer.clip.transform is None:
        raise InputError("this clip has no image transform; add one with clip.replace(transform=...)")
    return scorer.clip.transform
