"""Downstream tuning: a stack of prompts, one for each run, tuned side by side under a frozen regulator."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gram_jax.clip import Classes, Clip
from gram_jax.errors import InputError
from gram_jax.objectives import batch_loss
from gram_jax.regulators import Regulator
from gram_jax.tuners import Tuner
from gram_jax.tuning.batching import classification_loss
from gram_jax.tuning.gradient_metrics import regulation
from gram_jax.tuning.schedules import check_schedule, scheduled_rate

Array = jax.Array
PyTree = Any

OPTIMIZERS = ("sgd", "adam")
_OWN = ("images", "labels", "context", "run_reference")  # what each run has its own of in a batch


@flax.struct.dataclass
class TuningState:
    """Prompts on their way, stacked on a leading axis of runs.

    Attributes:
      prompts: `[runs, ...]` each leaf.
      optimizer_state: that of the optimizer, `[runs, ...]` each leaf.
      step: int32, the number of steps done.

    Example:
      >>> TuningState({"context": jnp.zeros((3, 4, 8))}, (), jnp.int32(0)).step.item()
      0
    """

    prompts: PyTree
    optimizer_state: PyTree
    step: Array


class Tuning(NamedTuple):
    """Compiled tuning of one tuner under one regulator; see `make_tuning`.

    Attributes:
      init: `init(prompts, phi=None) -> TuningState`, of prompts that are stacked on an axis of runs; phi only where it
        is learned along with them, see `make_alternating`.
      step: `step(state, phi, clip, batch, learning_rate, total_steps, epoch_steps=1, warmup_epochs=1) -> (state,
        metrics)`, one step of every run.
      logits: `logits(prompts, clip, classes, images) -> [runs, images, classes]`, all runs on the same images.
      lower: of the arguments of `step`, its `jax.stages.Lowered`, for analyses of memory and operations.

    Example:
      >>> from gram_jax import regulators, tuners
      >>> make_tuning(tuners.coop(), regulators.identity())._fields
      ('init', 'step', 'logits', 'lower')
    """

    init: Callable[..., TuningState]
    step: Callable[..., tuple[TuningState, dict[str, Array]]]
    logits: Callable[[PyTree, Clip, Any, Array], Array]
    lower: Callable[..., jax.stages.Lowered]


class Cost(NamedTuple):
    """What a step of tuning takes, all runs together.

    Attributes:
      seconds: of time, the input and all but the first step, which is compiled, included.
      bytes: of memory of the device: arguments, results and what is between them.

    Example:
      >>> Cost(0.01, 2**20).bytes
      1048576
    """

    seconds: float
    bytes: int


class Tuned(NamedTuple):
    """What `tune` returns.

    Attributes:
      prompts: by number of steps done, the prompts `[runs, ...]`.
      metrics: by name, `[steps, runs]`, those of `make_tuning`.
      cost: of a step; None where it was not measured.

    Example:
      >>> Tuned({0: {"context": jnp.zeros((3, 4, 8))}}, {}).prompts[0]["context"].shape
      (3, 4, 8)
    """

    prompts: dict[int, PyTree]
    metrics: dict[str, np.ndarray]
    cost: Cost | None = None


def make_tuning(
    tuner: Tuner,
    regulator: Regulator,
    *,
    loss: Callable[[PyTree, Clip, dict[str, Any]], Any] | None = None,
    optimizer: str = "sgd",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    schedule: str = "constant",
) -> Tuning:
    """Builds the regulated optimizer step, for many runs at once.

    With U the optimizer (SGD, with momentum or without, or Adam), phi frozen, alpha_k the rate of the schedule
    (`scheduled_rate`), w the weight decay, for each run

        theta_{k+1} = theta_k - alpha_k U( R_phi(grad L(theta_k; batch_k), context) + w theta_k ).

    The decay is coupled: it passes through the optimizer with the gradient, as in PyTorch's SGD. Where R holds the
    gradient against a second one, that of its setting "reference" at the same prompt and batch is the context.

    The step is compiled once for each combination of shapes: start, phi, class names, rate and length of training
    are arguments. Methods that share a tuner, a regulator and a loss should share this object.

    Args:
      tuner: the tuner.
      regulator: R.
      loss: L, `loss(prompt, clip, batch) -> scalar`, e.g. `objectives.batch_loss(tuner, "kgcoop:8").loss`; for a
        regulator with a reference gradient `-> (scalar, scalar)`, L and what that is the gradient of. None: the
        cross-entropy, and what the regulator names.
      optimizer: "sgd" or "adam".
      momentum: of SGD, in [0, 1).
      weight_decay: w, at least 0.
      schedule: one of `schedules.SCHEDULES`.

    Returns:
      The `Tuning`. Its step takes: the state; phi, shared by the runs; the clip; a batch, a dictionary of "classes"
      and "valid" bool `[classes]`, shared by the runs, "images" `[runs, batch, ...]`, "labels" int `[runs, batch]`,
      for regulators that read one, "context" `[runs, context_dim]`, and what the loss reads beside these, shared by
      the runs but for "run_reference", `[runs, ...]` each leaf; a learning rate, one number or a number for each
      leaf of a prompt; the total number of steps; the steps of an epoch, 1 by default; and the epochs of the warm-up,
      like the rate, 1 by default. Its metrics, `[runs]` each, are "loss", "gradient_norm" |g|, "gradient_norm_ratio"
      |R(g)| / |g| and "gradient_cosine" <R(g), g> / |R(g)| |g|, over all leaves together and before the update; where g
      is 0 the last two are 1.

    Raises:
      InputError: a setting has an impossible value; on a step, if a learning rate is not one of the above.

    Example:
      >>> from gram_jax import regulators, tuners
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(), tuners.coop()
      >>> tuning = make_tuning(tuner, regulators.identity(), optimizer="adam", schedule="cosine")
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> state = tuning.init(jax.vmap(lambda key: tuner.init(key, clip, None))(keys))
      >>> state.prompts["context"].shape == (3, 4, clip.config.text.width)
      True

    Reference:
      "Gradient-Regulated Meta-Prompt Learning for Generalizable Vision-Language Models": the regulating function stays
      in downstream adaptation. Momentum and weight decay as in PyTorch's `SGD`.
    """
    check_schedule(schedule)
    direction = descent(optimizer, momentum, weight_decay)
    held = regulator.settings.get("reference", "")
    if loss is None:
        loss = batch_loss(tuner, reference=held).loss if held else classification_loss(tuner)

    def init(prompts: PyTree, phi: PyTree = None) -> TuningState:
        del phi  # it is frozen
        prompts = jax.tree.map(jnp.asarray, prompts)
        return TuningState(prompts, jax.vmap(direction.init)(prompts), jnp.zeros((), jnp.int32))

    @jax.jit
    def update(
        state: TuningState,
        phi: PyTree,
        clip: Clip,
        batch: dict[str, Any],
        rates: PyTree,
        lengths: tuple[Array, Array],
        warmup: PyTree,
    ) -> tuple[TuningState, dict[str, Array]]:
        rates = jax.tree.map(lambda *of: scheduled_rate(schedule, of[0], state.step, *lengths, of[1]), rates, warmup)
        shared = {name: value for name, value in batch.items() if name not in _OWN}

        def one(prompt: PyTree, optimizer_state: PyTree, own: dict[str, Any]) -> Any:
            if held:  # both gradients of one forward pass
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

        own = {name: batch[name] for name in _OWN if name in batch}
        prompts, optimizer_state, metrics = jax.vmap(one)(state.prompts, state.optimizer_state, own)
        return TuningState(prompts, optimizer_state, state.step + 1), metrics

    def step(*given: Any, **named: Any) -> tuple[TuningState, dict[str, Array]]:
        return update(*step_arguments(*given, **named))

    def lower(*given: Any, **named: Any) -> jax.stages.Lowered:
        return update.lower(*step_arguments(*given, **named))

    return Tuning(init, step, run_logits(tuner), lower)


def tune(
    tuning: Tuning,
    prompts: PyTree,
    phi: PyTree,
    clip: Clip,
    batches: Iterable[dict[str, Any]],
    learning_rate: PyTree,
    *,
    total_steps: int,
    epoch_steps: int = 1,
    warmup_epochs: PyTree = 1,
    report: Collection[int] = (),
    epoch_weights: np.ndarray | None = None,
    measure_cost: bool = False,
) -> Tuned:
    """Tunes a stack of prompts on batches, one step each.

    Args:
      tuning: as `make_tuning` builds it.
      prompts: where the runs start, stacked on a leading axis `[runs, ...]`.
      phi: the regulator's parameters, frozen; or where they start, `[runs, ...]`, where they are learned.
      clip: the frozen clip.
      batches: `total_steps` batches or more, as a step of `make_tuning` takes them.
      learning_rate: alpha, one number, or a number for each leaf of a prompt.
      total_steps: how many steps to take, 0 or more.
      epoch_steps: how many of them are an epoch, at least 1, for schedules that go by epochs.
      warmup_epochs: how many epochs the warm-up takes, one number, or a number for each leaf of a prompt, for schedules
        that have one.
      report: numbers of steps after which the prompts are kept; those after the last step always are.
      epoch_weights: of the prompts after each epoch, `[epochs]`, e.g. `objectives.gaussian_weights(20, 15, 1)`: their
        weighted sum is what the last step leaves. None: the last prompts.
      measure_cost: measures time and memory of a step, where there are two or more; compiles the step once more, or
        takes it from the compilation cache.

    Returns:
      The prompts, by number of steps, the metrics of every step, and what a step cost.

    Raises:
      InputError: if there are too few batches, a number of steps in `report` is never reached, or there is not one
        weight an epoch.

    Example:
      >>> from gram_jax import regulators, tuners
      >>> from gram_jax.tuning import pad_classes
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(text_layers=1), tuners.coop(init_text="a photo of a")
      >>> classes, valid = pad_classes(clip, clip.class_tokens(["cat", "dog"]))
      >>> prompts = jax.tree.map(lambda leaf: leaf[None], tuner.init(jax.random.key(0), clip, None))
      >>> images = jax.random.normal(jax.random.key(1), (1, 8, 16)) / 4
      >>> batch = {"classes": classes, "valid": valid, "images": images, "labels": jnp.arange(8)[None] % 2}
      >>> tuning = make_tuning(tuner, regulators.identity())
      >>> tuned = tune(tuning, prompts, {"context": {}}, clip, [batch] * 5, 0.01, total_steps=5, report=(0, 1))
      >>> list(tuned.prompts), tuned.metrics["loss"].shape, bool(tuned.metrics["loss"][4] < tuned.metrics["loss"][0])
      ([0, 1, 5], (5, 1), True)

    Reference:
      See `make_tuning`.
    """
    if epoch_steps < 1:
        raise InputError(f"epoch_steps is {epoch_steps}; an epoch has at least 1 step.")
    wanted = {*report, total_steps}
    if total_steps < 0 or not all(0 <= number <= total_steps for number in wanted):
        raise InputError(
            f"prompts after {sorted(wanted)} steps are asked for in {total_steps} steps; ask for 0 to {total_steps}."
        )
    if epoch_weights is not None and len(epoch_weights) * epoch_steps != total_steps:
        raise InputError(
            f"there are {len(epoch_weights)} epoch_weights for {total_steps} steps in epochs of {epoch_steps}; give "
            "one an epoch."
        )
    state = tuning.init(prompts, phi)
    lengths = total_steps, epoch_steps, warmup_epochs
    mean = jax.tree.map(jnp.zeros_like, state.prompts)
    kept = {0: state.prompts} if 0 in wanted else {}
    found: list[dict[str, Array]] = []
    begun, source = 0.0, iter(batches)
    for done in range(1, total_steps + 1):
        batch = next(source, None)
        if batch is None:
            raise InputError(f"there are {done - 1} batches, and {total_steps} steps are asked for; give one a step.")
        state, metrics = tuning.step(state, phi, clip, batch, learning_rate, *lengths)
        found.append(metrics)
        if measure_cost and done == 1:
            jax.block_until_ready(state)
            begun = time.monotonic()
        if done in wanted:
            kept[done] = state.prompts
        if epoch_weights is not None and done % epoch_steps == 0:
            weight = float(epoch_weights[done // epoch_steps - 1])
            mean = jax.tree.map(lambda total, leaf, weight=weight: total + weight * leaf, mean, state.prompts)
            kept |= {done: mean} if done == total_steps else {}
    cost = None
    if measure_cost and total_steps > 1:
        jax.block_until_ready(state)
        seconds = (time.monotonic() - begun) / (total_steps - 1)
        lowered = tuning.lower(state, phi, clip, batch, learning_rate, *lengths)
        cost = Cost(seconds, memory_bytes(lowered.compile()))
    return Tuned(
        kept, {name: np.stack([metrics[name] for metrics in found]) for name in (found[0] if found else ())}, cost
    )


def memory_bytes(compiled: jax.stages.Compiled) -> int:
    """The memory of a device that a compiled program takes.

    Args:
      compiled: as `jitted.lower(...).compile()` returns it.

    Returns:
      Bytes of arguments, of results that share no memory with them, and between; 0 where the compiler says nothing.

    Example:
      >>> memory_bytes(jax.jit(lambda x: x + 1).lower(jnp.zeros(256)).compile())
      2048

    Reference:
      Our own choice; `jax.stages.Compiled.memory_analysis`.
    """
    found = compiled.memory_analysis()
    if found is None:
        return 0
    parts = found.argument_size_in_bytes, found.output_size_in_bytes, found.temp_size_in_bytes
    return sum(parts) - found.alias_size_in_bytes


def descent(optimizer: str, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """The optimizer without its rate and sign, the decay coupled; checks the settings."""
    if optimizer not in OPTIMIZERS:
        raise InputError(f"optimizer must be one of {', '.join(map(repr, OPTIMIZERS))}, found {optimizer!r}.")
    if not 0 <= momentum < 1 or (momentum and optimizer != "sgd"):
        raise InputError(f"momentum is {momentum!r} with {optimizer!r}; it belongs to 'sgd' and lies in [0, 1).")
    if not 0 <= weight_decay < math.inf:
        raise InputError(f"weight_decay is {weight_decay!r}; give a number of at least 0.")
    plain = optax.trace(momentum) if momentum else optax.identity()
    direction = optax.scale_by_adam() if optimizer == "adam" else plain
    return optax.chain(optax.add_decayed_weights(weight_decay), direction) if weight_decay else direction


def run_logits(tuner: Tuner) -> Callable[[PyTree, Clip, Any, Array], Array]:
    """The function `logits` of a `Tuning`."""

    @jax.jit
    def logits(prompts: PyTree, clip: Clip, classes: Classes | Array, images: Array) -> Array:
        return jax.vmap(lambda prompt: tuner.apply(prompt, clip, classes, images).logits)(prompts)

    return logits


def step_arguments(
    state: Any,
    phi: PyTree,
    clip: Clip,
    batch: dict[str, Any],
    learning_rate: PyTree,
    total_steps: int,
    epoch_steps: int = 1,
    warmup_epochs: PyTree = 1,
) -> tuple[Any, ...]:
    """The arguments of a compiled step: rates and epochs of warm-up leaf by leaf, numbers as arrays."""
    lengths = jnp.asarray(total_steps, jnp.int32), jnp.asarray(epoch_steps, jnp.int32)
    rates, warmup = per_leaf(learning_rate, state.prompts), per_leaf(warmup_epochs, state.prompts, "warmup_epochs")
    return state, phi, clip, batch, rates, lengths, warmup


def per_leaf(value: PyTree, prompts: PyTree, name: str = "learning_rate") -> PyTree:
    """A float32 for each leaf of a prompt, of one number or of a number for each."""
    structure = jax.tree.structure(prompts)
    if jax.tree.structure(value) != structure:
        if jax.tree.structure(value) != jax.tree.structure(0.0) or jnp.ndim(value):
            raise InputError(
                f"{name} has structure {jax.tree.structure(value)} and a prompt {structure}; give one number, or a "
                "number for each leaf of the prompt."
            )
        value = jax.tree.unflatten(structure, [value] * structure.num_leaves)
    return jax.tree.map(lambda number: jnp.asarray(number, jnp.float32), value)
