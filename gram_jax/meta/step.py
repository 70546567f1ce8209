"""One outer step of meta-learning, shared by all devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gram_jax.choices import MAPPERS
from gram_jax.errors import InputError, require_int, require_known, require_number
from gram_jax.meta.adapt import differentiated_steps
from gram_jax.meta.initialization import Meta
from gram_jax.meta.objective import Task, meta_objective
from gram_jax.regulators import Regulator

Array = jax.Array
PyTree = Any
Metrics = dict[str, Array]

AXIS = "tasks"
PARTS = ("prompt", "phi", "log_rates", "offsets")


@flax.struct.dataclass
class MetaState:
    """The state of meta-training, as stored in a checkpoint.

    Attributes:
      meta, step: the values being learned, and the number of outer steps done, int32.
      optimizer_state: state of the outer optimizer, over the learned parts of `meta`.
    """

    meta: Meta
    optimizer_state: PyTree
    step: Array


class MetaStep(NamedTuple):
    """A compiled step of meta-training, called as `step(state, frozen, tasks) -> (state, metrics)`.

    Attributes:
      init: `init(meta) -> MetaState`, copied to every device.
      place: `place(frozen)` copies the frozen values to every device, so that the steps need not.
      update: the jitted step, for `update.lower(state, frozen, tasks).compile().memory_analysis()`.
      evaluate: `evaluate(meta, frozen, tasks) -> metrics`, the objective without an update.
      devices: the number of devices; the number of tasks must be a multiple of it.
      sharding: the sharding of tasks; with devices of several hosts, arrays must be placed accordingly.
    """

    init: Callable[[Meta], MetaState]
    place: Callable[[PyTree], PyTree]
    update: Callable[[MetaState, PyTree, Task], tuple[MetaState, Metrics]]
    evaluate: Callable[[Meta, PyTree, Task], Metrics]
    devices: int
    sharding: NamedSharding

    def __call__(self, state: MetaState, frozen: PyTree, tasks: Task) -> tuple[MetaState, Metrics]:
        """Checks the tasks and runs the step, which donates the buffers of the given state."""
        counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tasks)}
        if len(counts) != 1 or counts == {()}:
            raise InputError(f"the tasks' arrays have leading axes {sorted(counts)}; stack all of them on one axis")
        (count,) = counts.pop()
        if not count or count % self.devices:
            raise InputError(f"{count} tasks on {self.devices} devices; give a positive multiple of {self.devices}")
        # Without placing, a frozen value elsewhere would compile a second program.
        return self.update(state, self.place(frozen), tasks)


def make_meta_step(  # long: plain settings that a dataclass would only rename
    loss: Callable[[PyTree, PyTree, PyTree], Array],
    regulator: Regulator,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    schedule: str = "constant",
    gradient: str | int = "exact",
    cross_weight: float = 1.0,
    learn: Sequence[str] = ("prompt", "phi"),
    mapper: str = "shard_map",
    devices: Sequence[jax.Device] | None = None,
    tasks_at_once: int | None = None,
) -> MetaStep:
    """Builds the outer step: the gradient of the meta objective, averaged over tasks and devices, and an update.

    The same program runs on every device, vmapped over the tasks of that device or over groups of them in sequence.
    Gradients are averaged over groups and devices, so that the result does not depend on their number. It is compiled
    once for all calls of the same shapes.

    Args:
      loss: `loss(prompt, frozen, batch) -> scalar`; `frozen` is the clip, or a pytree that contains it.
      regulator, steps, schedule, gradient, cross_weight: as in `meta_objective`.
      optimizer: Optax, for a dictionary of the learned parts, `{"prompt": ..., "phi": ...}`; with
        `optax.multi_transform` each part has its own.
      learn: the learned parts: "prompt", "phi", "log_rates" (the inner step sizes), "offsets" (of the structured
        initialization that `with_structure` makes). The others do not change.
      mapper: "shard_map", or "pmap" for the devices of a single process; the result is the same.
      devices: default: all devices of all hosts.
      tasks_at_once: the number of tasks that a device vmaps over, which determines its memory; it must divide the
        number of tasks per device. None: all of them.

    Returns:
      The step: `state = step.init(meta)`, then `state, metrics = step(state, frozen, tasks)`. Metrics are those of
      `meta_objective` for all tasks in order, and a scalar "PART_gradient_norm" for each learned part.

    Example:
      >>> from gram_jax.meta import init_meta
      >>> from gram_jax.regulators import affine
      >>> loss = lambda prompt, frozen, batch: jnp.mean((frozen * prompt["x"] - batch) ** 2)
      >>> regulator, prompt = affine(), {"x": jnp.zeros(2)}
      >>> step = make_meta_step(loss, regulator, optax.adam(0.1), steps=3, cross_weight=0, devices=jax.devices()[:1])
      >>> state = step.init(init_meta(prompt, regulator.init(jax.random.key(0), prompt), learning_rate=0.1))
      >>> state, metrics = step(state, jnp.ones(2), Task(support=jnp.ones((4, 2)), same=jnp.ones((4, 2))))
      >>> metrics["loss"].shape
      (4,)

    Reference:
      "Gradient-Regulated Meta-Prompt Learning for Generalizable Vision-Language Models"; "Model-Agnostic
      Meta-Learning for Fast Adaptation of Deep Networks", algorithm 1.
    """
    differentiated_steps(steps, gradient)
    require_number("cross_weight", cross_weight, least=0)
    given, learn = learn, (learn,) if isinstance(learn, str) else tuple(learn)
    if not learn or len(set(learn)) != len(learn) or not set(learn) <= set(PARTS):
        raise InputError(f"learn={given!r}: name one or more of {', '.join(PARTS)}, each once")
    if tasks_at_once is not None:
        require_int("tasks_at_once", tasks_at_once)
    settings: dict[str, Any] = {
        "regulator": regulator,
        "steps": steps,
        "schedule": schedule,
        "gradient": gradient,
        "cross_weight": cross_weight,
    }

    def objective(learned: PyTree, meta: Meta, frozen: PyTree, tasks: Task) -> tuple[Array, Metrics]:
        meta = dataclasses.replace(meta, **learned)
        return meta_objective(lambda prompt, batch: loss(prompt, frozen, batch), meta, tasks, **settings)

    def update(state: MetaState, frozen: PyTree, tasks: Task) -> tuple[MetaState, Metrics]:
        def gradients(learned: PyTree, tasks: Task) -> tuple[PyTree, Metrics]:
            return jax.grad(objective, has_aux=True)(learned, state.meta, frozen, tasks)

        learned = _parts(state.meta, learn)
        grads, metrics = _by_groups(gradients, learned, tasks, tasks_at_once)
        grads = jax.lax.pmean(grads, AXIS)
        updates, optimizer_state = optimizer.update(grads, state.optimizer_state, learned)
        meta = dataclasses.replace(state.meta, **optax.apply_updates(learned, updates))
        # Gathered, so that every host can name a task whose loss is not finite.
        metrics = jax.lax.all_gather(metrics, AXIS, tiled=True)
        metrics |= {f"{part}_gradient_norm": optax.tree.norm(grads[part]) for part in learn}
        return MetaState(meta, optimizer_state, state.step + 1), metrics

    def evaluate(meta: Meta, frozen: PyTree, tasks: Task) -> Metrics:
        def metrics_only(learned: PyTree, tasks: Task) -> tuple[PyTree, Metrics]:
            return learned, objective(learned, meta, frozen, tasks)[1]

        return jax.lax.all_gather(_by_groups(metrics_only, {}, tasks, tasks_at_once)[1], AXIS, tiled=True)

    mesh, init = _make_mesh(devices, mapper), _make_init(optimizer, learn)
    replicated = NamedSharding(mesh, PartitionSpec())
    return MetaStep(
        lambda meta: _replicate(init(meta), replicated),
        lambda frozen: _replicate(frozen, replicated),
        _on_devices(update, mesh, mapper, donate=True),
        _on_devices(evaluate, mesh, mapper),
        len(mesh.devices),
        NamedSharding(mesh, PartitionSpec(AXIS)),
    )


def _make_init(optimizer: optax.GradientTransformation, learn: Sequence[str]) -> Callable[[Meta], MetaState]:
    """Returns the function from a `Meta` to the state before the first step, one compiled program."""

    @jax.jit
    def begin(meta: Meta) -> MetaState:
        state = MetaState(meta, optimizer.init(_parts(meta, learn)), jnp.zeros((), jnp.int32))
        # Copies, because a step donates its state; with strong dtypes, because a weak one would compile again.
        return jax.tree.map(lambda leaf: jnp.array(leaf, leaf.dtype, copy=True), state)

    def init(meta: Meta) -> MetaState:
        if "offsets" in learn and meta.offsets is None:
            raise InputError("learn contains 'offsets', but the initialization has none; add them by with_structure")
        return cast(MetaState, begin(meta))

    return init


def _make_mesh(devices: Sequence[jax.Device] | None, mapper: str) -> Mesh:
    """Returns a one-dimensional mesh; unlike `jax.make_mesh`, it keeps the caller's order of devices."""
    require_known("mapper", mapper, MAPPERS)
    devices = list(jax.devices() if devices is None else devices)
    if not devices:
        raise InputError("devices=[]; give at least one, or None for all")
    if mapper == "pmap" and len({device.process_index for device in devices}) > 1:
        raise InputError("mapper='pmap' maps over the devices of one process; use 'shard_map' on several")
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def _on_devices(function: Callable[..., Any], mesh: Mesh, mapper: str, donate: bool = False) -> Callable[..., Any]:
    """Maps `function(state, frozen, tasks)` over the devices, which divide the tasks, and compiles it."""
    replicated, sharded = PartitionSpec(), PartitionSpec(AXIS)
    if mapper == "shard_map":
        # With check_vma a gradient of replicated values would be summed over devices, unlike under pmap.
        specs = (replicated, replicated, sharded)
        mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=replicated, check_vma=False)
    else:
        devices = list(mesh.devices)
        pmapped = jax.pmap(function, AXIS, in_axes=(None, None, 0), out_axes=None, devices=devices)

        def mapped(state: PyTree, frozen: PyTree, tasks: Task) -> Any:
            shares = jax.tree.map(lambda leaf: leaf.reshape(len(devices), -1, *leaf.shape[1:]), tasks)
            return pmapped(state, frozen, shares)

    on_mesh = [NamedSharding(mesh, spec) for spec in (replicated, replicated, sharded)]
    return jax.jit(mapped, in_shardings=tuple(on_mesh), out_shardings=on_mesh[0], donate_argnums=0 if donate else None)


def _replicate(tree: PyTree, replicated: NamedSharding) -> PyTree:
    """Copies a tree to every device; each host copies its own, equal leaves to its devices."""
    if replicated.is_fully_addressable:
        return jax.device_put(tree, replicated)

    def place(leaf: Any) -> Array:
        if isinstance(leaf, Array) and leaf.sharding == replicated:
            return leaf
        return jax.make_array_from_process_local_data(replicated, np.asarray(leaf))

    return jax.tree.map(place, tree)


def _by_groups(
    function: Callable[[PyTree, Task], tuple[PyTree, Metrics]], learned: PyTree, tasks: Task, size: int | None
) -> tuple[PyTree, Metrics]:
    """Applies a function to groups of tasks in sequence; returns the mean gradient and the metrics of all tasks."""
    count = jax.tree.leaves(tasks)[0].shape[0]
    if size is None or size >= count:
        return function(learned, tasks)
    if count % size:
        raise InputError(f"tasks_at_once={size} does not divide the {count} tasks of a device")
    groups = jax.tree.map(lambda leaf: leaf.reshape(count // size, size, *leaf.shape[1:]), tasks)

    def add(total: PyTree, group: Task) -> tuple[PyTree, Metrics]:
        grads, metrics = function(learned, group)
        return jax.tree.map(jnp.add, total, grads), metrics

    total, metrics = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, learned), groups)
    metrics = jax.tree.map(lambda leaf: leaf.reshape(count, *leaf.shape[2:]), metrics)
    return jax.tree.map(lambda leaf: leaf * (size / count), total), metrics


def _parts(meta: Meta, learn: Sequence[str]) -> dict[str, PyTree]:
    return {part: getattr(meta, part) for part in learn}
