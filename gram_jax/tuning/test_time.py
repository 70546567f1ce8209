"""Test-time tuning: a prompt for each test image, tuned on unlabeled views of that image alone and then dropped."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gram_jax.clip import Classes, Clip
from gram_jax.clip.modules import at_least_float32
from gram_jax.errors import InputError
from gram_jax.objectives.base import exclude
from gram_jax.regulators import Regulator, identity
from gram_jax.tuners import Tuner
from gram_jax.tuning.step import per_leaf

Array = jax.Array
PyTree = Any

OPTIMIZERS = ("adamw", "sgd")


class Episodic(NamedTuple):
    """What tuning on each of several test images found.

    Attributes:
      logits: of each image as it is, after its own tuning, `[images, classes]`.
      start_logits: the same before it.
      losses: `[images, steps]`, the loss that each step started from.
      kept: int `[images, kept]`, the views that were tuned on, the surest first.

    Example:
      >>> Episodic(jnp.ones((5, 3)), jnp.ones((5, 3)), jnp.ones((5, 1)), jnp.zeros((5, 6), int)).logits.shape
      (5, 3)
    """

    logits: Array
    start_logits: Array
    losses: Array
    kept: Array


def make_episodic(
    tuner: Tuner,
    regulator: Regulator | None = None,
    *,
    share: float = 0.1,
    steps: int = 1,
    optimizer: str = "adamw",
    weight_decay: float = 0.01,
) -> Callable[..., Episodic]:
    """Builds test-time tuning of one tuner, of many images side by side, each from the start anew.

    With p_v(theta) the probabilities of view v of an image, V views, and B those floor(share V) of them whose entropy
    is lowest at the start theta_0,

        L(theta)    = H( mean_{v in B} p_v(theta) ),     H(p) = - sum_k p_k log p_k
        theta_{k+1} = theta_k - alpha ( U( R_phi(grad L(theta_k), context) ) + w theta_k ),     k < steps
        prediction  = argmax p_0(theta_steps),

    U is Adam with its running means at 0 (AdamW), or the identity (SGD). View 0 is the image as it is. No label is
    read, and nothing is kept from one image to the next. Of Adam's first step only the signs of R_phi's entries are
    left; what a regulator does to lengths shows under SGD, or in later steps.

    Compiled once for each combination of shapes: start, phi, class names and rates are arguments. All images of a call
    are tuned at once, so its memory grows with their number; `predict_episodic` bounds it. What is the same for all of
    them, such as the class texts under a shared start, is computed once.

    Args:
      tuner: the tuner.
      regulator: R; None regulates nothing.
      share: of the views that are tuned on, in (0, 1].
      steps: number of steps, at least 1.
      optimizer: "adamw" or "sgd".
      weight_decay: w, decoupled, at least 0.

    Returns:
      `tune(prompt, phi, clip, batch, learning_rate, own=False) -> Episodic`. The prompt is where all images start, or
      with `own`, `[images, ...]` each leaf, where each does. phi is None where there is no regulator. The batch is a
      dictionary: "views" `[images, views, ...]`, frozen features where the tuner needs no pixels; "classes" as the
      tuner takes them; "valid" bool `[classes]`, which may be missing where every class counts; and for regulators that
      read one, "context" `[images, ...]`. The rate is one number, or a number for each leaf of a prompt. The call
      raises ValueError where `share` leaves no view.

    Raises:
      InputError: if a setting has an impossible value, or the regulator reads a second gradient.

    Example:
      >>> from gram_jax import tuners
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(text_layers=1), tuners.coop(init_text="a photo of a")
      >>> views = jax.random.normal(jax.random.key(0), (5, 20, 16)) / 4
      >>> batch = {"views": views, "classes": clip.class_tokens(["cat", "dog", "bird"])}
      >>> found = make_episodic(tuner)(tuner.init(jax.random.key(1), clip, None), None, clip, batch, 5e-3)
      >>> found.logits.shape, found.kept.shape
      ((5, 3), (5, 2))

    Reference:
      "Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models" (TPT), and its public code, where
      the views are chosen once, before the first step. The regulated form: after the journal version of GRAM,
      "Structure-Induced Gradient Regulation"; how it is regulated is our own choice.
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise InputError(f"share is {share!r}; give a share of the views, above 0 and at most 1.")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps is {steps!r}; give a number of steps, at least 1.")
    if optimizer not in OPTIMIZERS:
        raise InputError(f"optimizer must be one of {', '.join(map(repr, OPTIMIZERS))}, found {optimizer!r}.")
    if not 0 <= weight_decay < math.inf:
        raise InputError(f"weight_decay is {weight_decay!r}; give a number of at least 0.")
    regulator = identity() if regulator is None else regulator
    if "reference" in regulator.settings:
        raise InputError(
            f"{regulator.name} holds a gradient against that of {regulator.settings['reference']!r}, a regularizer of "
            "labeled images, which test-time tuning has not; take a regulator that reads the task's context, or none."
        )
    direction = optax.scale_by_adam() if optimizer == "adamw" else optax.identity()

    def one(prompt: PyTree, phi: PyTree, clip: Clip, shared: dict[str, Any], rates: PyTree, own: dict[str, Any]) -> Any:
        def logits(prompt: PyTree, views: Array) -> Array:
            return at_least_float32(tuner.apply(prompt, clip, shared["classes"], views).logits)

        def loss(prompt: PyTree) -> Array:
            surest = jax.nn.log_softmax(exclude(logits(prompt, own["views"][kept]), shared.get("valid")))
            return _entropy(jax.nn.logsumexp(surest, axis=0) - math.log(len(kept)))

        def step(carry: tuple[PyTree, PyTree], _: Any) -> tuple[tuple[PyTree, PyTree], Array]:
            prompt, state = carry
            value, grads = jax.value_and_grad(loss)(prompt)
            updates, state = direction.update(regulator.apply(phi, grads, own.get("context")), state, prompt)

            def moved(leaf: Array, rate: Array, update: Array) -> Array:
                return leaf - (rate * (update + weight_decay * leaf)).astype(leaf.dtype)

            return (jax.tree.map(moved, prompt, rates, updates), state), value

        first = logits(prompt, own["views"])
        entropies = _entropy(jax.nn.log_softmax(exclude(first, shared.get("valid"))))
        kept = jax.lax.top_k(-entropies, kept_views(len(entropies), share))[1]
        # The first step stands outside of the loop, where all images share what a shared start says.
        carry, value = step((prompt, direction.init(prompt)), None)
        losses = value[None]
        if steps > 1:
            carry, rest = jax.lax.scan(step, carry, length=steps - 1)
            losses = jnp.concatenate([losses, rest])
        prompt, _ = carry
        return Episodic(logits(prompt, own["views"][:1])[0], first[0], losses, kept)

    @functools.partial(jax.jit, static_argnames="own_start")
    def run(prompt: PyTree, phi: PyTree, clip: Clip, batch: dict[str, Any], rates: PyTree, own_start: bool) -> Episodic:
        own = {name: batch[name] for name in ("views", "context") if batch.get(name) is not None}
        shared = {name: value for name, value in batch.items() if name not in ("views", "context")}
        axes = (0 if own_start else None, None, None, None, None, 0)
        return jax.vmap(one, in_axes=axes)(prompt, phi, clip, shared, rates, own)

    def tune(
        prompt: PyTree, phi: PyTree, clip: Clip, batch: dict[str, Any], learning_rate: PyTree, own: bool = False
    ) -> Episodic:
        count = np.shape(batch["views"])[1]
        if not kept_views(count, share):
            raise InputError(f"{share:g} of {count} views is less than one; give more views, or a larger share.")
        if regulator.name == "identity" and phi is None:
            phi = jax.eval_shape(regulator.init, jax.random.key(0), prompt)  # it has no arrays
        return run(prompt, phi, clip, batch, per_leaf(learning_rate, prompt), own)

    return tune


def predict_episodic(
    tune: Callable[..., Episodic],
    prompt: PyTree,
    phi: PyTree,
    clip: Clip,
    classes: Classes | Array,
    valid: np.ndarray,
    views: Any,
    learning_rate: PyTree,
    *,
    contexts: np.ndarray | None = None,
    own: bool = False,
    batch_size: int = 16,
) -> Episodic:
    """Test-time tuning of any number of images, so many at once; the last batch is filled up, and compiled once.

    Args:
      tune: as `make_episodic` builds it.
      prompt: where all images start, or with `own`, `[images, ...]` each leaf, where each does.
      phi: the regulator's parameters, frozen; None where there is no regulator.
      clip: the frozen clip.
      classes: as `pad_classes` returns them.
      valid: as `pad_classes` returns it, bool `[classes]`.
      views: `[images, views, ...]`, frozen features or images; anything of a length whose slices are arrays.
      learning_rate: one number, or a number for each leaf of a prompt.
      contexts: what the regulator reads about each image, `[images, ...]`, or None.
      own: whether each image has a start of its own.
      batch_size: images at once, at least 1.

    Returns:
      The `Episodic`, on the host; logits `[images, number of valid classes]`.

    Raises:
      InputError: if there are no images, or the batch size is below 1; and as `tune`.

    Example:
      >>> from gram_jax import tuners
      >>> from gram_jax.tuning import pad_classes
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(text_layers=1), tuners.coop()
      >>> classes, valid = pad_classes(clip, clip.class_tokens(["cat", "dog"]))
      >>> prompt, views = tuner.init(jax.random.key(0), clip, None), np.ones((5, 10, 16), np.float32) / 4
      >>> tune = make_episodic(tuner)
      >>> predict_episodic(tune, prompt, None, clip, classes, valid, views, 0.1, batch_size=2).logits.shape
      (5, 2)

    Reference:
      See `make_episodic`.
    """
    if batch_size < 1 or not len(views):
        raise InputError(
            f"{len(views)} images in batches of {batch_size}: give at least one image, and a batch of at least 1."
        )
    size, parts = min(batch_size, len(views)), []
    for first in range(0, len(views), size):
        chunk = slice(first, first + size)

        def filled(array: Any, chunk: slice = chunk) -> np.ndarray:
            part = np.asarray(array[chunk])
            return np.pad(part, ((0, size - len(part)), *((0, 0),) * (part.ndim - 1)), mode="edge")

        batch = {"views": filled(views), "classes": classes, "valid": jnp.asarray(valid)}
        batch |= {} if contexts is None else {"context": filled(contexts)}
        start = jax.tree.map(filled, prompt) if own else prompt
        found = jax.device_get(tune(start, phi, clip, batch, learning_rate, own))
        parts.append(jax.tree.map(lambda array, first=first: array[: len(views) - first], found))
    together = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    kept = np.asarray(valid)
    return together._replace(logits=together.logits[:, kept], start_logits=together.start_logits[:, kept])


def _entropy(log_probabilities: Array) -> Array:
    """In nats, over the last axis."""
    return -jnp.sum(jnp.exp(log_probabilities) * log_probabilities, axis=-1)


def kept_views(views: int, share: float) -> int:
    """How many views are tuned on.

        floor(share views)

    Args:
      views: V.
      share: as `make_episodic` takes it, the decimal number that was meant.

    Returns:
      Their number, 0 where the share of so few views is none.

    Example:
      >>> kept_views(64, 0.1), kept_views(100, 0.29)
      (6, 29)

    Reference:
      `select_confident_samples` of TPT's public code.
    """
    return math.floor(share * views + 1e-9)
