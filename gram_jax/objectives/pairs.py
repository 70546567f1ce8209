"""The loss of pairs: cross-entropies of pairs, attributes and objects, weighted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.clip import Clip
from gram_jax.errors import require_known, require_number
from gram_jax.objectives.cross_entropy import cross_entropy
from gram_jax.tuners import Outputs, Prompt, Tuner
from gram_jax.tuners.dfsp import dfsp_branches
from gram_jax.tuners.pairs import PairClasses, check_pairs, marginal
from gram_jax.tuners.troika import troika_branches

Array = jax.Array
_BRANCHES = {"dfsp": dfsp_branches, "troika": troika_branches}
# Weights of the public codes; for Troika those of MIT-States and UT-Zappos (C-GQA: 0.1 for attributes and objects).
WEIGHTS: dict[str, dict[str, float]] = {
    "dfsp": {"pair": 1.0, "unfused": 0.1, "attribute": 0.01, "object": 0.01},
    "troika": {"pair": 1.0, "attribute": 1.0, "object": 1.0},
}
_PLAIN = {"pair": 1.0, "attribute": 0.0, "object": 0.0}


def pair_branches(
    tuner: Tuner, prompt: Prompt, clip: Clip, classes: PairClasses, images: Array, key: Array | None = None
) -> dict[str, Array]:
    """Returns logits by the name of a term of the loss: at least "pair", "attribute" and "object".

    Tuners without branches of their own have the logits of pairs, and

        attribute logit = log sum over the pairs of the attribute of exp(pair logit),    objects alike.

    Args:
      tuner, prompt, clip, images: as in `Tuner.apply`.
      classes: a class list of pairs; tuners of class names read its names.
      key: for the dropout of tuners of pairs; None: none.
    """
    check_pairs(classes)
    if tuner.name in _BRANCHES:
        return _BRANCHES[tuner.name](tuner.settings, prompt, clip, classes, images, key)[1]
    scores = pair_outputs(tuner, prompt, clip, classes, images, key).logits
    sizes = len(classes.attributes.tail_ids), len(classes.objects.tail_ids)
    sides = zip(("attribute", "object"), classes.pair.T, sizes, strict=True)
    return {"pair": scores} | {side: marginal(scores, parts, size) for side, parts, size in sides}


def pair_outputs(
    tuner: Tuner, prompt: Prompt, clip: Clip, classes: PairClasses, images: Array, key: Array | None = None
) -> Outputs:
    """Returns the outputs of any tuner on a class list of pairs.

    Args:
      tuner, prompt, clip, classes, images, key: as in `pair_branches`.
    """
    if tuner.needs_pairs:
        return tuner.apply(prompt, clip, classes, images, key)  # type: ignore[call-arg]  # the key of tuners of pairs
    return tuner.apply(prompt, clip, classes.names, images)


def pair_loss(
    tuner: Tuner, weights: Mapping[str, float] | None = None
) -> Callable[[Prompt, Clip, dict[str, Any]], Array]:
    """Makes the loss of a tuner on images of pairs.

        loss = sum over terms of w_term * CE( logits of the term, label of its kind ),

    where "pair" and DFSP's "unfused" are classified among the pairs of the class list, "attribute" and "object" among
    attributes and objects.

    Args:
      tuner: any tuner of text prompts.
      weights: w by term; None: those of the public code, and the cross-entropy of pairs alone for other tuners.

    Returns:
      `loss(prompt, clip, batch) -> scalar`, as `gram_jax.tuning.make_tuning` takes it. `batch` is a dictionary:
      "classes" from `pair_classes`, "images", "labels" int `[images]`, and, if they are wanted, "key" for dropout,
      "class_weights" `[P]`, the weight of an image by its pair, and "term_weights", which replaces w, as arrays.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> from gram_jax.tuners import csp, pair_classes
      >>> clip, tuner = tiny_clip(), csp()
      >>> classes = pair_classes(clip, ["red", "small"], ["cat", "dog"], [[0, 0], [1, 1]])
      >>> batch = {"classes": classes, "images": jnp.ones((2, 16)) / 4, "labels": jnp.array([0, 1])}
      >>> pair_loss(tuner)(tuner.init(jax.random.key(0), clip, classes), clip, batch).shape
      ()

    Reference:
      "Decomposed Soft Prompt Guided Fusion", equations 12 to 15; "Troika", equations 9 to 11; public codes.
    """
    own = dict(WEIGHTS.get(tuner.name, _PLAIN) if weights is None else weights)
    for name, weight in own.items():
        require_known("term", name, WEIGHTS.get(tuner.name, _PLAIN))
        require_number(f"weight of {name}", weight, least=0)

    def loss(prompt: Prompt, clip: Clip, batch: dict[str, Any]) -> Array:
        classes, labels = batch["classes"], jnp.asarray(batch["labels"])
        branches = pair_branches(tuner, prompt, clip, classes, batch["images"], batch.get("key"))
        attribute, object_ = classes.pair[labels].T
        of_kind = {"attribute": attribute, "object": object_}
        per_image = None if batch.get("class_weights") is None else batch["class_weights"][labels]
        total = jnp.zeros(())
        for name, weight in {**own, **batch.get("term_weights", {})}.items():
            outputs = Outputs(branches[name], None, None)  # type: ignore[arg-type]  # only the logits are read
            total += weight * cross_entropy(outputs, of_kind.get(name, labels), weights=per_image)
        return total

    return loss
