"""One step of tuning along a stream of tasks: a prompt and a head, the projection of their updates, and old prompts."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gram_jax.choices import HEADS
from gram_jax.clip import Clip
from gram_jax.errors import require_known, require_number
from gram_jax.objectives import norm_consistency, prompt_distance
from gram_jax.objectives.base import EXCLUDED
from gram_jax.regulators import Regulator
from gram_jax.tuners import Tuner
from gram_jax.tuning.nullspace import NullSpaceState, null_space

Array = jax.Array
PyTree = Any


@flax.struct.dataclass
class StreamState:
    """The state between two steps.

    Attributes:
      prompt, head: what is learned; `head` is {"logit_scale"}, or {"kernel" `[classes, embed]`, "bias"}.
      adam: the moments, new for every task.
      space: the covariances of finished tasks.
      previous: the prompt after the last task.
    """

    prompt: PyTree
    head: PyTree
    adam: PyTree
    space: NullSpaceState
    previous: PyTree


class StreamTuning(NamedTuple):
    """The functions of `make_stream_tuning`, compiled once for each shape.

    Attributes:
      init: `init(prompt, clip, classes) -> StreamState`, for a number of classes in the whole stream.
      begin: `begin(state) -> state`: the moments are new, and the prompt is the previous one.
      step: `step(state, phi, context, clip, batch, weights) -> (state, loss)`. A batch is a dictionary: "images",
        "labels" int `[images]`, "texts" `[classes, embed]` and "valid" bool `[classes]`, the classes that compete.
        Weights are numbers: the learning "rate", and those of the losses "norm" and "distance".
      logits: `logits(prompt, head, clip, texts, images) -> [images, classes]`.
    """

    init: Any
    begin: Any
    step: Any
    logits: Any


def make_stream_tuning(
    tuner: Tuner,
    regulator: Regulator | None = None,
    *,
    head: str = "text",
    temperature: float = 1.0,
    eta: float = 0.97,
    divide: bool = True,
    weight_decay: float = 0.0,
) -> StreamTuning:
    """Makes the step of continual prompt tuning.

        grad  = R_phi( grad [ CE(logits / T over the valid classes) + w_n L_norm + w_d |P - P'|^2 / 2 ] )
        P    <- P - rate M_2 Adam(grad + w P) M_1

    with the projection of `null_space`, which is the identity until a task was observed. The head is not projected. The
    head "text" has the text features of all classes and learns the scale of their cosines; "linear" learns a row for
    each class, and only the rows of valid classes move.

    Args:
      tuner: of the image side, with a leaf "prompts" `[layers, tokens, width]`.
      regulator: R, of GRAM; None for none.
      head, temperature: one of `choices.HEADS`, and T, above 0.
      eta, divide: of `null_space`.
      weight_decay: w, added to the gradients before Adam.

    Reference:
      "Visual Prompt Tuning in Null Space for Continual Learning", section 3 and its public code.
    """
    require_known("head", head, HEADS)
    require_number("temperature", temperature, above=0)
    require_number("weight_decay", weight_decay, least=0)
    space = null_space(eta, divide=divide)
    adam = optax.chain(optax.add_decayed_weights(weight_decay), optax.scale_by_adam())

    def init(prompt: PyTree, clip: Clip, classes: int) -> StreamState:
        own = _first_head(head, clip, classes)
        learned = {"prompt": prompt, "head": own}
        return StreamState(prompt, own, adam.init(learned), space.init(prompt), prompt)

    def begin(state: StreamState) -> StreamState:
        fresh = adam.init({"prompt": state.prompt, "head": state.head})
        return state.replace(adam=fresh, previous=state.prompt)  # type: ignore[attr-defined]  # flax adds it

    def scores(prompt: PyTree, own: PyTree, clip: Clip, texts: Array, images: Array) -> Array:
        features = tuner.apply(prompt, clip, texts, images).image_features
        if head == "text":
            return jnp.exp(own["logit_scale"]) * features @ texts.T
        return features * features.shape[-1] ** 0.5 @ own["kernel"].T + own["bias"]

    @jax.jit
    def step(
        state: StreamState, phi: PyTree, context: Array | None, clip: Clip, batch: dict[str, Array], weights: PyTree
    ) -> tuple[StreamState, Array]:
        def loss(learned: PyTree) -> Array:
            found = scores(learned["prompt"], learned["head"], clip, batch["texts"], batch["images"]) / temperature
            found = jnp.where(batch["valid"], found, EXCLUDED)
            value = optax.softmax_cross_entropy_with_integer_labels(found, batch["labels"]).mean()
            value += weights["norm"] * norm_consistency(learned["prompt"], state.previous)
            return value + weights["distance"] * prompt_distance(learned["prompt"], state.previous)

        learned = {"prompt": state.prompt, "head": state.head}
        value, grads = jax.value_and_grad(loss)(learned)
        if regulator is not None:
            grads["prompt"] = regulator.apply(phi, grads["prompt"], context)
        updates, moments = adam.update(grads, state.adam, learned)
        updates["prompt"], _ = space.update(updates["prompt"], state.space)
        if head == "linear":  # weight decay would move the rows of old classes
            rows = batch["valid"]
            updates["head"] = jax.tree.map(
                lambda u: jnp.where(rows.reshape(-1, *[1] * (u.ndim - 1)), u, 0), updates["head"]
            )
        learned = jax.tree.map(lambda leaf, update: leaf - weights["rate"] * update, learned, updates)
        new = {"prompt": learned["prompt"], "head": learned["head"], "adam": moments}
        return state.replace(**new), value  # type: ignore[attr-defined]  # flax adds it

    return StreamTuning(init, begin, step, jax.jit(scores))


def _first_head(head: str, clip: Clip, classes: int) -> dict[str, Array]:
    """Returns the head before the first task."""
    if head == "text":
        return {"logit_scale": jnp.asarray(clip.params["logit_scale"], jnp.float32)}
    kernel = 0.02 * jax.random.normal(jax.random.key(0), (classes, clip.config.embed_dim))
    return {"kernel": kernel, "bias": jnp.zeros(classes)}


def project_jump(state: StreamState, target: PyTree) -> PyTree:
    """Returns the prompt moved towards a target, such as GRAM's initialization, in the null space of old tasks.

        P + Pi( target - P ),    Pi = U_2 U_2^T ( . ) U_1 U_1^T

    While no task has been observed, this is the target itself.
    """
    if not int(state.space.tasks):
        return target
    jump = jax.tree.map(jnp.subtract, target, state.prompt)
    moved, _ = null_space(1.0, divide=False).update(jump, state.space)
    return jax.tree.map(jnp.add, state.prompt, moved)


def refine_projection(
    projection: Array, means: Array, covariances: Array, texts: Array, scale: Array, key: Array, *, steps: int = 50
) -> Array:
    """Returns the image projection, retrained on features drawn from a Gaussian per class (`refine_head`).

    Every epoch draws nothing new: 256 features of each class are drawn once and shuffled into batches of 256; SGD with
    rate 0.001, momentum 0.9 and decay 1e-4 minimizes the cross-entropy over all classes.

    Args:
      projection: `[width, embed]`, applied after the last norm.
      means, covariances: of the features before the projection, `[classes, width]` and `[classes, width, width]`.
      texts, scale: normalized text features `[classes, embed]`, and the logarithm of the scale.
      key, steps: a PRNG key, and the number of epochs.

    Reference:
      The public code of "Visual Prompt Tuning in Null Space for Continual Learning", option `refine_head`.
    """
    return _refined(projection, means, covariances, texts, scale, key, steps=steps)


@functools.partial(jax.jit, static_argnames="steps")
def _refined(
    projection: Array, means: Array, covariances: Array, texts: Array, scale: Array, key: Array, *, steps: int
) -> Array:
    classes, width = means.shape
    draw, shuffle = jax.random.split(key)
    factors = jnp.linalg.cholesky(covariances + 1e-4 * jnp.eye(width))
    noise = jax.random.normal(draw, (classes, 256, width))
    features = (means[:, None] + jnp.einsum("cij,cnj->cni", factors, noise)).reshape(-1, width)
    labels = jnp.repeat(jnp.arange(classes), 256)
    descent = optax.chain(optax.add_decayed_weights(1e-4), optax.trace(0.9))

    def loss(kernel: Array, rows: Array) -> Array:
        projected = features[rows] @ kernel
        projected /= jnp.linalg.norm(projected, axis=-1, keepdims=True)
        found = jnp.exp(scale) * projected @ texts.T
        return optax.softmax_cross_entropy_with_integer_labels(found, labels[rows]).mean()

    def one(carry: tuple[Array, Any], rows: Array) -> tuple[tuple[Array, Any], None]:
        kernel, moments = carry
        update, moments = descent.update(jax.grad(loss)(kernel, rows), moments, kernel)
        return (kernel - 0.001 * update, moments), None

    keys = jax.random.split(shuffle, steps)
    order = jax.vmap(lambda key: jax.random.permutation(key, classes * 256))(keys).reshape(-1, 256)
    return jax.lax.scan(one, (projection, descent.init(projection)), order)[0][0]
