"""Test-time tuning: a prompt for each test image, tuned on unlabeled views of that image only and then discarded."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gram_jax.batching import pad_to
from gram_jax.choices import TEST_TIME_OPTIMIZERS
from gram_jax.clip import Clip
from gram_jax.clip.modules import at_least_float32
from gram_jax.errors import InputError, require_int, require_known, require_number
from gram_jax.objectives.base import exclude
from gram_jax.regulators import Regulator, identity
from gram_jax.tuners import Tuner
from gram_jax.tuning.schedules import per_leaf

Array = jax.Array
PyTree = Any

_PER_IMAGE = ("views", "context")  # entries of a batch with a leading axis of images


class TestTimeTuning(NamedTuple):
    """The result of tuning on each of several test images.

    Attributes:
      logits, initial_logits: those of each unaugmented image after its own tuning and before, `[images, classes]`.
      losses: `[images, steps]`, the loss before each step.
      kept: int `[images, kept]`, the views that were tuned on, the most confident first.
    """

    logits: Array
    initial_logits: Array
    losses: Array
    kept: Array


TestTimeTuning.__test__ = False  # type: ignore[attr-defined]  # pytest collects classes of this name otherwise


class _Method(NamedTuple):
    tuner: Tuner
    regulator: Regulator
    direction: optax.GradientTransformation
    share: float
    steps: int
    weight_decay: float


def make_test_time_tuning(
    tuner: Tuner,
    regulator: Regulator | None = None,
    *,
    share: float = 0.1,
    steps: int = 1,
    optimizer: str = "adamw",
    weight_decay: float = 0.01,
) -> Callable[..., TestTimeTuning]:
    """Builds test-time tuning of one tuner on many images side by side, each from the initialization.

    With p_v(theta) the probabilities of view v of an image, V views, and B the floor(share V) views with the lowest
    entropy at the initialization theta_0,

        L(theta)    = H( mean_{v in B} p_v(theta) ),     H(p) = - sum_k p_k log p_k
        theta_{k+1} = theta_k - alpha ( U( R_phi(grad L(theta_k), context) ) + w theta_k ),     k < steps
        prediction  = argmax p_0(theta_steps),

    U is Adam with its running means at 0 (AdamW), or the identity (SGD). View 0 is the unaugmented image. No label is
    read, and images do not influence each other. Adam's first step depends only on the signs of R_phi's entries;
    regulated lengths have an effect under SGD or in later steps.

    The function is compiled once for each combination of shapes: initialization, phi, class names and rates are
    arguments. A call tunes all of its images at once, so its memory grows with their number; `predict_test_time` limits
    it. Computations that all images share, such as the class texts of a shared initialization, run once.

    Args:
      tuner, regulator: the tuner, and R; None for no regulation.
      share: the share of the views that are tuned on, in (0, 1].
      steps: the number of steps, at least 1.
      optimizer, weight_decay: "adamw" or "sgd", and w, decoupled.

    Returns:
      `tune(prompt, phi, clip, batch, learning_rate, own=False) -> TestTimeTuning`. The prompt is the initialization of
      all images; if `own` is true, that of each image, each leaf `[images, ...]`. phi is None without a regulator. The
      batch is a dictionary: "views" `[images, views, ...]`, frozen features if the tuner needs no pixels; "classes" as
      the tuner requires them; optionally "valid" bool `[classes]`; and for regulators that read one, "context"
      `[images, ...]`. The rate is one number, or a number for each leaf of a prompt. The call raises InputError if
      `share` leaves no view.

    Example:
      >>> from gram_jax import tuners
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(text_layers=1), tuners.coop(init_text="a photo of a")
      >>> views = jax.random.normal(jax.random.key(0), (5, 20, 16)) / 4
      >>> batch = {"views": views, "classes": clip.class_tokens(["cat", "dog", "bird"])}
      >>> tune = make_test_time_tuning(tuner)
      >>> tuned = tune(tuner.init(jax.random.key(1), clip, None), None, clip, batch, 5e-3)
      >>> tuned.logits.shape, tuned.kept.shape
      ((5, 3), (5, 2))

    Reference:
      "Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models" (TPT), and its public code, where
      the views are selected once, before the first step. The regulated form follows the idea of the journal version of
      GRAM, "Structure-Induced Gradient Regulation"; its details are ours.
    """
    require_number("share", share, above=0)
    if share > 1:
        raise InputError(f"share={share!r}: it must be at most 1, all views")
    require_int("steps", steps)
    require_known("optimizer", optimizer, TEST_TIME_OPTIMIZERS)
    require_number("weight_decay", weight_decay, least=0)
    regulator = identity() if regulator is None else regulator
    if "reference" in regulator.settings:
        raise InputError(
            f"{regulator.name} reads the gradient of {regulator.settings['reference']!r}, a regularizer of labeled "
            "images, which test-time tuning does not provide; use another regulator, or none"
        )
    direction = optax.scale_by_adam() if optimizer == "adamw" else optax.identity()
    method = _Method(tuner, regulator, direction, share, steps, weight_decay)

    @functools.partial(jax.jit, static_argnames="own_prompt")
    def run(prompt: PyTree, phi: PyTree, clip: Clip, batch: dict[str, Any], rates: PyTree, own_prompt: bool) -> Any:
        own = {name: batch[name] for name in _PER_IMAGE if batch.get(name) is not None}
        shared = {name: value for name, value in batch.items() if name not in _PER_IMAGE}
        axes = (0 if own_prompt else None, None, None, None, None, 0)
        return jax.vmap(functools.partial(_tune_image, method), in_axes=axes)(prompt, phi, clip, shared, rates, own)

    def tune(
        prompt: PyTree, phi: PyTree, clip: Clip, batch: dict[str, Any], learning_rate: PyTree, own: bool = False
    ) -> TestTimeTuning:
        count = np.shape(batch["views"])[1]
        if not select_views(count, share):
            less = f"share={share:g} of {count} views is less than one view"
            raise InputError(f"{less}; give more views, or a larger share")
        if regulator.name == "identity" and phi is None:
            phi = jax.eval_shape(regulator.init, jax.random.key(0), prompt)  # it has no arrays
        return run(prompt, phi, clip, batch, per_leaf(learning_rate, prompt, dtype=jnp.float32), own)

    return tune


def _tune_image(
    method: _Method, prompt: PyTree, phi: PyTree, clip: Clip, shared: dict[str, Any], rates: PyTree, own: dict[str, Any]
) -> TestTimeTuning:
    """Tunes on one image, whose views and context are in `own`."""

    def logits(prompt: PyTree, views: Array) -> Array:
        return at_least_float32(method.tuner.apply(prompt, clip, shared["classes"], views).logits)

    def log_probabilities(logits: Array) -> Array:
        return jax.nn.log_softmax(exclude(logits, shared.get("valid")))

    def loss(prompt: PyTree) -> Array:
        confident = log_probabilities(logits(prompt, own["views"][kept]))
        return _entropy(jax.nn.logsumexp(confident, axis=0) - math.log(len(kept)))

    def step(carry: tuple[PyTree, PyTree], _: Any) -> tuple[tuple[PyTree, PyTree], Array]:
        prompt, state = carry
        value, grads = jax.value_and_grad(loss)(prompt)
        updates, state = method.direction.update(method.regulator.apply(phi, grads, own.get("context")), state, prompt)

        def moved(leaf: Array, rate: Array, update: Array) -> Array:
            return leaf - (rate * (update + method.weight_decay * leaf)).astype(leaf.dtype)

        return (jax.tree.map(moved, prompt, rates, updates), state), value

    initial = logits(prompt, own["views"])
    entropies = _entropy(log_probabilities(initial))
    kept = jax.lax.top_k(-entropies, select_views(len(entropies), method.share))[1]
    # The first step is outside the loop, so that vmap computes the texts of a shared initialization once.
    carry, value = step((prompt, method.direction.init(prompt)), None)
    losses = value[None]
    if method.steps > 1:
        carry, rest = jax.lax.scan(step, carry, length=method.steps - 1)
        losses = jnp.concatenate([losses, rest])
    return TestTimeTuning(logits(carry[0], own["views"][:1])[0], initial[0], losses, kept)


def predict_test_time(
    tune: Callable[..., TestTimeTuning],
    prompt: PyTree,
    phi: PyTree,
    clip: Clip,
    batch: dict[str, Any],
    learning_rate: PyTree,
    *,
    own: bool = False,
    batch_size: int = 16,
) -> TestTimeTuning:
    """Runs test-time tuning on any number of images, a fixed number at once, with one compiled program.

    Args:
      tune, prompt, phi, clip, learning_rate, own: the result of `make_test_time_tuning`, and its arguments.
      batch: that of `tune`, for all images. "views" may be a lazy sequence whose slices are arrays; "classes" and
        "valid" come from `pad_classes`.
      batch_size: the number of images at once, at least 1.

    Returns:
      The results on the host; logits `[images, number of valid classes]`.

    Example:
      >>> from gram_jax import tuners
      >>> from gram_jax.tuning import pad_classes
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(text_layers=1), tuners.coop()
      >>> classes, valid = pad_classes(clip, clip.class_tokens(["cat", "dog"]))
      >>> batch = {"classes": classes, "valid": valid, "views": np.ones((5, 10, 16), np.float32) / 4}
      >>> prompt = tuner.init(jax.random.key(0), clip, None)
      >>> predict_test_time(make_test_time_tuning(tuner), prompt, None, clip, batch, 0.1, batch_size=2).logits.shape
      (5, 2)
    """
    require_int("batch_size", batch_size)
    count, valid = len(batch["views"]), np.asarray(batch["valid"])
    if not count:
        raise InputError("there are 0 images; give at least one")
    size, parts = min(batch_size, count), []
    for first in range(0, count, size):

        def rows(array: Any, first: int = first) -> np.ndarray:
            return pad_to(array[first : first + size], size)

        chunk = {name: rows(batch[name]) for name in _PER_IMAGE if batch.get(name) is not None}
        initial = jax.tree.map(rows, prompt) if own else prompt
        given = batch | {"valid": jnp.asarray(valid)} | chunk
        tuned = jax.device_get(tune(initial, phi, clip, given, learning_rate, own))
        parts.append(jax.tree.map(lambda array, first=first: array[: count - first], tuned))
    tuned = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    return tuned._replace(logits=tuned.logits[:, valid], initial_logits=tuned.initial_logits[:, valid])


def _entropy(log_probabilities: Array) -> Array:
    """Returns the entropy over the last axis, in nats."""
    return -jnp.sum(jnp.exp(log_probabilities) * log_probabilities, axis=-1)


def select_views(views: int, share: float) -> int:
    """Returns the number of views that are tuned on, floor(share views); 0 if the share is less than one view.

    Args:
      views, share: V, and a share as in `make_test_time_tuning`; the result is exact for decimal shares such as 0.29.

    Example:
      >>> select_views(64, 0.1), select_views(100, 0.29)
      (6, 29)

    Reference:
      `select_confident_samples` of TPT's public code.
    """
    return math.floor(share * views + 1e-9)
