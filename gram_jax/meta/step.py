"""One step of meta-learning over all devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gram_jax.errors import InputError
from gram_jax.meta.adapt import check_steps
from gram_jax.meta.initialization import Meta
from gram_jax.meta.objective import Task, check_cross, meta_objective
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
      optimizer_state: state of the outer optimizer, over the learned parts of `meta`.
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
      sharding: how tasks lie on the devices; where these are of several hosts, arrays must be placed so already.

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
    sharding: NamedSharding

    def __call__(self, state: MetaState, frozen: PyTree, tasks: Task) -> tuple[MetaState, dict[str, Array]]:
        """Checks the tasks and runs the step; the state given is used up (its buffers are donated)."""
        counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tasks)}
        if len(counts) != 1 or counts == {()}:
            found = sorted(counts)
            raise InputError(f"the tasks' arrays start with axes {found}; stack all of them on one axis of tasks.")
        (count,) = counts.pop()
        if not count or count % self.devices:
            raise InputError(
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
    tasks_at_once: int | None = None,
) -> MetaStep:
    """Builds the outer step: a gradient of the meta objective, averaged over tasks and devices, and an update.

    One program runs on every device, vmapped over that device's tasks, or over groups of them, one after the other;
    gradients are averaged over groups and devices, so the result does not depend on their number. It is compiled once
    for all calls of the same shapes.

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
      mapper: "shard_map" or "pmap"; both run the same program, pmap on the devices of one process only.
      devices: default all, of all hosts.
      tasks_at_once: how many of its tasks a device runs side by side, which memory grows with; the number of a device's
        tasks must be a multiple of it. None: all of them.

    Returns:
      The step: `state = step.init(meta)`, then `state, metrics = step(state, frozen, tasks)`. Metrics are those of
      `meta_objective`, for all tasks in their order, and a scalar `"PART_gradient_norm"` for each learned part.

    Raises:
      InputError: if a setting is unknown or out of range; the step raises it if the tasks cannot be shared out.

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
        raise InputError(f"mapper is {mapper!r}; choose one of {', '.join(map(repr, MAPPERS))}.")
    devices = list(jax.devices() if devices is None else devices)
    if not devices:
        raise InputError("devices is empty; give at least one, or None for all.")
    if mapper == "pmap" and len({device.process_index for device in devices}) > 1:
        raise InputError("mapper is 'pmap', which maps over the devices of one process; give 'shard_map' on several.")
    if tasks_at_once is not None and (isinstance(tasks_at_once, bool) or tasks_at_once < 1):
        raise InputError(f"tasks_at_once is {tasks_at_once!r}; give a number of at least 1, or None for all.")

    def body(state: MetaState, frozen: PyTree, tasks: Task) -> tuple[MetaState, dict[str, Array]]:
        def objective(learned: dict[str, PyTree], tasks: Task) -> tuple[Array, dict[str, Array]]:
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
        grads, metrics = _by_groups(jax.grad(objective, has_aux=True), learned, tasks, tasks_at_once)
        grads = jax.lax.pmean(grads, AXIS)
        updates, optimizer_state = optimizer.update(grads, state.optimizer_state, learned)
        meta = state.meta.replace(**optax.apply_updates(learned, updates))
        # Gathered, so that every host can name the task whose loss is not finite.
        metrics = jax.lax.all_gather(metrics, AXIS, tiled=True)
        metrics |= {f"{part}_gradient_norm": optax.tree.norm(grads[part]) for part in learn}
        return MetaState(meta, optimizer_state, state.step + 1), metrics

    # Not `jax.make_mesh`, which may change the order that the caller chose.
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    replicated, sharding = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
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
        in_shardings=(replicated, replicated, sharding),
        out_shardings=replicated,
        donate_argnums=0,
    )

    def init(meta: Meta) -> MetaState:
        if "offsets" in learn and meta.offsets is None:
            raise InputError("offsets are to be learned, and this start has none; give it some by with_structure.")
        state = MetaState(meta, optimizer.init(_learned(meta, learn)), jnp.zeros((), jnp.int32))
        # Copied, because a step donates its state; with a plain dtype, because a weak one would compile a second time.
        state = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.asarray(leaf).dtype, copy=True), state)
        return _replicate(state, replicated)

    return MetaStep(init, lambda frozen: _replicate(frozen, replicated), update, len(devices), sharding)


def _replicate(tree: PyTree, replicated: NamedSharding) -> PyTree:
    """A tree on every device; each host copies its own, equal leaves to its devices."""
    if replicated.is_fully_addressable:
        return jax.device_put(tree, replicated)

    def place(leaf: Any) -> Array:
        if isinstance(leaf, Array) and leaf.sharding == replicated:
            return leaf
        return jax.make_array_from_process_local_data(replicated, np.asarray(leaf))

    return jax.tree.map(place, tree)


def _by_groups(
    gradient: Callable[[PyTree, Task], tuple[PyTree, dict[str, Array]]], learned: PyTree, tasks: Task, size: int | None
) -> tuple[PyTree, dict[str, Array]]:
    """The mean gradient over tasks, a group of so many after the other, and the metrics of all tasks in their order."""
    count = jax.tree.leaves(tasks)[0].shape[0]
    if size is None or size >= count:
        return gradient(learned, tasks)
    if count % size:
        raise InputError(f"a device has {count} tasks, which is no multiple of tasks_at_once={size}; change either.")
    groups = jax.tree.map(lambda leaf: leaf.reshape(count // size, size, *leaf.shape[1:]), tasks)

    def add(total: PyTree, group: Task) -> tuple[PyTree, dict[str, Array]]:
        grads, metrics = gradient(learned, group)
        return jax.tree.map(jnp.add, total, grads), metrics

    total, metrics = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, learned), groups)
    metrics = jax.tree.map(lambda leaf: leaf.reshape(count, *leaf.shape[2:]), metrics)
    return jax.tree.map(lambda leaf: leaf * (size / count), total), metrics


def _learned(meta: Meta, learn: Sequence[str]) -> dict[str, PyTree]:
    return {part: getattr(meta, part) for part in learn}


def _check_learn(learn: Sequence[str]) -> tuple[str, ...]:
    found = (learn,) if isinstance(learn, str) else tuple(learn)
    if not found or len(set(found)) != len(found) or not set(found) <= set(PARTS):
        raise InputError(f"learn is {learn!r}; name one or more of {', '.join(map(repr, PARTS))}, each once.")
    return found
