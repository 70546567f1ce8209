"""Frozen texts, class clusters and contexts: everything besides images that losses and regulators read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gram_jax import meta, objectives
from gram_jax.data import Dataset, coop, templates
from gram_jax.evaluation.encoder import PHOTO, Encoder
from gram_jax.regulators import Regulator
from gram_jax.tuning import pad_classes

# Regularizers whose reference text is the mean of many templates. The others use the dataset's own template, or the
# template that their public code has for the dataset (`CoopDataset.loss_templates`).
_ENSEMBLES = {"promptsrc": "promptsrc_60", "prometar": "promptsrc_60"}


def reads_context(regulator: Regulator) -> bool:
    """Returns whether a regulator reads the context of a task, or its relation to prototypes."""
    return regulator.settings.get("context_dim") is not None or "prototypes" in regulator.settings


def regulator_contexts(
    regulator: Regulator, structure: meta.Structure | None, contexts: np.ndarray | None
) -> np.ndarray | None:
    """Returns what a regulator reads of tasks with the contexts `[tasks, context_dim]`; None if it reads nothing."""
    if not reads_context(regulator):
        return None
    if "prototypes" not in regulator.settings:
        return contexts
    assert structure is not None
    return None if contexts is None else np.stack([meta.relation(structure, context) for context in contexts])


def task_contexts(encoder: Encoder, supports: Sequence[Dataset]) -> np.ndarray:
    """Returns the contexts of tasks that share their classes, `[tasks, context_dim]`."""
    text = jnp.asarray(encoder.texts(supports[0].class_names, PHOTO))
    return np.stack([meta.task_context(encoder.clip, jnp.asarray(encoder.features(each)), text) for each in supports])


def templates_of(name: str, dataset: Dataset) -> tuple[str, ...]:
    """Returns the templates of the text features that a regularizer compares the classes of a dataset with."""
    if name in _ENSEMBLES:
        return templates.ensemble(_ENSEMBLES[name])
    facts = coop.facts(dataset.name)
    return (facts.loss_templates.get(name, dataset.template) if facts else dataset.template,)


def class_reference(encoder: Encoder, dataset: Dataset, loss: objectives.BatchLoss) -> dict[str, Any]:
    """Returns what a loss reads about the classes of a dataset: "text_features" by regularizer, and "clusters".

    All of it is padded to the shape that other class lists share.
    """
    names, texts = dataset.class_names, {}
    for name in loss.texts:
        own = templates_of(name, dataset)
        own_texts = jnp.asarray(encoder.texts(names, own[0] if len(own) == 1 else own))
        texts[name] = pad_classes(encoder.clip, own_texts)[0]
    reference: dict[str, Any] = {"text_features": texts}
    if "clusters" in loss.reads:
        clusters = objectives.class_clusters(encoder.texts(names, dataset.template))
        reference["clusters"] = pad_classes(encoder.clip, jnp.asarray(clusters))[0]
    return reference
