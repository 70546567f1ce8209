"""Tuning that learns its regulator along the way: ProMetaR's two steps on every batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gram_jax.clip import Clip, encode_image, logits
from gram_jax.clip.modules import at_least_float32
from gram_jax.errors import InputError, require_known, require_number
from gram_jax.objectives import batch_loss
from gram_jax.objectives.base import exclude, normalize, weighted_mean
from gram_jax.regulators import Regulator
from gram_jax.tuners import Outputs, Tuner
from gram_jax.tuners.vpt import visual_prompt
from gram_jax.tuning.gradient_metrics import regulation
from gram_jax.tuning.schedules import SCHEDULES, scheduled_rate
from gram_jax.tuning.step import Tuning, descent, run_logits, step_arguments

Array = jax.Array
PyTree = Any

PHI_WARMUP_RATE = 1e-6  # of the regulator in the first epochs
_BETA = 0.5  # both parameters of the distribution that images are mixed by
_OWN = ("images", "labels", "context", "run_reference", "seed")  # what each run has its own of in a batch


@flax.struct.dataclass
class AlternatingState:
    """Prompts and regulators on their way, stacked on a leading axis of runs.

    Attributes:
      prompts: `[runs, ...]` each leaf.
      optimizer_state: that of the prompts' SGD, `[runs, ...]` each leaf.
      phi: the regulators, `[runs, ...]` each leaf.
      phi_state: that of the regulators' SGD, `[runs, ...]` each leaf.
      step: int32, the number of batches done.

    Example:
      >>> AlternatingState({"context": jnp.zeros((3, 4, 8))}, (), {"context": {}}, (), jnp.int32(0)).step.item()
      0
    """

    prompts: PyTree
    optimizer_state: PyTree
    phi: PyTree
    phi_state: PyTree
    step: Array


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

    With L_I the cross-entropy of the images I of a batch, g_I = R_phi(grad L_I, r_I) its gradient under the regulator
    (r_I that of what the regulator's setting "reference" names, on the same images), alpha the rate of the schedule,
    SGD with momentum and coupled weight decay, on each batch B

        1.  theta <- SGD(theta, alpha, g_B(theta, phi))
        2.  one random class of the batch is the query Q, the rest the support S:
            theta'     = theta - beta g_S(theta, phi)
            q          = w mean_{i in Q} ( l_i CE_i(y_i) + (1 - l_i) CE_i(y_s(i)) )     at theta', of the mixed features
                         l_i f_i + (1 - l_i) f_s(i),  s(i) a random image of S,  l_i ~ Beta(1/2, 1/2)
            theta, phi <- SGD(theta, alpha, dq/dtheta), SGD(phi, rho alpha, dq/dphi)

    The derivatives of q are exact: they pass through g_S, and through the gradients that phi reads. Both steps of a
    prompt share one momentum. A batch of one class has no second step: phi and its momentum stay. During the warm-up,
    phi moves at 1e-6.

    Features are mixed before they are normalized where the tuner is `ivlp`, the published one; other tuners give
    features that are. The split is one of masks, so that the step is compiled once.

    Args:
      tuner: the tuner.
      regulator: R, with parameters to learn, e.g. `regulators.prometar()`.
      momentum: of both, in [0, 1).
      weight_decay: of both, at least 0.
      schedule: one of `schedules.SCHEDULES`.
      adapt_rate: beta, above 0.
      query_weight: w, above 0.
      phi_rate: rho, above 0.

    Returns:
      A `Tuning`, to be used as that of `make_tuning`, but for this: `init(prompts, phi)` takes where the regulators
      start, `[runs, ...]` each leaf, and what a step is given as phi is not read, the state has its own. A batch also
      holds "seed", int `[runs]`, of which, with the number of the step, queries and mixtures are drawn. Metrics are
      those of step 1, and "query_loss", q / w, 0 where there is none.

    Raises:
      InputError: a setting has an impossible value, or the regulator reads prototypes; `init` raises it where phi has
        nothing to learn.

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
      "Prompt Learning via Meta-Regularization" (ProMetaR), section 4, in the form of its public code, from which how
      images are paired and mixed is taken.
    """
    require_known("schedule", schedule, SCHEDULES)
    direction = descent("sgd", momentum, weight_decay)
    for name, value in (("adapt_rate", adapt_rate), ("query_weight", query_weight), ("phi_rate", phi_rate)):
        require_number(name, value, above=0)
    if "prototypes" in regulator.settings:
        raise InputError(
            f"{regulator.name} reads a task's relation to the prototypes of a hierarchy, which is learned by "
            "meta-training; take another regulator."
        )
    held = regulator.settings.get("reference", "")
    losses, features = _losses(tuner, held), _unnormalized(tuner)

    def init(prompts: PyTree, phi: PyTree = None) -> AlternatingState:
        prompts, phi = jax.tree.map(jnp.asarray, (prompts, phi))
        if not jax.tree.leaves(phi):
            raise InputError(
                f"there are no parameters of {regulator.name} to learn; give init(prompts, phi) what the regulator's "
                "init makes for each run, stacked, or tune with make_tuning."
            )
        states = jax.vmap(direction.init)(prompts), jax.vmap(direction.init)(phi)
        return AlternatingState(prompts, states[0], phi, states[1], jnp.zeros((), jnp.int32))

    def moved(learned: PyTree, state: PyTree, grads: PyTree, rates: PyTree) -> tuple[PyTree, PyTree]:
        """A step of SGD; a leaf of `rates` may be that of several leaves."""
        updates, state = direction.update(grads, state, learned)
        updates = jax.tree.map(lambda rate, own: jax.tree.map(lambda leaf: -rate * leaf, own), rates, updates)
        return optax.apply_updates(learned, updates), state

    def query_loss(prompt: PyTree, clip: Clip, batch: dict[str, Any], split: tuple[Array, Array, Array]) -> Array:
        query, partner, share = split
        outputs = tuner.apply(prompt, clip, batch["classes"], batch["images"])
        own = at_least_float32(features(prompt, clip, batch["images"], outputs))
        mixed = normalize(share[:, None] * own + (1 - share[:, None]) * own[partner])
        scores = exclude(logits(mixed, outputs.text_features, clip.params["logit_scale"]), batch.get("valid"))
        surprise = -jax.nn.log_softmax(scores)[jnp.arange(len(own))[:, None], _pairs(batch["labels"], partner)]
        return weighted_mean(share * surprise[:, 0] + (1 - share) * surprise[:, 1], query)

    @jax.jit
    def update(
        state: AlternatingState,
        clip: Clip,
        batch: dict[str, Any],
        rates: PyTree,
        lengths: tuple[Array, Array],
        warmup: PyTree,
    ) -> tuple[AlternatingState, dict[str, Array]]:
        def scheduled(rate: Array, epochs: Array, **of_warmup: float) -> Array:
            return scheduled_rate(schedule, rate, state.step, *lengths, epochs, **of_warmup)

        phi_rates = jax.tree.map(
            lambda rate, epochs: scheduled(phi_rate * rate, epochs, warmup_rate=PHI_WARMUP_RATE), rates, warmup
        )
        rates = jax.tree.map(scheduled, rates, warmup)
        shared = {name: value for name, value in batch.items() if name not in _OWN}

        def one(prompt: PyTree, prompt_state: PyTree, phi: PyTree, phi_state: PyTree, own: dict[str, Any]) -> Any:
            known, labels = shared | own, own["labels"]

            def gradients(prompt: PyTree, phi: PyTree, counts: Array) -> tuple[Array, PyTree, PyTree]:
                """Loss, gradient and regulated gradient on the images that count."""
                (value, other), pull = jax.vjp(lambda prompt: losses(prompt, clip, known, counts), prompt)
                (grads,) = pull((jnp.ones_like(value), jnp.zeros_like(other)))
                (reference,) = pull((jnp.zeros_like(value), jnp.ones_like(other)))
                return value, grads, regulator.apply(phi, grads, reference if held else own.get("context"))

            value, grads, regulated = gradients(prompt, phi, jnp.ones(len(labels)))
            metrics = {"loss": value} | regulation(grads, regulated)
            prompt, prompt_state = moved(prompt, prompt_state, regulated, rates)

            split = draw_query(jax.random.fold_in(jax.random.key(own["seed"]), state.step), labels)
            query = split[0]

            def after_adaptation(prompt: PyTree, phi: PyTree) -> Array:
                _, _, regulated = gradients(prompt, phi, 1 - query)
                adapted = jax.tree.map(lambda leaf, step: leaf - adapt_rate * step, prompt, regulated)
                return query_weight * query_loss(adapted, clip, known, split)

            asked, (of_prompt, of_phi) = jax.value_and_grad(after_adaptation, (0, 1))(prompt, phi)
            before = (prompt, prompt_state), (phi, phi_state)
            after = moved(*before[0], of_prompt, rates), moved(*before[1], of_phi, phi_rates)
            several = jnp.any(query < 1)
            found = jax.tree.map(lambda new, old: jnp.where(several, new, old), after, before)
            metrics["query_loss"] = jnp.where(several, asked / query_weight, 0.0)
            return *found[0], *found[1], metrics

        own = {name: batch[name] for name in _OWN if name in batch}
        *learned, metrics = jax.vmap(one)(state.prompts, state.optimizer_state, state.phi, state.phi_state, own)
        return AlternatingState(*learned, state.step + 1), metrics

    def arguments(*given: Any, **named: Any) -> tuple[Any, ...]:
        state, _, *rest = step_arguments(*given, **named)
        if "seed" not in rest[1]:
            raise InputError('a batch has no "seed"; give one number for each run, int [runs].')
        return state, *rest

    def step(*given: Any, **named: Any) -> tuple[AlternatingState, dict[str, Array]]:
        return update(*arguments(*given, **named))

    def lower(*given: Any, **named: Any) -> jax.stages.Lowered:
        return update.lower(*arguments(*given, **named))

    return Tuning(init, step, run_logits(tuner), lower)


def draw_query(key: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Which images of a batch are the query, and what each is mixed with.

    Args:
      key: of all draws.
      labels: int `[images]`.

    Returns:
      * float `[images]`, 1 for the images of one class, each class of the batch as likely as any other, 0 for the rest;
      * int `[images]`, for each image a random one of another class than that; any where there is none;
      * float `[images]`, each image's share of a mixture with it, drawn from Beta(1/2, 1/2).

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
    chosen = labels[jax.random.categorical(class_key, jnp.where(first, 0.0, -jnp.inf))]
    query = labels == chosen
    partner = jax.random.categorical(partner_key, jnp.where(query, -jnp.inf, 0.0), shape=images.shape)
    return query.astype(jnp.float32), partner, jax.random.beta(share_key, _BETA, _BETA, images.shape)


def _pairs(labels: Array, partner: Array) -> Array:
    """The labels of each image and of its partner, `[images, 2]`."""
    return jnp.stack([labels, labels[partner]], axis=1)


def _losses(tuner: Tuner, spec: str) -> Callable[..., tuple[Array, Array]]:
    """Of the images that count: the cross-entropy, and the regularizers that a reference gradient is of, or 0."""
    loss = batch_loss(tuner, reference=spec).loss

    def losses(prompt: PyTree, clip: Clip, batch: dict[str, Any], counts: Array) -> tuple[Array, Array]:
        found = loss(prompt, clip, batch | {"weights": counts})
        return found if spec else (found, jnp.zeros(()))

    return losses


def _unnormalized(tuner: Tuner) -> Callable[[PyTree, Clip, Array, Outputs], Array]:
    """Features of images as the image transformer leaves them, where the tuner's are known so; else normalized."""
    if tuner.name != "ivlp":
        return lambda prompt, clip, images, outputs: outputs.image_features
    placement = tuner.settings["placement"]

    def features(prompt: PyTree, clip: Clip, images: Array, outputs: Outputs) -> Array:
        return encode_image(clip, images, visual_prompt(prompt["visual"], placement), normalize=False)

    return features
