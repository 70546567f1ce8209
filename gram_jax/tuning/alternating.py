"""Tuning that also learns its regulator: ProMetaR's two steps on every batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gram_jax.choices import SCHEDULES
from gram_jax.clip import Clip, encode_image, logits
from gram_jax.clip.modules import at_least_float32
from gram_jax.errors import InputError, require_known, require_number
from gram_jax.objectives import batch_loss
from gram_jax.objectives.base import exclude, normalize, weighted_mean
from gram_jax.regulators import Regulator
from gram_jax.tuners import Tuner
from gram_jax.tuners.vpt import visual_prompt
from gram_jax.tuning.gradient_metrics import regulation
from gram_jax.tuning.schedules import WARMUP_RATE, scheduled_rate
from gram_jax.tuning.step import Batch, Tuning, descent, run_logits, step_arguments

Array = jax.Array
PyTree = Any

PHI_WARMUP_RATE = 1e-6  # of the regulator during the warm-up
_BETA = 0.5  # both parameters of the beta distribution of mixture weights
_PER_RUN = ("images", "labels", "context", "run_reference", "seed")  # entries of a batch with a leading axis of runs


@flax.struct.dataclass
class AlternatingState:
    """The state of a run: prompts, regulators and their SGD; each leaf `[runs, ...]`.

    Attributes:
      step: int32, the number of completed batches.
    """

    prompts: PyTree
    optimizer_state: PyTree
    phi: PyTree
    phi_state: PyTree
    step: Array


class _Method(NamedTuple):
    tuner: Tuner
    regulator: Regulator
    reference: str  # the regularizers whose gradient the regulator reads, or ""
    loss: Callable[..., Any]
    direction: optax.GradientTransformation
    adapt_rate: float
    query_weight: float


def make_alternating(
    tuner: Tuner,
    regulator: Regulator,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    schedule: str = "constant",
    adapt_rate: float = 5e-4,
    query_weight: float = 5e-4,
    phi_rate: float = 0.1,
) -> Tuning:
    """Builds the step of ProMetaR, which tunes a prompt and learns its regulator, for many runs at once.

    With L_I the cross-entropy of the images I of a batch, g_I = R_phi(grad L_I, r_I) its regulated gradient (r_I the
    gradient of the regularizers in the regulator's setting "reference" on the same images), alpha the scheduled rate,
    and SGD with momentum and coupled weight decay, each batch B takes two steps:

        1.  theta <- SGD(theta, alpha, g_B(theta, phi))
        2.  one random class of the batch is the query Q, the rest the support S:
            theta'     = theta - beta g_S(theta, phi)
            q          = w mean_{i in Q} ( l_i CE_i(y_i) + (1 - l_i) CE_i(y_s(i)) )     at theta', of the mixed features
                         l_i f_i + (1 - l_i) f_s(i),  s(i) a random image of S,  l_i ~ Beta(1/2, 1/2)
            theta, phi <- SGD(theta, alpha, dq/dtheta), SGD(phi, rho alpha, dq/dphi)

    The derivatives of q are exact: they pass through g_S and through the gradients that phi reads. Both steps of a
    prompt share one momentum. A batch of one class has no second step: phi and its momentum do not change. During the
    warm-up, the rate of phi is 1e-6.

    For the tuner `ivlp`, as published, features are mixed before normalization; for other tuners after it. The split is
    a mask, so that the step is compiled once.

    Args:
      tuner, regulator: the tuner, and R, with parameters to learn, e.g. `regulators.prometar()`.
      momentum, weight_decay: those of both; the momentum in [0, 1).
      schedule: one of `choices.SCHEDULES`.
      adapt_rate, query_weight, phi_rate: beta, w and rho, above 0.

    Returns:
      A `Tuning` as that of `make_tuning`, with three differences. `init(prompts, phi)` takes the initial regulators,
      each leaf `[runs, ...]`; the steps ignore their argument phi, because the state contains it. A batch also has
      "seed", int `[runs]`, which together with the step number determines queries and mixtures. The metrics are those
      of step 1, and "query_loss", q / w, 0 without a second step.

    Example:
      >>> from gram_jax import regulators, tuners
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner, regulator = tiny_clip(), tuners.coop(), regulators.prometar()
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> prompts = jax.vmap(lambda key: tuner.init(key, clip, None))(keys)
      >>> state = make_alternating(tuner, regulator).init(prompts, jax.vmap(regulator.init)(keys, prompts))
      >>> state.phi["context"]["outer"].shape
      (3, 12, 12)

    Reference:
      "Prompt Learning via Meta-Regularization" (ProMetaR), section 4. The pairing and mixing of images follow its
      public code.
    """
    require_known("schedule", schedule, SCHEDULES)
    for name, value in (("adapt_rate", adapt_rate), ("query_weight", query_weight), ("phi_rate", phi_rate)):
        require_number(name, value, above=0)
    if "prototypes" in regulator.settings:
        raise InputError(f"{regulator.name} reads prototypes, which meta-training learns; use another regulator")
    direction, reference = descent("sgd", momentum, weight_decay), regulator.settings.get("reference", "")
    loss = batch_loss(tuner, reference=reference).loss
    method = _Method(tuner, regulator, reference, loss, direction, adapt_rate, query_weight)

    def init(prompts: PyTree, phi: PyTree = None) -> AlternatingState:
        prompts, phi = jax.tree.map(jnp.asarray, (prompts, phi))
        if not jax.tree.leaves(phi):
            problem = "phi has no parameters to learn; pass its stacked init, or use make_tuning"
            raise InputError(f"{regulator.name}: {problem}")
        states = jax.vmap(direction.init)(prompts), jax.vmap(direction.init)(phi)
        return AlternatingState(prompts, states[0], phi, states[1], jnp.zeros((), jnp.int32))

    @jax.jit
    def update(
        state: AlternatingState, clip: Clip, batch: Batch, rates: PyTree, lengths: tuple[Array, Array], warmup: PyTree
    ) -> tuple[AlternatingState, dict[str, Array]]:
        def scheduled(factor: float, of_warmup: float) -> PyTree:
            def rate(rate: Array, epochs: Array) -> Array:
                return scheduled_rate(schedule, factor * rate, state.step, *lengths, epochs, of_warmup)

            return jax.tree.map(rate, rates, warmup)

        both = scheduled(1.0, WARMUP_RATE), scheduled(phi_rate, PHI_WARMUP_RATE)
        own = {name: batch[name] for name in _PER_RUN if name in batch}
        shared = {name: value for name, value in batch.items() if name not in _PER_RUN}

        def one(*run: Any) -> tuple:
            return _two_steps(method, run[:-1], clip, shared | run[-1], state.step, both)

        learned, metrics = jax.vmap(one)(state.prompts, state.optimizer_state, state.phi, state.phi_state, own)
        prompts, optimizer_state, phi, phi_state = learned
        return AlternatingState(prompts, optimizer_state, phi, phi_state, state.step + 1), metrics

    return Tuning(
        init,
        lambda *given, **named: update(*_arguments(*given, **named)),
        run_logits(tuner),
        lambda *given, **named: update.lower(*_arguments(*given, **named)),
    )


def _arguments(*given: Any, **named: Any) -> tuple[Any, ...]:
    """Returns the arguments of a compiled step, without phi."""
    state, _, *rest = step_arguments(*given, **named)
    if "seed" not in rest[1]:
        raise InputError('a batch has no "seed"; give one number for each run, int [runs]')
    return state, *rest


def _two_steps(method: _Method, learned: tuple, clip: Clip, batch: Batch, number: Array, rates: tuple) -> tuple:
    """Takes both steps of one run; returns (prompt, its SGD, phi, its SGD), and the metrics."""
    prompt, prompt_state, phi, phi_state = learned
    labels = batch["labels"]

    def gradients(prompt: PyTree, phi: PyTree, counts: Array) -> tuple[Array, PyTree, PyTree]:
        """Returns loss, gradient and regulated gradient on the images that count."""

        def losses(prompt: PyTree) -> tuple[Array, Array]:
            value = method.loss(prompt, clip, batch | {"weights": counts})
            return value if method.reference else (value, jnp.zeros(()))

        (value, other), pull = jax.vjp(losses, prompt)
        (grads,) = pull((jnp.ones_like(value), jnp.zeros_like(other)))
        (reference,) = pull((jnp.zeros_like(value), jnp.ones_like(other)))
        context = reference if method.reference else batch.get("context")
        return value, grads, method.regulator.apply(phi, grads, context)

    value, grads, regulated = gradients(prompt, phi, jnp.ones(len(labels)))
    metrics = {"loss": value} | regulation(grads, regulated)
    prompt, prompt_state = _descend(method, prompt, prompt_state, regulated, rates[0])

    split = draw_query(jax.random.fold_in(jax.random.key(batch["seed"]), number), labels)
    query = split[0]

    def after_adaptation(prompt: PyTree, phi: PyTree) -> Array:
        _, _, regulated = gradients(prompt, phi, 1 - query)
        adapted = jax.tree.map(lambda leaf, step: leaf - method.adapt_rate * step, prompt, regulated)
        return method.query_weight * _query_loss(method.tuner, adapted, clip, batch, split)

    loss, (of_prompt, of_phi) = jax.value_and_grad(after_adaptation, (0, 1))(prompt, phi)
    before = (prompt, prompt_state), (phi, phi_state)
    after = _descend(method, *before[0], of_prompt, rates[0]), _descend(method, *before[1], of_phi, rates[1])
    several = jnp.any(query < 1)
    kept = jax.tree.map(lambda new, old: jnp.where(several, new, old), after, before)
    metrics["query_loss"] = jnp.where(several, loss / method.query_weight, 0.0)
    return (*kept[0], *kept[1]), metrics


def _descend(method: _Method, learned: PyTree, state: PyTree, grads: PyTree, rates: PyTree) -> tuple[PyTree, PyTree]:
    """Takes a step of SGD; one leaf of `rates` may belong to several leaves."""
    updates, state = method.direction.update(grads, state, learned)
    updates = jax.tree.map(lambda rate, own: jax.tree.map(lambda leaf: -rate * leaf, own), rates, updates)
    return optax.apply_updates(learned, updates), state


def _query_loss(tuner: Tuner, prompt: PyTree, clip: Clip, batch: Batch, split: tuple[Array, Array, Array]) -> Array:
    """Returns q / w for a split from `draw_query`."""
    query, partner, share = split
    outputs = tuner.apply(prompt, clip, batch["classes"], batch["images"])
    features: Any = outputs.image_features
    if tuner.name == "ivlp":
        visual = visual_prompt(prompt["visual"], tuner.settings["placement"])
        features = encode_image(clip, batch["images"], visual, normalize=False)
    features = at_least_float32(features)
    mixed = normalize(share[:, None] * features + (1 - share[:, None]) * features[partner])
    scores = exclude(logits(mixed, outputs.text_features, clip.params["logit_scale"]), batch.get("valid"))
    labels = jnp.stack([batch["labels"], batch["labels"][partner]], axis=1)
    surprise = -jax.nn.log_softmax(scores)[jnp.arange(len(features))[:, None], labels]
    return weighted_mean(share * surprise[:, 0] + (1 - share) * surprise[:, 1], query)


def draw_query(key: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Draws the query of a batch from its labels, int `[images]`, and each image's partner and mixture weight.

    Returns:
      * float `[images]`, 1 for the images of one random class, with equal probability for each class of the batch;
      * int `[images]`, for each image a random one outside the query; any image if there is none;
      * float `[images]`, each image's share in the mixture, drawn from Beta(1/2, 1/2).

    Example:
      >>> query, partner, _ = draw_query(jax.random.key(0), jnp.array([7, 3, 7, 7]))
      >>> query.tolist(), partner.tolist()
      ([1.0, 0.0, 1.0, 1.0], [1, 1, 1, 1])

    Reference:
      The public code of ProMetaR.
    """
    class_key, partner_key, share_key = jax.random.split(key, 3)
    labels, images = jnp.asarray(labels), jnp.arange(len(labels))
    first = jnp.argmax(labels[:, None] == labels[None], axis=1) == images  # of its class in this batch
    query = labels == labels[jax.random.categorical(class_key, jnp.where(first, 0.0, -jnp.inf))]
    partner = jax.random.categorical(partner_key, jnp.where(query, -jnp.inf, 0.0), shape=images.shape)
    return query.astype(jnp.float32), partner, jax.random.beta(share_key, _BETA, _BETA, images.shape)
