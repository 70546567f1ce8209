"""Checkpoints that survive kills, preemptions and damaged files, and refuse to continue another run."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from gram_jax.runtime.paths import absolute

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """No checkpoint of a folder can be read, or it holds another kind of state."""


class ConfigMismatchError(CheckpointError):
    """A checkpoint was written under another configuration."""


class Restored(NamedTuple):
    """What :meth:`Checkpoints.restore` found.

    Attributes:
      step: the number of steps done when the checkpoint was written.
      state: the pytree, shaped and placed as the target.
      extra: the JSON object saved beside it.
    """

    step: int
    state: Any
    extra: dict[str, Any]


class Checkpoints:
    """Saves and restores the state of one run; a context manager.

    Writing is asynchronous and atomic (Orbax): a run killed at any moment leaves complete checkpoints only. A
    checksum of every leaf is stored and compared, because a damaged array file can otherwise be read without an
    error. On one process SIGTERM is caught inside the context; several agree through JAX's preemption service.

    Args:
      folder: where the checkpoints are, local or remote (``gs://...``); created.
      config: the run's configuration, JSON values in nested mappings; stored with every checkpoint.
      keep: how many of the latest checkpoints to keep, >= 1.
      best: "max" or "min" keeps, beside those, the checkpoint of the best ``score``; None keeps none.
      may_change: dotted names of config fields in which a resumed run may differ, e.g. ("steps",).

    Raises:
      ValueError: ``keep`` or ``best`` is out of range.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> folder = tempfile.mkdtemp()
      >>> with Checkpoints(folder, {"seed": 0}) as checkpoints:
      ...     checkpoints.save(1, {"w": jnp.ones(2)}, {"note": "a"})
      >>> with Checkpoints(folder, {"seed": 0}) as checkpoints:
      ...     step, state, extra = checkpoints.restore({"w": jnp.zeros(2)})
      >>> step, state["w"].tolist(), extra
      (1, [1.0, 1.0], {'note': 'a'})

    Reference:
      Our own choice; storage is Orbax's ``CheckpointManager``.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        config: Mapping[str, Any],
        *,
        keep: int = 2,
        best: str | None = None,
        may_change: Sequence[str] = (),
    ):
        if keep < 1:
            raise ValueError(f"keep={keep}: at least one checkpoint must be kept")
        if best not in (None, "max", "min"):
            raise ValueError(f"best={best!r}: expected 'max', 'min' or None")
        self._folder = absolute(folder)
        self._config = json.loads(json.dumps(config))
        self._may_change = frozenset(may_change)
        policies: list[Any] = [checkpoint_managers.LatestN(keep)]
        if best is not None:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=_score,
                    reverse=best == "min",
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            best_fn=None if best is None else _score,
            best_mode=best or "max",
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        self._terminated = threading.Event()
        self._previous_handler: Any = None

    def save(
        self, step: int, state: Any, extra: Mapping[str, Any] | None = None, *, score: float | None = None
    ) -> None:
        """Starts to write a checkpoint; training may go on at once.

        Args:
          step: the number of steps done; a step that is already saved is left as it is.
          state: a pytree of JAX and NumPy arrays, typed keys and Python numbers, none changed in place afterwards.
          extra: a small JSON object, e.g. of counters.
          score: what ``best`` compares; a checkpoint without one is never the best.
        """
        if step in self._manager.all_steps():
            return
        meta = {"config": self._config, "leaves": _describe(state, with_data=True), "extra": dict(extra or {})}
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)),
            metrics=None if score is None else {"score": float(score)},
            force=True,  # by default a save is skipped while the previous one is still being written
        )

    def restore(self, target: Any, *, best: bool = False) -> Restored | None:
        """Reads the latest good checkpoint.

        A damaged checkpoint is logged, moved aside as ``damaged-STEP``, and the one before it is read.

        Args:
          target: a pytree of arrays or ``jax.ShapeDtypeStruct`` with the state's structure. Leaves are placed by its
            shardings, whatever they were when saved; those without one go to the first local device.
          best: read the checkpoint of the best score instead.

        Returns:
          What was restored, or None if the folder holds no checkpoint.

        Raises:
          ConfigMismatchError: it was written under another configuration; every differing field is named.
          CheckpointError: the target has other leaves, shapes or types; or every checkpoint is damaged.
        """
        self._manager.wait_until_finished()
        steps = sorted(self._manager.all_steps(), reverse=True)
        if best:
            best_step = self._manager.best_step()
            steps = [] if best_step is None else [best_step]
        failures = []
        for step in steps:
            try:
                meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
                config, leaves, extra = meta["config"], meta["leaves"], meta["extra"]
            except Exception as error:  # whatever the storage raises on a damaged file
                failures.append(self._set_aside(step, error))
                continue
            self._check_config(step, config)
            _check_leaves(step, leaves, _describe(target, with_data=False))
            abstract = jax.tree.map(_abstract, target)
            try:
                state = self._manager.restore(
                    step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
                ).state
                _check_data(leaves, _describe(state, with_data=True))
            except Exception as error:
                failures.append(self._set_aside(step, error))
                continue
            logger.info("restored step %d from %s", step, self._folder)
            return Restored(step, state, extra)
        if failures:
            raise CheckpointError(
                f"no checkpoint in {self._folder} can be read:\n  " + "\n  ".join(failures) + "\n"
                "Start again in another folder, or bring these files back from a copy."
            )
        return None

    def exit_if_preempted(self, step: int, state: Any, extra: Mapping[str, Any] | None = None, **save: Any) -> None:
        """To be called after every step: on a preemption notice or SIGTERM saves, waits, and exits with status 0.

        Args:
          step: the number of steps done.
          state, extra, **save: as for :meth:`save`.

        Raises:
          SystemExit: with status 0, once the checkpoint is complete.
        """
        if not (self._terminated.is_set() or self._manager.reached_preemption(step)):
            return
        logger.warning("asked to stop: saving step %d to %s", step, self._folder)
        self.save(step, state, extra, **save)
        self._manager.wait_until_finished()
        raise SystemExit(0)

    def wait(self) -> None:
        """Waits until everything that was saved is on disk."""
        self._manager.wait_until_finished()

    def __enter__(self) -> Checkpoints:
        # With several processes JAX's preemption service owns the signal; handlers need Python's main thread.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, lambda *_: self._terminated.set())
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)
        self._manager.close()

    def _check_config(self, step: int, stored: Mapping[str, Any]) -> None:
        before, now = _flat(stored), _flat(self._config)
        differing = [
            f"{name}: the checkpoint has {before.get(name, 'nothing')!r}, this run has {now.get(name, 'nothing')!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name, _MISSING) != now.get(name, _MISSING) and name not in self._may_change
        ]
        if differing:
            raise ConfigMismatchError(
                f"the checkpoint of step {step} in {self._folder} belongs to another configuration:\n  "
                + "\n  ".join(differing)
                + "\nRun with the same settings to continue it, or choose another workdir to start anew."
            )

    def _set_aside(self, step: int, error: Exception) -> str:
        """Moves a damaged checkpoint out of the way, so that its step can be written again."""
        reason = f"step {step}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        logger.warning("damaged checkpoint in %s, trying the one before: %s", self._folder, reason)
        if jax.process_index() == 0:
            (self._folder / str(step)).replace(self._folder / f"damaged-{step}")
        if jax.process_count() > 1:
            ocp.multihost.sync_global_processes(f"damaged-{step}")
        self._manager.reload()
        return reason


_MISSING = object()


def _score(metrics: Mapping[str, float]) -> float:
    return metrics["score"]


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings under dotted names."""
    if not isinstance(config, Mapping):
        return {prefix: config}
    return {
        name: leaf
        for key, value in config.items()
        for name, leaf in _flat(value, f"{prefix}.{key}" if prefix else key).items()
    }


def _abstract(leaf: Any) -> Any:
    """What Orbax needs to know to place a leaf; NumPy arrays and Python numbers come back as they were."""
    if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
        return leaf
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _describe(tree: Any, *, with_data: bool) -> dict[str, list[Any]]:
    """Shape, type and (``with_data``) checksum of every leaf, by its path."""
    described = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        described[jax.tree_util.keystr(path)] = [
            list(leaf.shape),
            str(leaf.dtype),
            _checksum(leaf) if with_data else None,
        ]
    return described


def _checksum(leaf: Any) -> int | None:
    """CRC-32 of a leaf's bytes; None where this process does not hold all of them."""
    if isinstance(leaf, jax.Array):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if not leaf.is_fully_addressable:
            if not leaf.is_fully_replicated:
                return None
            leaf = leaf.addressable_data(0)
    return zlib.crc32(np.asarray(leaf).tobytes())


def _check_leaves(step: int, stored: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    differing = [
        f"state{name}: the checkpoint has {_kind(stored.get(name))}, this run has {_kind(target.get(name))}"
        for name in sorted(stored.keys() | target.keys())
        if _kind(stored.get(name)) != _kind(target.get(name))
    ]
    if differing:
        raise CheckpointError(
            f"the checkpoint of step {step} holds another kind of state:\n  " + "\n  ".join(differing) + "\n"
            "Use the version of the program that wrote it, or choose another workdir to start anew."
        )


def _kind(described: Sequence[Any] | None) -> str:
    return "nothing" if described is None else f"{described[1]}{described[0]}"


def _check_data(stored: Mapping[str, Any], restored: Mapping[str, Any]) -> None:
    damaged = [name for name, (*_, checksum) in restored.items() if checksum != stored[name][2]]
    if damaged:
        raise CheckpointError(f"checksum differs for {', '.join(damaged)}")
