"""The loss of a batch under any regularizers, and the loss that a regulator holds it against."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from gram_jax.clip import Clip, logits
from gram_jax.errors import InputError
from gram_jax.objectives.base import Reference
from gram_jax.objectives.registry import CLASSIFICATION, Combined, default_weight, make, parse

if TYPE_CHECKING:
    from gram_jax.tuners import Tuner

Array = jax.Array
PyTree = Any


class BatchLoss(NamedTuple):
    """A loss of a prompt on a batch, and what the batch must hold for it; see `batch_loss`.

    Attributes:
      loss: `loss(prompt, clip, batch) -> scalar`; or `-> (scalar, scalar)`, the loss and the one whose gradient a
        regulator reads, where one is named.
      weights: the regularizers with their weights.
      texts: the names whose frozen text features the batch must hold.
      reads: the fields of a `Reference` that anything reads.

    Example:
      >>> from gram_jax import tuners
      >>> batch_loss(tuners.coop(), "kgcoop:8,promptsrc").texts
      ('kgcoop', 'promptsrc')
    """

    loss: Callable[[PyTree, Clip, dict[str, Any]], Any]
    weights: Mapping[str, float]
    texts: tuple[str, ...]
    reads: frozenset[str]


def batch_loss(
    tuner: Tuner, spec: str = "", *, settings: Mapping[str, Mapping[str, Any]] | None = None, reference: str = ""
) -> BatchLoss:
    """The loss of a batch: classification plus regularizers, for whatever tunes a prompt.

        loss = CE( where(valid, logits, -1e9), labels ) + sum_i w_i R_i
        held = sum_j w_j R_j                                                 where `reference` names R_j

    Both are of one forward pass. What they are held against comes with the batch, as data.

    Args:
      tuner: the tuner.
      spec: regularizers with weights, as `make` reads them, each weight above 0.
      settings: by name, settings of a regularizer.
      reference: regularizers whose gradient a regulator such as `gram_jax.regulators.prograd` reads; "" for none.

    Returns:
      The loss. Its `batch` is a dictionary: "classes" and "images" as the tuner takes them, "labels" int `[images]`,
      "valid" bool `[classes]` (may be missing where every class counts), and in "reference" and "run_reference", two
      dictionaries that are read as one (may be missing where nothing is read):

      * "text_features": by name of `texts`, frozen features of the classes `[classes, embed]`, normalized;
      * "image_features": frozen features of the images, `[images, embed]`; where the images are such, they serve;
      * "counts", "clusters": as in `Reference`.

      The frozen logits that a regularizer reads are made of these features, its own text among them.

    Raises:
      InputError: as `make` and `positive_weights`; on a batch, where something is missing that is read.

    Example:
      >>> from gram_jax import tuners
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(text_layers=1), tuners.coop()
      >>> classes = clip.class_tokens(["cat", "dog"])
      >>> batch = {"classes": classes, "images": jnp.ones((3, 16)) / 4, "labels": jnp.array([0, 1, 1])}
      >>> batch["reference"] = {"text_features": {"kgcoop": jnp.ones((2, 16)) / 4}}
      >>> batch_loss(tuner, "kgcoop:8").loss(tuner.init(jax.random.key(0), clip, classes), clip, batch).shape
      ()

    Reference:
      Our own choice of form; see the regularizers.
    """
    settings = dict(settings or {})
    weights = positive_weights(spec)
    for name in settings:
        if name not in weights:
            raise InputError(f"settings of {name!r} are given, and {spec!r} does not name it; add it, or drop them.")

    def terms(weights: Mapping[str, float], own: Mapping[str, Any]) -> dict[str, Combined]:
        found = {}
        for name, weight in weights.items():
            if name not in CLASSIFICATION:
                given = {name: own[name]} if name in own else {}
                found[name] = make(f"{name}:{weight!r}", tuner=tuner, **given)
        return found

    classified = {name: weight for name, weight in weights.items() if name in CLASSIFICATION}
    classification = make(
        ",".join(f"{name}:{weight!r}" for name, weight in classified.items()),
        **{name: settings[name] for name in classified if name in settings},
    )
    added, held = terms(weights, settings), terms(positive_weights(reference), {})

    def loss(prompt: PyTree, clip: Clip, batch: dict[str, Any]) -> Any:
        outputs = tuner.apply(prompt, clip, batch["classes"], batch["images"])
        known = (batch.get("reference") or {}) | (batch.get("run_reference") or {})

        def total(terms: Mapping[str, Combined]) -> Array:
            found = jnp.zeros(())
            for name, term in terms.items():
                own = _reference(name, term, clip, batch, known)
                found = found + term.penalty(prompt, outputs, batch["labels"], own)[0]
            return found

        plain = Reference(valid=batch.get("valid"), weights=batch.get("weights"), counts=known.get("counts"))
        value = classification.loss(prompt, outputs, batch["labels"], plain)[0] + total(added)
        return (value, total(held)) if held else value

    every = [*added.items(), *held.items()]
    reads = frozenset().union(classification.reads, *(term.reads for _, term in every))
    texts = tuple(dict.fromkeys(name for name, term in every if term.reads & {"text_features", "logits"}))
    return BatchLoss(loss, FrozenDict(weights), texts, reads)


def positive_weights(spec: str) -> dict[str, float]:
    """The regularizers of a text with their weights, the published ones filled in, in the order of their names.

    Args:
      spec: as `make` reads it.

    Returns:
      Weights by name.

    Raises:
      InputError: as `make`; or if a weight is not a positive number.

    Example:
      >>> positive_weights("npt:0.5,kgcoop")
      {'kgcoop': 8.0, 'npt': 0.5}

    Reference:
      Our own choice.
    """
    found = {name: default_weight(name) if weight is None else weight for name, weight in parse(spec).items()}
    for name, weight in found.items():
        if not 0 < weight < math.inf:
            raise InputError(f"the weight of {name!r} is {weight!r}; give a positive number, or leave {name!r} out.")
    return dict(sorted(found.items()))


def _reference(name: str, term: Combined, clip: Clip, batch: dict[str, Any], known: dict[str, Any]) -> Reference:
    """What one regularizer is held against: its own text, and logits of it."""
    texts = known.get("text_features", {}).get(name)
    images = known.get("image_features")
    if images is None and jnp.ndim(batch["images"]) == 2:
        images = batch["images"]
    scores = None
    if "logits" in term.reads and texts is not None and images is not None:
        scores = logits(images, texts, clip.params["logit_scale"])
    return Reference(
        scores, images, texts, batch.get("valid"), batch.get("weights"), known.get("counts"), known.get("clusters")
    )
