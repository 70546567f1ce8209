"""One step of meta-learning over all devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gram_jax.meta.adapt import check_steps
from gram_jax.meta.objective import Task, check_cross, meta_objective
from gram_jax.meta.start import Meta
from gram_jax.regulators import Regulator

Array = jax.Array
PyTree = Any

AXIS = "tasks"
MAPPERS = ("shard_map", "pmap")
PARTS = ("prompt", "phi", "log_rates", "offsets")


@flax.struct.dataclass
class MetaState:
    """The state of meta-training: what a checkpoint holds.

    Attributes:
      meta: what is learned.
      optimizer_state: state of the outer optimiser, over the learned parts of `meta`.
      step: int32, number of outer steps done.

    Example:
      >>> from gram_jax.meta import init_meta
      >>> MetaState(init_meta({"x": jnp.zeros(3)}, {"x": {}}, learning_rate=0.1), (), jnp.int32(0)).step.item()
      0
    """

    meta: Meta
    optimizer_state: PyTree
    step: Array


class MetaStep(NamedTuple):
    """A compiled step of meta-training, called as `step(state, frozen, tasks) -> (state, metrics)`.

    Attributes:
      init: `init(meta) -> MetaState`, copied to every device.
      place: `place(frozen)` puts what is frozen on every device, once, so that no step has to.
      update: the jitted step itself, for `update.lower(state, frozen, tasks).compile().memory_analysis()`.
      devices: how many devices share the tasks; their number must be a multiple of it.

    Example:
      >>> from gram_jax.meta import make_meta_step
      >>> from gram_jax.regulators import identity
      >>> make_meta_step(lambda prompt, frozen, batch: 0.0, identity(), optax.sgd(0.1), steps=1).devices >= 1
      True
    """

    init: Callable[[Meta], MetaState]
    place: Callable[[PyTree], PyTree]
    update: Callable[[MetaState, PyTree, Task], tuple[MetaState, dict[str, Array]]]
    devices: int

    def __call__(self, state: MetaState, frozen: PyTree, tasks: Task) -> tuple[MetaState, dict[str, Array]]:
        """Checks the tasks and runs the step; the state given is used up (its buffers are donated)."""
        counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tasks)}
        if len(counts) != 1 or counts == {()}:
            found = sorted(counts)
            raise ValueError(f"the tasks' arrays start with axes {found}; stack all of them on one axis of tasks.")
        (count,) = counts.pop()
        if not count or count % self.devices:
            raise ValueError(
                f"{count} tasks cannot be shared by {self.devices} devices; give a positive multiple of "
                f"{self.devices}, or fewer devices."
            )
        # Placed already: nothing happens. Otherwise the same program still runs, instead of one compiled for elsewhere.
        return self.update(state, self.place(frozen), tasks)


def make_meta_step(
    loss: Callable[[PyTree, PyTree, PyTree], Array],
    regulator: Regulator,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    gradient: str | int = "exact",
    cross_weight: float = 1.0,
    learn: Sequence[str] = ("prompt", "phi"),
    mapper: str = "shard_map",
    devices: Sequence[jax.Device] | None = None,
) -> MetaStep:
    """Builds the outer step: a gradient of the meta objective, averaged over tasks and devices, and an update.

    One program runs on every device, vmapped over that device's tasks; gradients are averaged over devices, so the
    result does not depend on their number. It is compiled once for all calls of the same shapes.

    Args:
      loss: `loss(prompt, frozen, batch) -> scalar`; `frozen` is the clip, or a pytree that holds it.
      regulator: the gradient-regulating function.
      optimizer: Optax, for a dictionary of the learned parts, `{"prompt": ..., "phi": ...}`: with
        `optax.multi_transform` each part has its own.
      steps: inner steps K.
      gradient: as in `adapt`.
      cross_weight: as in `meta_objective`.
      learn: which of "prompt", "phi", "log_rates" (the inner step sizes) and "offsets" (of a start that
        `with_structure` made) are learned; the others stay as they are.
      mapper: "shard_map" or "pmap"; both run the same program.
      devices: default all, of all hosts.

    Returns:
      The step: `state = step.init(meta)`, then `state, metrics = step(state, frozen, tasks)`. Metrics are those of
      `meta_objective`, for all tasks in their order, and a scalar `"PART_gradient_norm"` for each learned part.

    Raises:
      ValueError: if a setting is unknown or out of range; the step raises it if the tasks cannot be shared out.

    Example:
      >>> from gram_jax.meta import init_meta
      >>> from gram_jax.regulators import affine
      >>> loss = lambda prompt, frozen, batch: jnp.mean((frozen * prompt["x"] - batch) ** 2)
      >>> regulator, prompt = affine(), {"x": jnp.zeros(2)}
      >>> step = make_meta_step(
      ...     loss, regulator, optax.adam(0.1), steps=3, cross_weight=0, devices=jax.devices()[:1]
      ... )
      >>> state = step.init(init_meta(prompt, regulator.init(jax.random.key(0), prompt), learning_rate=0.1))
      >>> tasks = Task(support=jnp.ones((4, 2)), same=jnp.ones((4, 2)))
      >>> state, first = step(state, jnp.ones(2), tasks)
      >>> state, second = step(state, jnp.ones(2), tasks)
      >>> second["loss"].shape, bool((second["loss"] < first["loss"]).all())
      ((4,), True)

    Reference:
      "Gradient-Regulated Meta-Prompt Learning for Generalizable Vision-Language Models"; "Model-Agnostic
      Meta-Learning for Fast Adaptation of Deep Networks", algorithm 1.
    """
    check_steps(steps, gradient)
    check_cross(cross_weight)
    learn = _check_learn(learn)
    if mapper not in MAPPERS:
        raise ValueError(f"mapper is {mapper!r}; choose one of {', '.join(map(repr, MAPPERS))}.")
    devices = list(jax.devices() if devices is None else devices)
    if not devices:
        raise ValueError("devices is empty; give at least one, or None for all.")

    def body(state: MetaState, frozen: PyTree, tasks: Task) -> tuple[MetaState, dict[str, Array]]:
        def objective(learned: dict[str, PyTree]) -> tuple[Array, dict[str, Array]]:
            return meta_objective(
                lambda prompt, batch: loss(prompt, frozen, batch),
                state.meta.replace(**learned),
                tasks,
                regulator=regulator,
                steps=steps,
                gradient=gradient,
                cross_weight=cross_weight,
            )

        learned = _learned(state.meta, learn)
        grads, metrics = jax.grad(objective, has_aux=True)(learned)
        grads = jax.lax.pmean(grads, AXIS)
        updates, optimizer_state = optimizer.update(grads, state.optimizer_state, learned)
        meta = state.meta.replace(**optax.apply_updates(learned, updates))
        # Gathered, so that every host can name the task whose loss is not finite.
        metrics = jax.lax.all_gather(metrics, AXIS, tiled=True)
        metrics |= {f"{part}_gradient_norm": optax.tree.norm(grads[part]) for part in learn}
        return MetaState(meta, optimizer_state, state.step + 1), metrics

    mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    replicated = NamedSharding(mesh, PartitionSpec())
    if mapper == "shard_map":
        # Unchecked, because with the check a gradient of replicated values is summed over devices on its own, and the
        # same program could not run under pmap.
        mapped = jax.shard_map(
            body,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(AXIS)),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
    else:
        pmapped = jax.pmap(body, AXIS, in_axes=(None, None, 0), out_axes=None, devices=devices)

        def mapped(state: MetaState, frozen: PyTree, tasks: Task) -> tuple[MetaState, dict[str, Array]]:
            shares = jax.tree.map(lambda leaf: leaf.reshape(len(devices), -1, *leaf.shape[1:]), tasks)
            return pmapped(state, frozen, shares)

    update = jax.jit(
        mapped,
        in_shardings=(replicated, replicated, NamedSharding(mesh, PartitionSpec(AXIS))),
        out_shardings=replicated,
        donate_argnums=0,
    )

    def init(meta: Meta) -> MetaState:
        if "offsets" in learn and meta.offsets is None:
            raise ValueError("offsets are to be learned, and this start has none; give it some by with_structure.")
        state = MetaState(meta, optimizer.init(_learned(meta, learn)), jnp.zeros((), jnp.int32))
        # Copied, because a step donates its state; with a plain dtype, because a weak one would compile a second time.
        state = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.asarray(leaf).dtype, copy=True), state)
        return jax.device_put(state, replicated)

    return MetaStep(init, lambda frozen: jax.device_put(frozen, replicated), update, len(devices))


def _learned(meta: Meta, learn: Sequence[str]) -> dict[str, PyTree]:
    return {part: getattr(meta, part) for part in learn}


def _check_learn(learn: Sequence[str]) -> tuple[str, ...]:
    found = (learn,) if isinstance(learn, str) else tuple(learn)
    if not found or len(set(found)) != len(found) or not set(found) <= set(PARTS):
        raise ValueError(f"learn is {learn!r}; name one or more of {', '.join(map(repr, PARTS))}, each once.")
    return found
