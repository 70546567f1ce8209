"""The processes and devices of a run: connecting them, sharing arrays, gathering results."""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
import threading
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from gram_jax.errors import InputError, require_int

JOIN_SECONDS = 300
HEARTBEAT_SECONDS = 30
_DAY = 86_400
# Words in the errors of collectives, of the coordination service and of its barriers when a process is lost.
_LOST = ("gloo", "nccl", "heartbeat", "coordination", "barrier", "unavailable", "connection reset", "socket closed")


def connect(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_seconds: int = JOIN_SECONDS,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
    preemption: bool = True,
) -> None:
    """Connects this process to the others of its run; call it before anything uses a device.

    Without arguments, the cluster (Cloud TPU, Slurm, Open MPI, Kubernetes) provides address and numbers.

    Args:
      coordinator_address: HOST:PORT of process 0; the port must be free and reachable.
      num_processes, process_id: the number of processes, and of this process, from 0.
      timeout_seconds: the time to wait for the other processes. After it the program ends with status 1 and a message,
        because JAX waits in native code, which cannot be interrupted.
      heartbeat_seconds: JAX ends the run when a process does not answer for this long.
      preemption: lets JAX handle SIGTERM and notify all processes, for `Checkpoints.exit_if_preempted`; False leaves
        SIGTERM to the program.

    Example:
      >>> connect("localhost:8476", num_processes=4)
      Traceback (most recent call last):
        ...
      gram_jax.errors.InputError: --coordinator_address=localhost:8476 --num_processes=4 needs ...
    """
    _check_settings(
        {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    )
    if process_id == 0:
        assert coordinator_address is not None  # a number needs an address
        _check_port(coordinator_address)
    place = f"process 0 at {coordinator_address}" if coordinator_address else "the cluster's process 0"
    late = (
        f"the processes did not connect within {timeout_seconds} s. Check that this command runs on all "
        f"{num_processes or ''} hosts, each with its own process id, that every host reaches {place} (firewalls), and "
        "that proxy variables (HTTP_PROXY ...) are not set"
    )
    timer = threading.Timer(timeout_seconds, _end, [" ".join(late.split())])
    timer.daemon = True
    timer.start()
    jax.config.update("jax_enable_preemption_service", preemption)
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            cluster_detection_method=None if num_processes is None else "deactivate",
            initialization_timeout=timeout_seconds + 60,
            heartbeat_timeout_seconds=heartbeat_seconds,
        )
    except ValueError as error:
        if num_processes is not None:
            raise
        raise InputError(
            f"--distributed: no cluster of TPU hosts, Slurm, Open MPI or Kubernetes was detected ({error}). Give "
            "--coordinator_address=HOST:PORT --num_processes=N --process_id=I on each of N hosts; a single host needs "
            "no --distributed, whatever its number of devices"
        ) from error
    finally:
        timer.cancel()


def is_main() -> bool:
    """Returns whether this is process 0, the only one that writes metrics and results and shows progress."""
    return jax.process_index() == 0


def all_devices() -> list[jax.Device]:
    """Returns all devices grouped by process, so that each process holds contiguous rows; TPU may interleave them."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def make_mesh(axis: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh with one axis of type `AxisType.Auto`: the compiler infers shardings.

    `jax.make_mesh` has explicit axes by default, with which Flax modules fail.

    Args:
      axis, devices: the name of the axis, and the devices in order, by default those of all processes.
    """
    return Mesh(np.array(all_devices() if devices is None else list(devices)), (axis,), axis_types=(AxisType.Auto,))


def own_rows(sharding: NamedSharding, count: int) -> range:
    """Returns the numbers of the rows of a global array that this process holds.

    Args:
      sharding, count: a sharding that divides or replicates the first axis, and the number of all rows.

    Raises:
      InputError: the rows of this process are not contiguous; use the device order of `all_devices`.

    Example:
      >>> from jax.sharding import PartitionSpec
      >>> sharding = NamedSharding(make_mesh("tasks", jax.devices()[:1]), PartitionSpec("tasks"))
      >>> own_rows(sharding, 8)
      range(0, 8)
    """
    places = sharding.addressable_devices_indices_map((count,)).values()
    parts = sorted({place[0].indices(count)[:2] for place in places if place is not None})
    if not parts or any(end != start for (_, end), (start, _) in itertools.pairwise(parts)):
        raise InputError(
            f"the rows of process {jax.process_index()} are {parts}: they must be contiguous; use the order of "
            "all_devices()"
        )
    return range(parts[0][0], parts[-1][1])


def global_arrays(sharding: NamedSharding, rows: Any, count: int) -> Any:
    """Returns arrays `[count, ...]` over all devices, of which each process gives its own rows.

    Args:
      sharding, count: as for `own_rows`.
      rows: a pytree of arrays `[own rows, ...]`, on the host.
    """

    def place(leaf: Any) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf), (count, *np.shape(leaf)[1:]))

    return jax.tree.map(place, rows)


def barrier(name: str, *, timeout_seconds: int = _DAY) -> None:
    """Waits until every process has called this; returns at once in a run of one process.

    No device takes part, so processes may arrive hours apart. The wait ends with an error if a process is lost.

    Args:
      name, timeout_seconds: a name, the same in every process, and the longest wait.
    """
    if jax.distributed.is_initialized():
        import orbax.checkpoint as ocp  # late: most runs are of one process

        ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=1000 * timeout_seconds)


def require_device() -> None:
    """Raises InputError if JAX finds no device of the platform that `JAX_PLATFORMS` asks for, or none that works."""
    try:
        jax.devices()
    except Exception as error:  # of several types, some of them without a message
        asked = jax.config.jax_platforms  # type: ignore[attr-defined]
        reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        jax.config.update("jax_platforms", None)
        try:
            found = ", ".join(sorted({device.platform for device in jax.devices()}))
        except Exception:
            found = "none"
        remedy = 'unset JAX_PLATFORMS, or install the platform, such as pip install ".[cuda13]" or ".[tpu]"'
        raise InputError(f"JAX_PLATFORMS={asked}: no such device ({reason}); found here: {found}; {remedy}") from error


def gather(value: Any) -> list[Any]:
    """Returns the values of all processes, in order, to every process.

    Args:
      value: JSON values of any size; a JSON round trip turns tuples into lists.

    Example:
      >>> gather({"rows": [1, 2]})
      [{'rows': [1, 2]}]
    """
    text = json.dumps(value)
    if jax.process_count() == 1:
        return [json.loads(text)]
    barrier("gather")  # it waits longer than collectives of devices
    packed = np.frombuffer(zlib.compress(text.encode()), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(packed.size)))
    padded = np.pad(packed, (0, int(sizes.max()) - packed.size))
    every = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(zlib.decompress(row[:size].tobytes())) for row, size in zip(every, sizes, strict=True)]


def is_process_loss(error: BaseException) -> bool:
    """Returns whether an error means that another process of the run is lost; False in a run of one process.

    Args:
      error: an error raised by a collective or a barrier; JAX has no type for this one.
    """
    return jax.process_count() > 1 and any(word in str(error).lower() for word in _LOST)


def _check_settings(given: dict[str, Any]) -> None:
    """Raises InputError for settings that do not describe a group of processes."""
    address, count, number = given.values()
    missing = [f"--{name}" for name, value in given.items() if value is None]
    # An address alone is valid: the cluster provides the rest, and its default port may be closed.
    if len(missing) == 1 or (len(missing) == 2 and address is None):
        present = " ".join(f"--{name}={value}" for name, value in given.items() if value is not None)
        raise InputError(f"{present} needs {' and '.join(missing)}; leave out all three on TPU, Slurm and Open MPI")
    if address is not None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65_536:
            raise InputError(f"--coordinator_address={address}: give host and port of process 0, as in 10.0.0.1:8476")
    if count is not None:
        require_int("--num_processes", count)
    if number is not None and not 0 <= number < count:
        raise InputError(f"--process_id={number}: with --num_processes={count} it must be from 0 to {count - 1}")


def _check_port(address: str) -> None:
    """Raises InputError if process 0 cannot listen; JAX would end the program without a message."""
    port = int(address.rpartition(":")[2])
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", port))
        except OSError as error:
            raise InputError(
                f"--coordinator_address={address}: process 0 cannot listen on port {port} ({error.strerror}); end the "
                "run that uses it, or give all processes another port"
            ) from error


def _end(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)  # noqa: T201 (the program ends here)
    os._exit(1)
