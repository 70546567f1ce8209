"""Checkpoints that survive kills, preemptions and damaged files, and refuse to continue another run."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import signal
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from gram_jax.errors import InputError
from gram_jax.io import absolute
from gram_jax.runtime.devices import is_loss

logger = logging.getLogger(__name__)


class CheckpointError(InputError):
    """A checkpoint cannot be read or written, or it holds another kind of state."""


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
      InputError: ``keep`` or ``best`` is out of range.

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
            raise InputError(f"keep={keep}: at least one checkpoint must be kept")
        if best not in (None, "max", "min"):
            raise InputError(f"best={best!r}: expected 'max', 'min' or None")
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
        if best is not None and jax.process_index() == 0:
            _drop_damaged_scores(self._folder)
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

        Raises:
          CheckpointError: this checkpoint, or the one before, cannot be written, for example to a full disk.
        """
        if step in self._manager.all_steps():
            return
        meta = {"config": self._config, "leaves": _describe(state, with_data=True), "extra": dict(extra or {})}
        with self._writing():
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
        self.wait()
        steps = sorted(self._manager.all_steps(), reverse=True)
        if best:
            best_step = self._manager.best_step()
            steps = [] if best_step is None else [best_step]
        failures = []
        for step in steps:
            try:
                meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
                config, leaves, extra = _parts(meta)
            except Exception as error:  # whatever the storage raises on a damaged file
                failures.append(self._set_aside(step, error))
                continue
            self._check_config(step, config)
            _check_leaves(
                f"the checkpoint of step {step} in {self._folder}", leaves, _describe(target, with_data=False)
            )
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
        self.wait()
        raise SystemExit(0)

    def wait(self) -> None:
        """Waits until everything that was saved is on disk.

        Raises:
          CheckpointError: it cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def last_good(self) -> str:
        """Says, for messages, which checkpoint is the latest that is complete; waits for the one being written.

        Returns:
          A clause, such as "the last good checkpoint is step 50 in /runs/a/checkpoints".
        """
        with contextlib.suppress(CheckpointError):  # there is a worse error to tell of
            self.wait()
        self._manager.reload()
        step = self._manager.latest_step()
        found = "there is no checkpoint" if step is None else f"the last good checkpoint is step {step}"
        return f"{found} in {self._folder}"

    def __enter__(self) -> Checkpoints:
        # With several processes JAX's preemption service owns the signal; handlers need Python's main thread.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, lambda *_: self._terminated.set())
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)
        if isinstance(exception[1], Exception) and is_loss(exception[1]):
            return  # what is being saved waits for a process that is gone
        try:
            with self._writing():
                self._manager.close()
        except CheckpointError as error:
            if exception[0] is None:
                raise
            logger.error("%s", error)  # the error that ended the run is the one to raise

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What Orbax and its threads raise where storage fails, as one kind of error."""
        try:
            yield
        except Exception as error:
            if not (isinstance(error, OSError) or _STORAGE in str(error)):
                raise
            reason = (str(error) or repr(error)).splitlines()[0]
            raise CheckpointError(
                f"a checkpoint cannot be written to {self._folder} ({reason}); those before it are kept: once that is "
                "mended, the same command continues"
            ) from error

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
            names = itertools.chain([f"damaged-{step}"], (f"damaged-{step}-{count}" for count in itertools.count(2)))
            aside = next(path for path in (self._folder / name for name in names) if not path.exists())
            (self._folder / str(step)).replace(aside)
        if jax.process_count() > 1:
            ocp.multihost.sync_global_processes(f"damaged-{step}")
        self._manager.reload()
        return reason


_MISSING = object()
_STORAGE = "os_error_code"  # in what TensorStore says when the operating system refuses


def _score(metrics: Mapping[str, float]) -> float:
    return metrics["score"]


def _parts(meta: Any) -> tuple[Mapping[str, Any], Mapping[str, Any], dict[str, Any]]:
    """Configuration, leaves and extra of a checkpoint's header; anything raised means that it is damaged."""
    config, leaves, extra = meta["config"], meta["leaves"], meta["extra"]
    if not all(isinstance(part, Mapping) for part in (config, leaves, extra)):
        raise CheckpointError("its header is no description of a state")
    for name, (shape, dtype, checksum) in leaves.items():
        if not (isinstance(shape, list) and isinstance(dtype, str) and isinstance(checksum, int | None)):
            raise CheckpointError(f"its header does not describe {name}")
    return config, leaves, extra


def _drop_damaged_scores(folder: epath.Path) -> None:
    """Puts aside scores that cannot be read, which Orbax reads before anything else; the states stay."""
    for path in folder.glob("*/metrics/metrics") if folder.exists() else ():
        try:
            float(json.loads(path.read_text())["score"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            logger.warning("the score in %s is damaged (%s), it counts as none", path, error)
            path.replace(path.parent / "damaged")


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


def _check_leaves(what: str, stored: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    differing = [
        f"state{name}: the checkpoint has {_kind(stored.get(name))}, this run has {_kind(target.get(name))}"
        for name in sorted(stored.keys() | target.keys())
        if _kind(stored.get(name)) != _kind(target.get(name))
    ]
    if differing:
        raise CheckpointError(
            f"{what} holds another kind of state:\n  " + "\n  ".join(differing) + "\n"
            "Use the version of the program that wrote it, or choose another workdir to start anew."
        )


def _kind(described: Sequence[Any] | None) -> str:
    return "nothing" if described is None else f"{described[1]}{described[0]}"


def _check_data(stored: Mapping[str, Any], restored: Mapping[str, Any]) -> None:
    damaged = [name for name, (*_, checksum) in restored.items() if checksum != stored[name][2]]
    if damaged:
        raise CheckpointError(f"checksum differs for {', '.join(damaged)}")
