"""Tuning a stack of prompts, one for each run, side by side under a frozen regulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gram_jax.choices import OPTIMIZERS, SCHEDULES
from gram_jax.clip import Classes, Clip
from gram_jax.errors import InputError, require_known, require_number
from gram_jax.objectives import batch_loss, cross_entropy
from gram_jax.objectives.base import exclude
from gram_jax.regulators import Regulator
from gram_jax.summary import short_repr
from gram_jax.tuners import Tuner
from gram_jax.tuning.gradient_metrics import regulation
from gram_jax.tuning.schedules import per_leaf, scheduled_rate

Array = jax.Array
PyTree = Any

Batch = dict[str, Any]
Lengths = tuple[Array, Array]  # of a run and of an epoch, in steps

_PER_RUN = ("images", "labels", "context", "run_reference")  # entries of a batch with a leading axis of runs


@flax.struct.dataclass
class TuningState:
    """The state of a tuning run: prompts and the state of the optimizer, each leaf `[runs, ...]`.

    Attributes:
      step: int32, the number of completed steps.
    """

    prompts: PyTree
    optimizer_state: PyTree
    step: Array

    __repr__ = short_repr


class Tuning(NamedTuple):
    """The compiled functions that tune one tuner under one regulator; see `make_tuning`.

    Attributes:
      init: `init(prompts, phi=None) -> TuningState`, with prompts stacked on an axis of runs. Only `make_alternating`
        reads phi, since it learns phi together with the prompts.
      step: `step(state, phi, clip, batch, learning_rate, total_steps, epoch_steps=1, warmup_epochs=1) -> (state,
        metrics)`, one step of every run.
      logits: `logits(prompts, clip, classes, images) -> [runs, images, classes]`, all runs on the same images.
      lower: takes the arguments of `step`, returns its `jax.stages.Lowered`, to analyze memory and operations.
    """

    init: Callable[..., Any]
    step: Callable[..., tuple[Any, dict[str, Array]]]
    logits: Callable[[PyTree, Clip, Any, Array], Array]
    lower: Callable[..., jax.stages.Lowered]


def classification_loss(tuner: Tuner) -> Callable[[PyTree, Clip, Batch], Array]:
    """Returns the cross-entropy of a tuner on a batch, whose class list may be padded.

        loss = CE( where(valid, logits, -1e9), labels )

    Args:
      tuner: the tuner.

    Returns:
      `loss(prompt, clip, batch) -> scalar`, as `make_meta_step` requires it. `batch` is a dictionary: "classes" and
      "images" as the tuner requires them, "labels" int `[images]`, and "valid" bool `[classes]`, which is optional.

    Example:
      >>> from gram_jax import tuners
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(text_layers=1), tuners.coop()
      >>> classes = clip.class_tokens(["cat", "dog"])
      >>> batch = {"classes": classes, "images": jnp.ones((3, 16)) / 4, "labels": jnp.array([0, 1, 1])}
      >>> classification_loss(tuner)(tuner.init(jax.random.key(0), clip, classes), clip, batch).shape
      ()

    Reference:
      "Learning to Prompt for Vision-Language Models", section 3.2, equation 4.
    """

    def loss(prompt: PyTree, clip: Clip, batch: Batch) -> Array:
        outputs = tuner.apply(prompt, clip, batch["classes"], batch["images"])
        return cross_entropy(outputs._replace(logits=exclude(outputs.logits, batch.get("valid"))), batch["labels"])

    return loss


def make_tuning(
    tuner: Tuner,
    regulator: Regulator,
    *,
    loss: Callable[[PyTree, Clip, Batch], Any] | None = None,
    optimizer: str = "sgd",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    schedule: str = "constant",
) -> Tuning:
    """Builds the regulated optimizer step for many runs at once.

    With U the optimizer (Adam, or SGD with or without momentum), phi frozen, alpha_k the scheduled rate
    (`scheduled_rate`) and w the weight decay, each run computes

        theta_{k+1} = theta_k - alpha_k U( R_phi(grad L(theta_k; batch_k), context) + w theta_k ).

    The decay is coupled: it passes through the optimizer together with the gradient, as in PyTorch's SGD. If R compares
    the gradient with a second one, the context is the gradient of its setting "reference" at the same prompt and batch.

    The step is compiled once for each combination of shapes: initialization, phi, class names, rate and length are
    arguments. Methods that share a tuner, a regulator and a loss should share this object.

    Args:
      tuner, regulator: the tuner, and R.
      loss: L, `loss(prompt, clip, batch) -> scalar`, e.g. `objectives.batch_loss(tuner, "kgcoop:8").loss`. For a
        regulator with a reference gradient `-> (scalar, scalar)`: L, and the loss whose gradient is the reference.
        None: the cross-entropy, and the reference that the regulator names.
      optimizer, schedule: one of `choices.OPTIMIZERS` and of `choices.SCHEDULES`.
      momentum, weight_decay: the momentum of SGD, in [0, 1), and w.

    Returns:
      The `Tuning`. The arguments of its step are the state; phi, shared by the runs; the clip; a batch; a learning
      rate, one number or one for each leaf of a prompt; the total number of steps; the steps of an epoch; and the
      epochs of the warm-up, in the form of the rate. A batch is a dictionary: "classes" and "valid" bool `[classes]`,
      shared by the runs, "images" `[runs, batch, ...]`, "labels" int `[runs, batch]`, "context" `[runs, context_dim]`
      for regulators that read one, and further entries that the loss reads, shared by the runs, except
      "run_reference", each leaf `[runs, ...]`. The metrics, each `[runs]`, are "loss" and those of
      `gradient_metrics.regulation`, before the update.

    Example:
      >>> from gram_jax import regulators, tuners
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(), tuners.coop()
      >>> tuning = make_tuning(tuner, regulators.identity(), optimizer="adam", schedule="cosine")
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> tuning.init(jax.vmap(lambda key: tuner.init(key, clip, None))(keys)).prompts["context"].shape[:2]
      (3, 4)

    Reference:
      "Gradient-Regulated Meta-Prompt Learning for Generalizable Vision-Language Models": the regulating function stays
      in downstream adaptation. Momentum and weight decay as in PyTorch's `SGD`.
    """
    require_known("schedule", schedule, SCHEDULES)
    direction = descent(optimizer, momentum, weight_decay)
    reference = regulator.settings.get("reference", "")
    if loss is None:
        loss = batch_loss(tuner, reference=reference).loss if reference else classification_loss(tuner)

    def init(prompts: PyTree, phi: PyTree = None) -> TuningState:
        del phi  # frozen
        prompts = jax.device_put(prompts)
        return TuningState(prompts, jax.vmap(direction.init)(prompts), jnp.zeros((), jnp.int32))

    @jax.jit
    def update(
        state: TuningState, phi: PyTree, clip: Clip, batch: Batch, rates: PyTree, lengths: Lengths, warmup: PyTree
    ) -> tuple[TuningState, dict[str, Array]]:
        rates = jax.tree.map(lambda r, w: scheduled_rate(schedule, r, state.step, *lengths, w), rates, warmup)
        shared = {name: value for name, value in batch.items() if name not in _PER_RUN}

        def one(prompt: PyTree, optimizer_state: PyTree, own: dict[str, Any]) -> Any:
            if reference:  # both gradients of one forward pass
                (value, other), pull = jax.vjp(lambda prompt: loss(prompt, clip, shared | own), prompt)
                (grads,) = pull((jnp.ones_like(value), jnp.zeros_like(other)))
                (context,) = pull((jnp.zeros_like(value), jnp.ones_like(other)))
            else:
                value, grads = jax.value_and_grad(loss)(prompt, clip, shared | own)
                context = own.get("context")
            regulated = regulator.apply(phi, grads, context)
            updates, optimizer_state = direction.update(regulated, optimizer_state, prompt)
            updates = jax.tree.map(lambda rate, leaf: -rate * leaf, rates, updates)
            metrics = {"loss": value} | regulation(grads, regulated)
            return optax.apply_updates(prompt, updates), optimizer_state, metrics

        own = {name: batch[name] for name in _PER_RUN if name in batch}
        prompts, optimizer_state, metrics = jax.vmap(one)(state.prompts, state.optimizer_state, own)
        return TuningState(prompts, optimizer_state, state.step + 1), metrics

    return Tuning(
        init,
        lambda *given, **named: update(*step_arguments(*given, **named)),
        run_logits(tuner),
        lambda *given, **named: update.lower(*step_arguments(*given, **named)),
    )


def descent(optimizer: str, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """Returns the optimizer without its rate and sign, with coupled decay; checks the settings."""
    require_known("optimizer", optimizer, OPTIMIZERS)
    require_number("momentum", momentum, least=0)
    require_number("weight_decay", weight_decay, least=0)
    if momentum >= 1 or (momentum and optimizer != "sgd"):
        raise InputError(f"momentum={momentum!r} with optimizer={optimizer!r}: only 'sgd' has a momentum, below 1")
    plain = optax.trace(momentum) if momentum else optax.identity()
    direction = optax.scale_by_adam() if optimizer == "adam" else plain
    return optax.chain(optax.add_decayed_weights(weight_decay), direction) if weight_decay else direction


def run_logits(tuner: Tuner) -> Callable[[PyTree, Clip, Any, Array], Array]:
    """Returns the function `logits` of a `Tuning`."""

    @jax.jit
    def logits(prompts: PyTree, clip: Clip, classes: Classes | Array, images: Array) -> Array:
        return jax.vmap(lambda prompt: tuner.apply(prompt, clip, classes, images).logits)(prompts)

    return logits


def step_arguments(
    state: Any,
    phi: PyTree,
    clip: Clip,
    batch: Batch,
    learning_rate: PyTree,
    total_steps: int,
    epoch_steps: int = 1,
    warmup_epochs: PyTree = 1,
) -> tuple[Any, ...]:
    """Returns the arguments of a compiled step: rates and warm-up epochs leaf by leaf, numbers as arrays."""
    lengths = jnp.asarray(total_steps, jnp.int32), jnp.asarray(epoch_steps, jnp.int32)
    rates = per_leaf(learning_rate, state.prompts, dtype=jnp.float32)
    warmup = per_leaf(warmup_epochs, state.prompts, "warmup_epochs", jnp.float32)
    return state, phi, clip, batch, rates, lengths, warmup
