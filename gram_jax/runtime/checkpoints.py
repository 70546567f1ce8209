"""Checkpoints that survive kills, preemptions and damaged files, and that another run cannot resume by mistake."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import signal
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gram_jax.errors import InputError, differences, require_int
from gram_jax.io import PathLike, absolute
from gram_jax.runtime.devices import is_process_loss

logger = logging.getLogger(__name__)

_STORAGE = "os_error_code"  # part of TensorStore's message when the operating system refuses


class CheckpointError(InputError):
    """A checkpoint cannot be read or written, or it belongs to another configuration or state."""


class Restored(NamedTuple):
    """A restored checkpoint: the number of steps done, and the pytree, with structure and placement of the target."""

    step: int
    state: Any


class Checkpoints:
    """Saves and restores the state of one run; a context manager.

    Writing is asynchronous and atomic (Orbax): a run killed at any moment leaves complete checkpoints only. A checksum
    of every leaf is stored and compared, because a damaged array file can otherwise be read without an error. In a run
    of one process the context handles SIGTERM; several processes agree through JAX's preemption service.

    Args:
      folder: the folder of the checkpoints, local or remote (`gs://...`); it is created.
      config: the run's configuration, JSON values in nested mappings; stored with every checkpoint.
      keep: the number of latest checkpoints to keep, >= 1.
      may_change: dotted names of config fields that may differ in a resumed run, e.g. ("steps",).

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> folder = tempfile.mkdtemp()
      >>> with Checkpoints(folder, {"seed": 0}) as checkpoints:
      ...     checkpoints.save(1, {"w": jnp.ones(2)})
      >>> with Checkpoints(folder, {"seed": 0}) as checkpoints:
      ...     step, state = checkpoints.restore({"w": jnp.zeros(2)})
      >>> step, state["w"].tolist()
      (1, [1.0, 1.0])
    """

    def __init__(self, folder: PathLike, config: Mapping[str, Any], *, keep: int = 2, may_change: Sequence[str] = ()):
        require_int("keep", keep)
        self._folder = absolute(folder)
        self._config = json.loads(json.dumps(config))
        self._may_change = frozenset(may_change)
        self._keep = keep
        self._terminated = threading.Event()
        self._previous_handler: Any = None

    @functools.cached_property
    def _manager(self) -> Any:
        policy = _orbax().checkpoint_managers.LatestN(self._keep)
        options = _orbax().CheckpointManagerOptions(preservation_policy=policy, cleanup_tmp_directories=True)
        return _orbax().CheckpointManager(self._folder, options=options)

    def save(self, step: int, state: Any) -> None:
        """Starts writing the state after some steps, unless this step is saved; training may continue meanwhile.

        The state is a pytree of JAX and NumPy arrays, typed keys and Python numbers; do not change them in place later.
        Raises CheckpointError if this checkpoint or the previous one cannot be written, for example to a full disk.
        """
        if step in self._manager.all_steps():
            return
        meta, kinds = {"config": self._config, "leaves": _describe(state, with_data=True)}, _orbax().args
        with self._writing():
            self._manager.save(
                step,
                args=kinds.Composite(state=kinds.StandardSave(state), meta=kinds.JsonSave(meta)),
                force=True,  # by default a save is skipped while the previous one is still being written
            )

    def restore(self, target: Any) -> Restored | None:
        """Reads the latest good checkpoint; returns None if the folder holds no checkpoint.

        A damaged checkpoint is logged and renamed to `damaged-STEP`; the previous one is read instead.

        Args:
          target: a pytree of arrays or `jax.ShapeDtypeStruct` with the state's structure. Its shardings place the
            leaves, whatever they were when saved; leaves without a sharding go to the first local device.

        Raises:
          CheckpointError: the configuration, leaves, shapes or types differ (the message names every difference), or
            every checkpoint is damaged.
        """
        if not self._folder.exists():
            return None
        self.wait()
        failures, kinds = [], _orbax().args
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                meta = self._manager.restore(step, args=kinds.Composite(meta=kinds.JsonRestore())).meta
                config, leaves = _parts(meta)
            except Exception as error:  # the storage may raise anything on a damaged file
                failures.append(self._set_aside(step, error))
                continue
            self._check_config(step, config)
            _check_leaves(f"step {step} in {self._folder}", leaves, _describe(target, with_data=False))
            args = kinds.Composite(state=kinds.StandardRestore(jax.tree.map(_abstract, target)))
            try:
                state = self._manager.restore(step, args=args).state
                _check_data(leaves, _describe(state, with_data=True))
            except Exception as error:
                failures.append(self._set_aside(step, error))
                continue
            logger.info("restored step %d from %s", step, self._folder)
            return Restored(step, state)
        if failures:
            raise CheckpointError(
                f"every checkpoint in {self._folder} is damaged: {'; '.join(failures)}; restore these files from a "
                "copy, or give another --workdir"
            )
        return None

    def exit_if_preempted(self, step: int, state: Any) -> None:
        """Saves, waits and exits with status 0 after a preemption notice or SIGTERM; call it after every step."""
        if not (self._terminated.is_set() or self._manager.reached_preemption(step)):
            return
        logger.warning("asked to stop: saving step %d to %s", step, self._folder)
        self.save(step, state)
        self.wait()
        raise SystemExit(0)

    def wait(self) -> None:
        """Waits until every saved checkpoint is on disk; raises CheckpointError if one cannot be written."""
        with self._writing():
            if "_manager" in vars(self):
                self._manager.wait_until_finished()

    def last_good(self) -> str:
        """Returns a clause for messages: "the last good checkpoint is step 50 in /runs/a/checkpoints"."""
        with contextlib.suppress(CheckpointError):  # the caller reports a more important error
            self.wait()
        self._manager.reload()
        step = self._manager.latest_step()
        latest = "there is no checkpoint" if step is None else f"the last good checkpoint is step {step}"
        return f"{latest} in {self._folder}"

    def __enter__(self) -> Checkpoints:
        # With several processes JAX's preemption service owns the signal; handlers need Python's main thread.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, lambda *_: self._terminated.set())
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)
        if isinstance(exception[1], Exception) and is_process_loss(exception[1]):
            return  # closing would wait for the lost process
        try:
            with self._writing():
                if "_manager" in vars(self):
                    self._manager.close()
        except CheckpointError as error:
            if exception[0] is None:
                raise
            logger.error("%s", error)  # the error that ended the run is the one to raise

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Converts storage errors of Orbax and its threads to CheckpointError."""
        try:
            yield
        except Exception as error:
            if not (isinstance(error, OSError) or _STORAGE in str(error)):
                raise
            reason = (str(error) or repr(error)).splitlines()[0]
            raise CheckpointError(
                f"a checkpoint cannot be written to {self._folder} ({reason}); earlier checkpoints are kept: fix the "
                "cause and run the same command again"
            ) from error

    def _check_config(self, step: int, stored: Mapping[str, Any]) -> None:
        fixed = [
            {name: value for name, value in _flat(config).items() if name not in self._may_change}
            for config in (stored, self._config)
        ]
        if changed := differences(*fixed):
            raise CheckpointError(
                f"the checkpoint of step {step} in {self._folder} has another configuration: {'; '.join(changed)}; "
                "use the same settings to resume it, or give another --workdir"
            )

    def _set_aside(self, step: int, error: Exception) -> str:
        """Renames a damaged checkpoint, so that its step can be saved again; returns the reason."""
        reason = f"step {step}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        logger.warning("damaged checkpoint in %s, trying the previous one: %s", self._folder, reason)
        if jax.process_index() == 0:
            names = itertools.chain([f"damaged-{step}"], (f"damaged-{step}-{count}" for count in itertools.count(2)))
            aside = next(path for path in (self._folder / name for name in names) if not path.exists())
            (self._folder / str(step)).replace(aside)
        if jax.process_count() > 1:
            _orbax().multihost.sync_global_processes(f"damaged-{step}")
        self._manager.reload()
        return reason


@functools.cache
def _orbax() -> Any:
    """Returns Orbax, which is imported late: a new run needs it only after its first step."""
    import orbax.checkpoint

    return orbax.checkpoint


def _parts(meta: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Returns configuration and leaves of a checkpoint's header; any error means that it is damaged."""
    config, leaves = meta["config"], meta["leaves"]
    if not all(isinstance(part, Mapping) for part in (config, leaves)):
        raise CheckpointError("its header does not describe a state")
    for name, (shape, dtype, checksum) in leaves.items():
        if not (isinstance(shape, list) and isinstance(dtype, str) and isinstance(checksum, int | None)):
            raise CheckpointError(f"its header does not describe {name}")
    return config, leaves


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested mappings under dotted names."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {
        name: leaf
        for key, member in value.items()
        for name, leaf in _flat(member, f"{prefix}.{key}" if prefix else key).items()
    }


def _abstract(leaf: Any) -> Any:
    """Returns what Orbax needs to place a leaf; NumPy arrays and Python numbers are restored as they are."""
    if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
        return leaf
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _describe(tree: Any, *, with_data: bool) -> dict[str, list[Any]]:
    """Returns shape, type and (`with_data`) checksum of every leaf, by its path."""
    described = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        checksum = _checksum(leaf) if with_data else None
        described[jax.tree_util.keystr(path)] = [list(leaf.shape), str(leaf.dtype), checksum]
    return described


def _checksum(leaf: Any) -> int | None:
    """Returns the CRC-32 of a leaf's bytes; None if this process does not hold all of them."""
    if isinstance(leaf, jax.Array):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if not leaf.is_fully_addressable:
            if not leaf.is_fully_replicated:
                return None
            leaf = leaf.addressable_data(0)
    return zlib.crc32(np.asarray(leaf).tobytes())


def _check_leaves(checkpoint: str, stored: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    shapes = [
        {f"state{name}": f"{dtype}{shape}" for name, (shape, dtype, _) in leaves.items()} for leaves in (stored, target)
    ]
    if changed := differences(*shapes):
        raise CheckpointError(
            f"the checkpoint of {checkpoint} holds a state of another structure: {'; '.join(changed)}; use the "
            "version of the program that wrote it, or give another --workdir"
        )


def _check_data(stored: Mapping[str, Any], restored: Mapping[str, Any]) -> None:
    damaged = [name for name, (*_, checksum) in restored.items() if checksum != stored[name][2]]
    if damaged:
        raise CheckpointError(f"checksum differs for {', '.join(damaged)}")
