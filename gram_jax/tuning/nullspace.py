"""The null space of old tasks: prompt updates that keep what old images see.

Old tokens with queries q (before scaling) attend to a prompt P of m tokens with weights S_P. A step dP changes neither
the affinities q W_k^T n(P)^T nor the sum S_P n(P) W_v if

    Q W_k^T dP^T = 0    and    S_P dP = 0,

as long as the norm n keeps the mean and the standard deviation of each token, which `objectives.norm_consistency` asks
for. Both null spaces follow from the uncentered covariances C1 = sum W_k Q^T Q W_k^T and C2 = sum S_P^T S_P.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gram_jax.clip import Clip, Slots
from gram_jax.clip.modules import apply_norm, at_least_float32
from gram_jax.clip.validation import require_visual_prompts
from gram_jax.clip.vision import fold_slots
from gram_jax.errors import InputError, require_bool, require_number

Array = jax.Array
LEAF = "prompts"
_SMOOTHED, _SIGMA, _DROPPED = 128, 10.0, 0.03  # of the elbow, as in the public code


class Covariances(NamedTuple):
    """Uncentered covariances: of affinities C1 `[layers, width, width]`, and of weights C2 `[layers, m, m]`."""

    affinity: Array
    weights: Array


class NullSpaceState(NamedTuple):
    """The state of `null_space`.

    Attributes:
      covariances: summed over the tasks observed.
      projections: U U^T of both null spaces, in the shapes of the covariances.
      tasks: int32, the number of tasks observed; updates are unchanged while it is 0.
    """

    covariances: Covariances
    projections: Covariances
    tasks: Array


def null_space(eta: float = 0.97, *, divide: bool = True) -> optax.GradientTransformation:
    """Returns an optax transform that projects the updates of visual prompts into the null space of old tasks.

        dP' = M_2 dP M_1,    M_i = eta B_i + (1 - eta) I,    B_i = U_i U_i^T / |U_i U_i^T|_F

    It acts on the leaf "prompts" `[layers, m, width]` of the updates, a dictionary, and belongs after Adam, whose
    moments are not projected. While no task has been observed, it is the identity; `observe` adds a task to the state.

    Args:
      eta: between 0, which changes nothing, and 1.
      divide: divide by the Frobenius norm, sqrt(rank), as the public code does and the paper's formulas do not.

    Example:
      >>> transform = null_space(1.0, divide=False)
      >>> updates = {"prompts": jnp.ones((1, 3, 4))}
      >>> state = transform.init(updates)
      >>> bool((transform.update(updates, state)[0]["prompts"] == 1).all())
      True

    Reference:
      "Visual Prompt Tuning in Null Space for Continual Learning", section 3.3, equations 17 to 22, and its public code.
    """
    require_number("eta", eta, least=0)
    require_bool("divide", divide)
    if eta > 1:
        raise InputError(f"eta={eta}: it must be from 0 to 1")

    def init(params: Any) -> NullSpaceState:
        layers, tokens, width = params[LEAF].shape
        zeros = Covariances(jnp.zeros((layers, width, width)), jnp.zeros((layers, tokens, tokens)))
        return NullSpaceState(zeros, zeros, jnp.zeros((), jnp.int32))

    def mixed(projection: Array) -> Array:
        if divide:
            projection = projection / jnp.maximum(jnp.linalg.norm(projection, axis=(-2, -1), keepdims=True), 1e-12)
        return eta * projection + (1 - eta) * jnp.eye(projection.shape[-1])

    def update(updates: Any, state: NullSpaceState, params: Any = None) -> tuple[Any, NullSpaceState]:
        del params
        step, (one, two) = updates[LEAF], state.projections
        projected = jnp.einsum("lmn,lnw,lwv->lmv", mixed(two), step, mixed(one), precision="highest")
        return {**updates, LEAF: jnp.where(state.tasks > 0, projected, step)}, state

    return optax.GradientTransformation(init, update)


def observe(state: NullSpaceState, covariances: Covariances) -> NullSpaceState:
    """Returns the state after one more task, whose covariances are added; not for use under `jit`.

    Args:
      state: of `null_space`.
      covariances: of the task that ended, from `task_covariances`.
    """
    total = jax.tree.map(jnp.add, state.covariances, covariances)
    projections = jax.tree.map(lambda each: jnp.asarray([null_projection(one) for one in np.asarray(each)]), total)
    return NullSpaceState(total, projections, state.tasks + 1)


def null_projection(covariance: np.ndarray) -> np.ndarray:
    """Returns the projection U U^T on the null space of an uncentered covariance, float32 `[n, n]`.

    U holds the singular vectors from the `elbow` of the singular values on.
    """
    _, values, vectors = np.linalg.svd(np.asarray(covariance, np.float64))
    basis = vectors[elbow(values) :]
    return np.asarray(basis.T @ basis, np.float32)


def elbow(values: np.ndarray) -> int:
    """Returns the index from which singular values, in descending order, count as 0.

    It is the last one whose value is at least that at the largest second difference. From 128 values on, the curve is
    smoothed first (Gaussian, sigma 10), and 1.5 % of the second differences are left out at each end.

    Args:
      values: `[n]`, n >= 3.

    Example:
      >>> elbow(np.array([5.0, 4.0, 3.0, 0.1, 0.05, 0.0]))
      3

    Reference:
      The public code of "Visual Prompt Tuning in Null Space for Continual Learning".
    """
    count = len(values)
    if count < 3:
        raise InputError(f"{count} singular values have no elbow; use 3 or more prompt tokens")
    curve, dropped = values, 0
    if count >= _SMOOTHED:
        from scipy.ndimage import gaussian_filter1d

        curve, dropped = gaussian_filter1d(values, sigma=_SIGMA), int(count * _DROPPED / 2)
    second = np.diff(curve, 2)
    second = second[dropped : len(second) - dropped]
    threshold = values[int(np.argmax(second)) + (count - len(second)) // 2]
    return int(np.flatnonzero(values >= threshold).max())


def batch_covariances(clip: Clip, images: Array, slots: Slots, *, gain: bool = False) -> Covariances:
    """Returns the uncentered covariances of a batch, divided by its rows: images times heads times tokens.

    Args:
      clip, slots: the frozen clip, and slots with prompts, such as `tuners.kv_slots`.
      images: `[images, size, size, channels]`.
      gain: include the norm's gain g, so that steps of the raw prompt, dP, are judged by what follows the norm, g dP.
        The public code leaves it out.
    """
    vision = require_visual_prompts(clip.config.vision)
    heads, eps = vision.heads, vision.norm_eps
    layers, tokens, width = slots.prompts.shape  # type: ignore[union-attr]  # they have prompts
    zeros = Covariances(jnp.zeros((layers, width, width)), jnp.zeros((layers, tokens, tokens)))

    def fold(total: tuple[Array, Covariances], layer: Any, slots: Slots, x: Array) -> tuple[Array, Covariances]:
        index, sums = total
        assert slots.prompts is not None
        normed, prompts = (apply_norm(eps, layer["norm_1"], each) for each in (at_least_float32(x), slots.prompts))
        weights = layer["attention"]
        query, key, more = (
            _split(each @ weights[name]["kernel"] + weights[name]["bias"], heads)
            for name, each in (("query", normed), ("key", normed), ("key", prompts))
        )
        scale = query.shape[-1] ** -0.5
        own = jnp.einsum("bhqd,bhkd->bhqk", query * scale, key)
        seen = jnp.einsum("bhqd,hkd->bhqk", query * scale, more)
        seen = jax.nn.softmax(jnp.concatenate([seen, own], axis=-1))[..., :tokens]
        rows = seen.size // tokens
        kernel = weights["key"]["kernel"].reshape(width, heads, -1)
        if gain:
            kernel = kernel * layer["norm_1"]["scale"][:, None, None]
        inner = jnp.einsum("bhqd,bhqe->hde", query, query, precision="highest")
        one = jnp.einsum("whd,hde,vhe->wv", kernel, inner, kernel, precision="highest") / rows
        two = jnp.einsum("bhqm,bhqn->mn", seen, seen, precision="highest") / rows
        return index + 1, Covariances(sums.affinity.at[index].set(one), sums.weights.at[index].set(two))

    start = jnp.zeros((), jnp.int32), zeros
    return fold_slots(clip.params["vision"], clip.config, images, slots, fold, start)[1]


def task_covariances(clip: Clip, batches: Iterable[Array], slots: Slots, *, gain: bool = False) -> Covariances:
    """Returns the uncentered covariances of a task, to be added by `observe`.

    Each batch's sum is divided by its rows (images times heads times tokens), and batches are summed, as in the public
    code; so batches should have one size.

    Args:
      clip, slots, gain: as in `batch_covariances`; the prompts are those after the task.
      batches: the task's training images, without augmentation, `[images, size, size, channels]` each.
    """
    total = None
    for images in batches:
        found = _compiled(clip, jnp.asarray(images), slots, gain=gain)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    if total is None:
        raise InputError("a task without images has no covariances; give at least one batch")
    return total


@functools.partial(jax.jit, static_argnames="gain")
def _compiled(clip: Clip, images: Array, slots: Slots, *, gain: bool) -> Covariances:
    return batch_covariances(clip, images, slots, gain=gain)


def _split(x: Array, heads: int) -> Array:
    return jnp.swapaxes(x.reshape(*x.shape[:-1], heads, -1), -2, -3)
