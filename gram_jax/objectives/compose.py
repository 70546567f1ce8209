"""Adding objectives up: the classification loss plus weighted regularizers, named by a text or given as functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from gram_jax.clip import Clip, logits
from gram_jax.errors import InputError, require_known, require_number
from gram_jax.objectives.base import Classification, Reference, Regularizer, Regularizers, as_reference, exclude
from gram_jax.objectives.cpt import cpt
from gram_jax.objectives.cross_entropy import cross_entropy
from gram_jax.objectives.distillation import distillation
from gram_jax.objectives.kgcoop import kgcoop
from gram_jax.objectives.long_tail import long_tailed
from gram_jax.objectives.npt import npt
from gram_jax.objectives.promptsrc import prometar, promptsrc
from gram_jax.registry import Call, Registry, parse_call, split_calls
from gram_jax.tuners import Outputs, Tuner

Array = jax.Array
PyTree = Any
Objective = Callable[..., tuple[Array, dict[str, Array]]]

REGISTRY: Registry[Regularizers] = Registry("objective", cpt, distillation, kgcoop, npt, prometar, promptsrc)
# These change the classification loss itself. Their number is a setting of `long_tailed`, here with its default.
CLASSIFICATION = {"logit_adjustment": ("adjustment", 1.0), "class_weights": ("exponent", 1.0)}
NAMES = tuple(sorted((*REGISTRY.names, *CLASSIFICATION)))


def regularized(
    regularizers: Mapping[str, Regularizer | tuple], *, classification: Classification | None = None
) -> Objective:
    """Makes the objective  CE + sum_i w_i R_i.

    Regularizers of several methods are joined with `|`: `regularized(kgcoop() | promptsrc())`.

    Args:
      regularizers: a `Regularizer`, or a pair of a weight and a function, by name; may be empty.
      classification: `classification(outputs, labels, reference) -> scalar` in place of the cross-entropy, e.g.
        `long_tailed()`.

    Returns:
      `objective(prompt, outputs, labels, reference=None) -> (loss, parts)`. `reference` is a `Reference`, or the
      `Outputs` of the frozen clip, or None if no regularizer reads it; padded classes and images do not count. `parts`
      holds "cross_entropy" and the value of each regularizer, without its weight, for logs.

    Example:
      >>> def stay_near(prompt, outputs, labels, reference):
      ...     return 1 - jnp.mean(jnp.sum(outputs.text_features * reference.text_features, axis=-1))
      >>> objective = regularized({"text": (8.0, stay_near)})
      >>> outputs = Outputs(jnp.zeros((1, 2)), jnp.ones((1, 1)), jnp.array([[1.0], [-1.0]]))
      >>> reference = outputs._replace(text_features=jnp.ones((2, 1)))
      >>> loss, parts = objective({}, outputs, jnp.array([0]), reference)
      >>> float(parts["text"]), round(float(loss - parts["cross_entropy"]), 4)
      (1.0, 8.0)
    """
    if "cross_entropy" in regularizers:
        raise InputError("the regularizer 'cross_entropy' has the name of the loss itself; give it another name")
    penalty = weighted_sum(regularizers)

    def objective(
        prompt: PyTree, outputs: Outputs, labels: Array, reference: Reference | Outputs | None = None
    ) -> tuple[Array, dict[str, Array]]:
        reference = as_reference(reference)
        outputs = outputs._replace(logits=exclude(outputs.logits, reference.valid))
        if classification is None:
            loss = cross_entropy(outputs, labels, weights=reference.weights)
        else:
            loss = classification(outputs, labels, reference)
        added, parts = penalty(prompt, outputs, labels, reference)
        return loss + added, {"cross_entropy": loss} | parts

    return objective


def weighted_sum(regularizers: Mapping[str, Regularizer | tuple]) -> Objective:
    """Makes the sum  sum_i w_i R_i  without a classification loss, whose gradient is a reference gradient.

    Args:
      regularizers: as in `regularized`.

    Returns:
      `penalty(prompt, outputs, labels, reference=None) -> (sum, parts)`. The labels may be None if no regularizer
      reads them.
    """
    terms = {}
    for name, given in regularizers.items():
        if not isinstance(given, tuple) or len(given) < 2 or not callable(given[1]):
            raise InputError(f"regularizer {name!r} must be a pair (weight, function), not {given!r}")
        require_number(f"regularizer {name!r}: weight", given[0])
        terms[name] = Regularizer(*given)

    def penalty(
        prompt: PyTree, outputs: Outputs, labels: Array | None, reference: Reference | Outputs | None = None
    ) -> tuple[Array, dict[str, Array]]:
        reference = as_reference(reference)
        total, parts = jnp.zeros(()), {}
        for name, term in terms.items():
            value = term.function(prompt, outputs, labels, reference)
            if jnp.shape(value):
                raise InputError(f"regularizer {name!r} must return a scalar, not shape {list(jnp.shape(value))}")
            parts[name] = value
            total = total + term.weight * value
        return total, parts

    return penalty


class Term(NamedTuple):
    """An objective by name, with its weight and settings; `str(term)` is its text form."""

    name: str
    weight: float
    settings: Mapping[str, Any] = FrozenDict()

    def __str__(self) -> str:
        return f"{Call(self.name, dict(self.settings))}:{self.weight!r}"


def terms(spec: str | Iterable[Term]) -> tuple[Term, ...]:
    """Returns the terms of a text, in its order: NAME[(settings)][:WEIGHT], separated by commas.

    Args:
      spec: the text, e.g. "npt(centered=True):1.0,kgcoop:8". Without a weight, the default of the factory holds, which
        is the published one if there is one. Terms are returned as they are.

    Example:
      >>> terms("npt(centered=True):0.5, kgcoop")
      (Term(name='npt', weight=0.5, settings={'centered': True}), Term(name='kgcoop', weight=8.0, settings={}))
      >>> terms("kgcop:8")
      Traceback (most recent call last):
        ...
      gram_jax.errors.InputError: objective='kgcop' is unknown (did you mean 'kgcoop'?); choose from ...
    """
    result = tuple(map(_term, split_calls(spec))) if isinstance(spec, str) else tuple(spec)
    for position, (name, _, settings) in enumerate(result):
        require_known("objective", name, (*REGISTRY.names, *CLASSIFICATION))
        if name in (other.name for other in result[:position]):
            raise InputError(f"{','.join(map(str, result))!r} names {name!r} twice; name it once")
        if name in CLASSIFICATION and settings:
            raise InputError(f"{name!r} has no setting {next(iter(settings))!r}; its number follows a colon: {name}:1")
        if "weight" in settings:
            raise InputError(f"the weight of {name!r} follows a colon: {name}:{settings['weight']}")
        if name not in CLASSIFICATION:
            REGISTRY.check_settings(name, dict(settings))
    return result


def _term(text: str) -> Term:
    head, colon, number = text.rpartition(":")
    weighted = bool(colon) and ")" not in number  # a colon may also be inside the settings
    name, settings = parse_call(head if weighted else text)
    require_known("objective", name, (*REGISTRY.names, *CLASSIFICATION))
    if not weighted:
        default = CLASSIFICATION[name][1] if name in CLASSIFICATION else REGISTRY.settings(name)["weight"].default
        return Term(name, default, settings)
    try:
        return Term(name, float(number), settings)
    except ValueError:
        raise InputError(f"the weight {number!r} of {name!r} is not a number; write it as {name}:1.0") from None


class Combined(NamedTuple):
    """An objective and what it needs.

    Attributes:
      loss: `loss(prompt, outputs, labels, reference=None) -> (scalar, parts)`; see `regularized`.
      penalty: the same without the classification loss; see `weighted_sum`.
      weights: the weight of every regularizer, named as in `parts`.
      reads: the fields of the `Reference` that must not be None.
    """

    loss: Objective
    penalty: Objective
    weights: Mapping[str, float]
    reads: frozenset[str]


def parse(spec: str | Iterable[Term], tuner: Tuner | None = None) -> Combined:
    """Returns the objective that a text names: the classification loss plus weighted regularizers.

    "" is the cross-entropy alone. The numbers of "logit_adjustment" and "class_weights" are the strength and the
    exponent of `long_tailed`, which replaces the cross-entropy.

    Args:
      spec: the text, see `terms`; or terms.
      tuner: the tuner that is trained; a regularizer that cannot change its prompt is an error. None: not checked.

    Example:
      >>> objective = parse("npt(image=0.0):2,kgcoop")
      >>> dict(objective.weights), sorted(objective.reads)
      ({'npt_text': 2.0, 'kgcoop': 8.0}, ['text_features'])
    """
    regularizers: Regularizers = {}
    tail: dict[str, float] = {}
    for name, weight, settings in terms(spec):
        if name in CLASSIFICATION:
            tail[CLASSIFICATION[name][0]] = weight
            continue
        parts = REGISTRY.make(name, weight=weight, **settings)
        sides = {side for part in parts.values() for side in part.sides}
        if tuner is not None and sides and not sides & tuner.changes:
            raise InputError(
                f"{name} acts on {' and '.join(sorted(sides, reverse=True))} features, which no prompt of the tuner "
                f"{tuner.name!r} changes; drop {name}, or choose another tuner"
            )
        regularizers |= parts
    reads = {field for part in regularizers.values() for field in part.reads} | ({"counts"} if tail else set())
    weights: Mapping[str, float] = FrozenDict({name: part.weight for name, part in regularizers.items()})
    loss = regularized(regularizers, classification=long_tailed(**tail) if tail else None)
    return Combined(loss, weighted_sum(regularizers), weights, frozenset(reads))


def positive_terms(spec: str | Iterable[Term]) -> tuple[Term, ...]:
    """Returns the terms of a text, sorted by name; raises InputError unless all weights are above 0.

    Args:
      spec: the text, or terms; see `terms`.

    Example:
      >>> [str(term) for term in positive_terms("npt:0.5,kgcoop")]
      ['kgcoop:8.0', 'npt:0.5']
    """
    result = sorted(terms(spec), key=lambda term: term.name)
    for term in result:
        require_number(f"{term.name}: weight", term.weight, above=0)
    return tuple(result)


class BatchLoss(NamedTuple):
    """A loss of a prompt on a batch, and the contents that the batch must have; see `batch_loss`.

    Attributes:
      loss: `loss(prompt, clip, batch) -> scalar`; with a reference, `-> (scalar, scalar)`: the loss, and the value
        whose gradient a regulator reads.
      weights: the weight of each regularizer.
      texts: the regularizers whose frozen text features the batch must hold.
      reads: the fields of a `Reference` that are read.
    """

    loss: Callable[[PyTree, Clip, dict[str, Any]], Any]
    weights: Mapping[str, float]
    texts: tuple[str, ...]
    reads: frozenset[str]


def batch_loss(tuner: Tuner, spec: str | Iterable[Term] = "", *, reference: str | Iterable[Term] = "") -> BatchLoss:
    """Makes the loss of a batch: classification plus regularizers, for any tuner.

        loss      = CE( where(valid, logits, -1e9), labels ) + sum_i w_i R_i
        reference = sum_j w_j R_j                                             if `reference` names R_j

    Both come from one forward pass. The frozen features that they read come with the batch, as data.

    Args:
      tuner, spec: the tuner, and regularizers with weights above 0, see `terms`.
      reference: regularizers whose gradient a regulator such as `gram_jax.regulators.prograd` reads; "" for none.

    Returns:
      The loss. Its `batch` is a dictionary: "classes" and "images" for the tuner, "labels" int `[images]`, "valid" bool
      `[classes]` (missing if every class counts), and two dictionaries "reference" and "run_reference" that are merged
      (missing if nothing is read):

      * "text_features": frozen features of the classes `[classes, embed]`, normalized, for each name of `texts`;
      * "image_features": frozen features of the images, `[images, embed]`; images that are features already serve too;
      * "counts", "clusters": as in `Reference`.

      The frozen logits that a regularizer reads are computed from these features, with the text features of its own.

    Example:
      >>> from gram_jax import tuners
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(text_layers=1), tuners.coop()
      >>> classes = clip.class_tokens(["cat", "dog"])
      >>> batch = {"classes": classes, "images": jnp.ones((3, 16)) / 4, "labels": jnp.array([0, 1, 1])}
      >>> batch["reference"] = {"text_features": {"kgcoop": jnp.ones((2, 16)) / 4}}
      >>> batch_loss(tuner, "kgcoop:8").loss(tuner.init(jax.random.key(0), clip, classes), clip, batch).shape
      ()
    """
    chosen = positive_terms(spec)
    classification = parse([term for term in chosen if term.name in CLASSIFICATION])
    added, compared = (
        {term.name: parse([term], tuner) for term in named if term.name not in CLASSIFICATION}
        for named in (chosen, positive_terms(reference))
    )
    if reference and not compared:
        raise InputError(f"reference={reference!r} must name a regularizer, such as 'distillation'")

    def loss(prompt: PyTree, clip: Clip, batch: dict[str, Any]) -> Any:
        outputs = tuner.apply(prompt, clip, batch["classes"], batch["images"])
        known = (batch.get("reference") or {}) | (batch.get("run_reference") or {})

        def total(objectives: Mapping[str, Combined]) -> Array:
            value = jnp.zeros(())
            for name, objective in objectives.items():
                own = _reference(name, objective, clip, batch, known)
                value += objective.penalty(prompt, outputs, batch["labels"], own)[0]
            return value

        plain = Reference(valid=batch.get("valid"), weights=batch.get("weights"), counts=known.get("counts"))
        value = classification.loss(prompt, outputs, batch["labels"], plain)[0] + total(added)
        return (value, total(compared)) if compared else value

    every = [*added.items(), *compared.items()]
    reads = frozenset().union(classification.reads, *(objective.reads for _, objective in every))
    texts = tuple(dict.fromkeys(name for name, objective in every if objective.reads & {"text_features", "logits"}))
    return BatchLoss(loss, FrozenDict({term.name: term.weight for term in chosen}), texts, reads)


def _reference(name: str, objective: Combined, clip: Clip, batch: dict[str, Any], known: dict[str, Any]) -> Reference:
    """Returns the reference of one regularizer: its own text features, and logits computed from them."""
    texts = known.get("text_features", {}).get(name)
    images = known.get("image_features")
    if images is None and jnp.ndim(batch["images"]) == 2:
        images = batch["images"]
    scores = None
    if "logits" in objective.reads and texts is not None and images is not None:
        scores = logits(images, texts, clip.params["logit_scale"])
    return Reference(
        scores, images, texts, batch.get("valid"), batch.get("weights"), known.get("counts"), known.get("clusters")
    )
