"""The processes and devices of a run: joining them, sharing work and arrays among them, gathering what they found."""

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
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from gram_jax.errors import InputError

JOIN_SECONDS = 300
HEARTBEAT_SECONDS = 30
_DAY = 86_400
# How collectives, the coordination service and its barriers say that a process is gone.
_LOST = ("gloo", "nccl", "heartbeat", "coordination", "barrier", "unavailable", "connection reset", "socket closed")


class DistributedError(InputError):
    """The processes of a run cannot be joined; the message says what to check."""


def check_processes(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Raises for settings that no group of processes can have, before anything is started.

    Args:
      coordinator_address: HOST:PORT of process 0.
      num_processes: how many processes there are, >= 1.
      process_id: the number of this one, from 0.

    Raises:
      DistributedError: a number is out of range, the address has no port, or some are missing that belong together.

    Example:
      >>> check_processes("10.0.0.1:8476", 2, 2)
      Traceback (most recent call last):
        ...
      gram_jax.runtime.devices.DistributedError: --process_id=2: with --num_processes=2 it must be from 0 to 1

    Reference:
      Our own choice; the settings are those of ``jax.distributed.initialize``.
    """
    given = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    # An address alone is fine: the rest is found where a cluster is, and its own port may be shut.
    if len(missing) < 3 and missing and not (coordinator_address is not None and len(missing) == 2):
        there = [f"--{name}={value}" for name, value in given.items() if value is not None]
        raise DistributedError(
            f"{' '.join(there)} needs {' and '.join(missing)} as well; leave all three out on TPU, Slurm and Open MPI"
        )
    if coordinator_address is not None:
        host, _, port = coordinator_address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65_536:
            raise DistributedError(
                f"--coordinator_address={coordinator_address}: give host and port of process 0, as in 10.0.0.1:8476"
            )
    if num_processes is not None and num_processes < 1:
        raise DistributedError(f"--num_processes={num_processes}: it must be at least 1")
    if process_id is not None and not 0 <= process_id < num_processes:
        raise DistributedError(
            f"--process_id={process_id}: with --num_processes={num_processes} it must be from 0 to {num_processes - 1}"
        )


def connect(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_seconds: int = JOIN_SECONDS,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
    preemption: bool = True,
) -> None:
    """Joins this process to the others of its run; before anything touches a device.

    Without arguments, address and numbers are those of the cluster (Cloud TPU, Slurm, Open MPI, Kubernetes).

    Args:
      coordinator_address: HOST:PORT of process 0, where the processes meet; the port must be free and open there.
      num_processes: how many processes there are.
      process_id: the number of this one, from 0.
      timeout_seconds: how long to wait for the others. Where they do not come, the program ends with status 1 and a
        message: JAX waits in native code, which nothing can interrupt.
      heartbeat_seconds: a process that was silent for so long is lost, and JAX ends the others.
      preemption: SIGTERM is left to JAX, which tells all processes, for `Checkpoints.exit_if_preempted`; False leaves
        it to the program.

    Raises:
      DistributedError: as `check_processes`; no cluster was found; or the port is taken.

    Example:
      >>> connect("localhost:8476", num_processes=4)
      Traceback (most recent call last):
        ...
      gram_jax.runtime.devices.DistributedError: --coordinator_address=localhost:8476 --num_processes=4 needs ...

    Reference:
      ``jax.distributed.initialize``, docs.jax.dev/en/latest/multi_process.html.
    """
    check_processes(coordinator_address, num_processes, process_id)
    if process_id == 0:
        _check_port(coordinator_address)
    place = f"process 0 at {coordinator_address}" if coordinator_address else "the cluster's process 0"
    late = (
        f"the processes did not find together within {timeout_seconds} s. Check that this command runs on all "
        f"{num_processes or ''} hosts, each with its own process id, and that every host reaches {place}, which "
        "firewalls must let through; proxy variables (HTTP_PROXY ...) must not be set"
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
        raise DistributedError(
            f"no cluster of TPU hosts, Slurm, Open MPI or Kubernetes was found ({error}). Give "
            "--coordinator_address=HOST:PORT --num_processes=N --process_id=I on each of N hosts; one host, with "
            "however many devices, needs no --distributed"
        ) from error
    finally:
        timer.cancel()


def is_main() -> bool:
    """Whether this is process 0, which alone writes metrics and results and shows progress.

    Returns:
      True in a run of one process.

    Example:
      >>> is_main()
      True

    Reference:
      Our own choice.
    """
    return jax.process_index() == 0


def all_devices() -> list[jax.Device]:
    """The devices of all processes, those of each process together, so that its rows of an array are together.

    Returns:
      As `jax.devices()`, which on TPU may mix processes.

    Example:
      >>> set(all_devices()) == set(jax.devices())
      True

    Reference:
      Our own choice.
    """
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def make_mesh(axis: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, whose shardings the compiler fills in (`AxisType.Auto`).

    Args:
      axis: its name.
      devices: default those of all processes.

    Returns:
      The mesh, of the devices in their order.

    Example:
      >>> make_mesh("batch", jax.local_devices()[:1]).shape["batch"]
      1

    Reference:
      Our own choice. (`jax.make_mesh` has explicit axes by default, under which Flax modules fail.)
    """
    return Mesh(np.array(all_devices() if devices is None else list(devices)), (axis,), axis_types=(AxisType.Auto,))


def own_rows(sharding: NamedSharding, count: int) -> range:
    """Which rows of a global array this process holds.

    Args:
      sharding: of arrays whose first axis is divided, or whole everywhere.
      count: the number of all rows.

    Returns:
      Their numbers.

    Raises:
      InputError: the rows of this process do not lie together; `all_devices` puts devices in an order in which they do.

    Example:
      >>> from jax.sharding import PartitionSpec
      >>> sharding = NamedSharding(make_mesh("tasks", jax.devices()[:1]), PartitionSpec("tasks"))
      >>> own_rows(sharding, 8)
      range(0, 8)

    Reference:
      Our own choice.
    """
    places = sharding.addressable_devices_indices_map((count,)).values()
    parts = sorted({part.indices(count)[:2] for (part,) in places})
    if not parts or any(end != start for (_, end), (start, _) in itertools.pairwise(parts)):
        raise InputError(f"the rows of process {jax.process_index()} are {parts}: they must lie together")
    return range(parts[0][0], parts[-1][1])


def global_arrays(sharding: NamedSharding, rows: Any, count: int) -> Any:
    """Arrays over all devices from the rows that each process holds.

    Args:
      sharding: as of `own_rows`.
      rows: a pytree of arrays `[own rows, ...]`, on the host.
      count: the number of all rows.

    Returns:
      The pytree of `jax.Array` `[count, ...]`; each process needs only its own rows.

    Example:
      >>> from jax.sharding import PartitionSpec
      >>> sharding = NamedSharding(make_mesh("tasks", jax.devices()[:1]), PartitionSpec("tasks"))
      >>> global_arrays(sharding, {"x": np.ones((4, 2))}, 4)["x"].shape
      (4, 2)

    Reference:
      ``jax.make_array_from_process_local_data``, docs.jax.dev/en/latest/distributed_data_loading.html.
    """

    def place(leaf: Any) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf), (count, *np.shape(leaf)[1:]))

    return jax.tree.map(place, rows)


def barrier(name: str, *, timeout_seconds: int = _DAY) -> None:
    """Waits until every process has come here; nothing happens in a run of one process.

    No device takes part, so processes may come hours apart. A process that is lost ends the wait.

    Args:
      name: the same in every process.
      timeout_seconds: how long to wait.

    Example:
      >>> barrier("finished")

    Reference:
      Our own choice; JAX's coordination service.
    """
    if jax.distributed.is_initialized():
        ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=1000 * timeout_seconds)


def gather(value: Any) -> list[Any]:
    """Gives every process what each of them holds.

    Args:
      value: JSON values of any size.

    Returns:
      One value a process, in their order, as JSON gives them back (tuples as lists).

    Example:
      >>> gather({"rows": [1, 2]})
      [{'rows': [1, 2]}]

    Reference:
      Our own choice.
    """
    text = json.dumps(value)
    if jax.process_count() == 1:
        return [json.loads(text)]
    barrier("gather")  # which waits longer than collectives of devices do
    packed = np.frombuffer(zlib.compress(text.encode()), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(packed.size)))
    padded = np.pad(packed, (0, int(sizes.max()) - packed.size))
    every = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(zlib.decompress(row[:size].tobytes())) for row, size in zip(every, sizes, strict=True)]


def is_loss(error: BaseException) -> bool:
    """Whether an error of JAX tells that another process of the run is gone.

    Args:
      error: what a collective or a barrier raised.

    Returns:
      False in a run of one process.

    Example:
      >>> is_loss(ValueError("Gloo all-reduce failed: Connection reset by peer"))
      False

    Reference:
      Our own choice; JAX has no type for it.
    """
    return jax.process_count() > 1 and any(word in str(error).lower() for word in _LOST)


def _check_port(address: str) -> None:
    """Raises DistributedError where process 0 cannot listen; JAX would end the program without a word."""
    port = int(address.rpartition(":")[2])
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", port))
        except OSError as error:
            raise DistributedError(
                f"--coordinator_address={address}: process 0 cannot listen on port {port} ({error.strerror}); end the "
                "run that uses it, or give another port to all processes"
            ) from error


def _end(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)  # noqa: T201, the last words of the program
    os._exit(1)
