"""Baselines that learn no prompt: hand-written texts, a linear probe, and Tip-Adapter's cache.

A baseline is fitted to a task once and then classifies frozen image features.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from jax.typing import ArrayLike

from gram_jax.clip import Clip, logits
from gram_jax.data import coop
from gram_jax.data import templates as published
from gram_jax.data.readers.coop_datasets import TipSettings
from gram_jax.errors import InputError, require_bool, require_int, require_number
from gram_jax.evaluation.features import class_features
from gram_jax.evaluation.tip_adapter import KeyTuning, accuracy, cached_logits, search, tune_keys
from gram_jax.registry import Call, Registry, reduced

Array = jax.Array
State = dict[str, Array]
Labeled = tuple[Array, Array]

_STRENGTHS = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)  # CoOp's coarse grid for the linear probe
_HALVINGS = 8
_BETA = 1.0  # of Tip-Adapter's cache while its keys are tuned
_VIEWS, VIEW_SCALE = 10, (0.5, 1.0)  # of its public code: views of a key, and the area that they show


class Baseline(NamedTuple):
    """A method that classifies frozen image features.

    Attributes:
      name, settings: the method's name and its settings, JSON values; `make(name, **settings)` makes it again.
      fit: `fit(clip, names, features, labels, validation=None) -> state`: class names, labeled frozen image features
        `[images, embed_dim]`, int labels `[images]`, and a pair of such features and labels to choose settings with.
        Methods that read no labels take None for them. It cannot be traced.
      apply: `apply(state, clip, features) -> logits`, float32 `[images, classes]`; pure.
      needs_labels: whether `fit` reads labeled features.
      needs_validation: whether `fit` chooses settings on validation features.
      views: the number of augmented views of each labeled image that `fit` also reads, as `views=`: features `[images,
        views, embed_dim]`, not normalized.
      of_dataset: returns the baseline with the settings that were published for a dataset, by its name; None if there
        are none.
    """

    name: str
    settings: Mapping[str, Any]
    fit: Callable[..., State]
    apply: Callable[[State, Clip, ArrayLike], Array]
    needs_labels: bool
    needs_validation: bool = False
    views: int = 0
    of_dataset: Callable[[str], Baseline] | None = None

    def __reduce__(self) -> Any:
        return reduced(self, "gram_jax.evaluation.baselines", "baselines")

    def __repr__(self) -> str:
        return str(Call(self.name, dict(self.settings)))


def hand_crafted(template: str = published.DEFAULT) -> Baseline:
    """Returns zero-shot classification under one hand-written template.

    logits[b, c] = exp(logit_scale) * <f_b, text(template with name c)>

    Args:
      template: a text with one "{}" for the class name, e.g. `gram_jax.data.coop.facts("coop:dtd").template`.

    Example:
      >>> hand_crafted("a drawing of a {}.").settings["template"]
      'a drawing of a {}.'

    Reference:
      "Learning Transferable Visual Models From Natural Language Supervision", section 3.1.
    """
    return _of_texts("hand_crafted", {"template": template}, _texts([template]))


def ensemble(templates: str | Sequence[str] = "clip_7") -> Baseline:
    """Returns zero-shot classification under the mean over many templates.

    t_c = normalize( mean_j normalize( text(template_j with name c) ) )

    Args:
      templates: one of `gram_jax.data.templates.ENSEMBLES`, or texts with one "{}" each. CoOp's comparison is "clip_7"
        and, on datasets other than ImageNet, the dataset's own template as an eighth.

    Reference:
      "Learning Transferable Visual Models From Natural Language Supervision", section 3.1.4.
    """
    texts = _texts(templates)
    return _of_texts("ensemble", {"templates": templates if isinstance(templates, str) else texts}, texts)


def linear_probe(strength: float | None = None, max_iter: int = 1000) -> Baseline:
    """Returns multinomial logistic regression on frozen image features; it reads no text.

    min over W, b of  C sum_i CE(f_i W + b, y_i) + ||W||^2 / 2

    Args:
      strength: C. None chooses it on the validation features, which `fit` needs then, as published: the best of 10^6,
        10^4, ..., 10^-6, then eight times the better end of an interval of two decades, halved on a logarithmic scale.
      max_iter: the most iterations of L-BFGS; reaching it is not an error.

    Reference:
      "Learning Transferable Visual Models From Natural Language Supervision", appendix A.3; the search as in the public
      code of "Learning to Prompt for Vision-Language Models". There, features are not normalized.
    """
    if strength is not None:
        require_number("strength", strength, above=0)
    require_int("max_iter", max_iter)

    def fit(clip: Clip, names: Sequence[str], features: Any, labels: Any, validation: Labeled | None = None) -> State:
        features, labels = _check_labeled(names, features, labels)
        missing = sorted(set(range(len(names))) - set(labels.tolist()))
        if missing:
            raise InputError(f"class {names[missing[0]]!r} has no labeled image; a linear probe needs one per class")
        if strength is not None:
            return _regression(features, labels, strength, max_iter)
        queries, answers = _check_validation(names, validation, "linear_probe: strength")
        return _search_strength(features, labels, queries, answers, max_iter)

    def apply(state: State, clip: Clip, features: ArrayLike) -> Array:
        return jnp.matmul(jnp.asarray(features, jnp.float32), state["kernel"], precision="highest") + state["bias"]

    settings: FrozenDict[str, Any] = FrozenDict({"strength": strength, "max_iter": max_iter})
    return Baseline("linear_probe", settings, fit, apply, needs_labels=True, needs_validation=strength is None)


def tip_adapter(
    alpha: float | None = None,
    beta: float | None = None,
    templates: str | Sequence[str] = (published.DEFAULT,),
    epochs: int = 0,
    learning_rate: float = 0.001,
    batch_size: int = 256,
    seed: int = 0,
    recipe: bool = False,
) -> Baseline:
    """Returns Tip-Adapter: the labeled features as a cache, added to the zero-shot classifier.

    With keys k_i, the labeled features, one-hot labels y_i, and t_c as in `ensemble`,

        logits[b, c] = exp(logit_scale) * <f_b, t_c> + alpha sum_i exp( -beta (1 - <f_b, k_i>) ) y_ic.

    Tip-Adapter-F then tunes the keys by cross-entropy: AdamW with decay 0.01 and epsilon 10^-4, a cosine schedule, at
    the given alpha and beta, or 1.17 and 1; those that are not given are chosen afterwards. The keys of the last step
    are used.

    With `recipe`, all is as in the public code: a key is the normalized mean of ten augmented views, tuning sees a
    fresh view of each image in every epoch, and each published dataset has its own template, ends of the search, first
    alpha and number of epochs. One thing differs: the public code takes the epoch that is best on the test split, on
    ImageNet alpha and beta too, and reports the better of two test accuracies. Here, the validation features choose.

    Args:
      alpha: the weight of the cache. None chooses it on the validation features, which `fit` needs then: 20 values
        from 0.1 to 3.
      beta: the sharpness of the cache. None chooses it likewise: 200 values from 0.1 to 7.
      templates: as in `ensemble`; with `recipe`, of datasets without a published configuration.
      epochs: passes over the labeled features that tune the keys; 0 is Tip-Adapter, 20 is the published Tip-Adapter-F
        (with `recipe`, any number stands for that of the dataset).
      learning_rate, batch_size, seed: of AdamW and of the order of the labeled features; the last batch may be smaller.
      recipe: whether to follow the public code.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> clip, baseline = tiny_clip(), tip_adapter(alpha=1000.0, beta=5.5)
      >>> state = baseline.fit(clip, ["cat", "dog", "fish"], np.eye(3, 16, dtype=np.float32), np.arange(3))
      >>> baseline.apply(state, clip, np.eye(3, 16)).argmax(axis=1).tolist()
      [0, 1, 2]

    Reference:
      "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", section 3, equations 4 to 6; grids and
      optimizer as in its public code.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if value is not None:
            require_number(name, value, above=0)
    require_number("learning_rate", learning_rate, above=0)
    for name, value, least in (("epochs", epochs, 0), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        require_int(name, value, least)
    require_bool("recipe", recipe)
    texts = _texts(templates)
    settings = {"alpha": alpha, "beta": beta, "templates": templates if isinstance(templates, str) else texts}
    settings |= {"epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size, "seed": seed}
    return _tip_adapter(FrozenDict(settings | {"recipe": recipe}), texts, TipSettings())


def _tip_adapter(settings: Mapping[str, Any], texts: Sequence[str], own: TipSettings) -> Baseline:
    """Returns Tip-Adapter with the settings that were published for a dataset."""
    alpha, beta, recipe = settings["alpha"], settings["beta"], settings["recipe"]
    epochs = own.epochs if recipe and settings["epochs"] else settings["epochs"]
    how = KeyTuning(epochs, settings["learning_rate"], settings["batch_size"], settings["seed"])
    searched = alpha is None or beta is None
    needs_validation = searched or (recipe and epochs > 0)
    first = {"alpha": alpha or own.first_alpha, "beta": beta or _BETA}  # given ones are above 0

    def fit(
        clip: Clip, names: Sequence[str], features: Any, labels: Any, validation: Any = None, views: Any = None
    ) -> State:
        keys, labels = _check_labeled(names, features, labels)
        queried = None
        if needs_validation:
            queried = _check_validation(names, validation, "tip_adapter: alpha and beta")
        keys = keys if views is None else _unit(np.mean(views[:, :_VIEWS], axis=1))
        state = {"texts": class_features(clip, names, texts), "keys": jnp.asarray(keys)}
        state |= {"values": jax.nn.one_hot(labels, len(names)), **{k: jnp.float32(each) for k, each in first.items()}}
        scale = clip.params["logit_scale"]
        if epochs:
            shown = None if views is None else _unit(views[:, _VIEWS:])
            score = (lambda state: accuracy(state, scale, *queried)) if recipe and queried else None
            state["keys"] = tune_keys(state, scale, labels, how, shown, score)
        if not searched or queried is None:
            return state
        chosen = search(state, scale, *queried, alpha, beta, {"alpha": own.alpha, "beta": own.beta})
        return state | {name: jnp.float32(value) for name, value in zip(("alpha", "beta"), chosen, strict=True)}

    def apply(state: State, clip: Clip, features: ArrayLike) -> Array:
        return cached_logits(state, clip.params["logit_scale"], jnp.asarray(features, jnp.float32))

    views = _VIEWS + epochs if recipe else 0
    of_dataset = functools.partial(_of_dataset, settings, texts) if recipe else None
    return Baseline("tip_adapter", settings, fit, apply, True, needs_validation, views, of_dataset)


def _of_dataset(settings: Mapping[str, Any], texts: Sequence[str], name: str) -> Baseline:
    """Returns Tip-Adapter as its public code runs it on a dataset; with common settings on any other dataset."""
    facts = coop.facts(name)
    if facts is None:
        return _tip_adapter(settings, texts, TipSettings())
    return _tip_adapter(settings, _texts(facts.tip.templates or [facts.template]), facts.tip)


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


baselines: Registry[Baseline] = Registry("baseline", ensemble, hand_crafted, linear_probe, tip_adapter)
NAMES, make, parse = baselines.names, baselines.make, baselines.parse


def _of_texts(name: str, settings: dict[str, Any], texts: Sequence[str]) -> Baseline:
    def fit(
        clip: Clip, names: Sequence[str], features: Any = None, labels: Any = None, validation: Labeled | None = None
    ) -> State:
        return {"texts": class_features(clip, names, texts)}

    def apply(state: State, clip: Clip, features: ArrayLike) -> Array:
        return logits(jnp.asarray(features, jnp.float32), state["texts"], clip.params["logit_scale"])

    return Baseline(name, FrozenDict(settings), fit, apply, needs_labels=False)


def _search_strength(
    features: np.ndarray, labels: np.ndarray, queries: np.ndarray, answers: np.ndarray, max_iter: int
) -> State:
    """Returns the regression with the strength that is best on labeled queries."""
    tried: dict[float, tuple[float, State]] = {}

    def score(strength: float) -> float:
        if strength not in tried:
            state = _regression(features, labels, strength, max_iter)
            guesses = np.argmax(queries @ np.asarray(state["kernel"]) + np.asarray(state["bias"]), axis=1)
            tried[strength] = float(np.mean(guesses == answers)), state
        return tried[strength][0]

    peak = max(_STRENGTHS, key=score)  # the first of the best
    left, right = math.log10(peak) - 1, math.log10(peak) + 1
    for _ in range(_HALVINGS):
        best, middle = 10.0**left, (left + right) / 2
        if score(10.0**left) < score(10.0**right):
            best, left = 10.0**right, middle
        else:
            right = middle
    return tried[best][1]


def _regression(features: np.ndarray, labels: np.ndarray, strength: float, max_iter: int) -> State:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # weak decay on separable classes has no minimum
        fitted = LogisticRegression(C=strength, max_iter=max_iter).fit(features, labels)
    kernel, bias = fitted.coef_.T, fitted.intercept_
    if kernel.shape[1] == 1:  # two classes share one column
        kernel, bias = np.concatenate([0 * kernel, kernel], axis=1), np.concatenate([0 * bias, bias])
    arrays = {"kernel": kernel, "bias": bias, "strength": strength}
    return {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}


def _check_validation(names: Sequence[str], validation: Labeled | None, settings: str) -> tuple[np.ndarray, np.ndarray]:
    if validation is None:
        raise InputError(
            f"{settings}: chosen on validation features; pass validation=(features, labels), or set a value"
        )
    return _check_labeled(names, *validation)


def _check_labeled(names: Sequence[str], features: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    if features is None or labels is None:
        raise InputError("features or labels are missing; give labeled image features")
    features, labels = np.asarray(features, np.float32), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise InputError(
            f"{list(features.shape)} features and {list(labels.shape)} labels: give [images, embed_dim] and one label "
            "for each"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= len(names):
        raise InputError(
            f"labels have the type {labels.dtype} and run from {labels.min()} to {labels.max()}; they must be integers "
            f"from 0 to {len(names) - 1}"
        )
    return features, labels


def _texts(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the templates of an ensemble that is named or listed."""
    texts = published.ensemble(templates) if isinstance(templates, str) else tuple(templates)
    if not texts:
        raise InputError('templates is empty; give texts with one "{}" each')
    for text in texts:
        if not isinstance(text, str) or text.count("{}") != 1:
            raise InputError(f'template {text!r}: it must be a text with one "{{}}" for the class name')
    return texts
