"""Several processes of one experiment, on one or several hosts: their flags, how they begin, and how they end."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags

from gram_jax.errors import InputError

KINDS = {
    "steps": "all take every step together; a notice to stop reaches all, and all save the same step",
    "units": "each does its own units of work; one that is told to stop keeps what it finished, and the others end too",
}
_NAMES = ("coordinator_address", "num_processes", "process_id")
_GRACE = 2.0  # seconds that process 0 outlives its error: without it the others cannot tell theirs


def define() -> None:
    """Defines the flags of experiments that several processes can share."""
    cluster = "found by itself on TPU, Slurm and Open MPI"
    flags.DEFINE_boolean("distributed", False, "This is one of several processes, on one or several hosts, of one run.")
    flags.DEFINE_string("coordinator_address", None, f"With --distributed: HOST:PORT of process 0; {cluster}.")
    flags.DEFINE_integer("num_processes", None, f"With --distributed: how many processes there are; {cluster}.")
    flags.DEFINE_integer("process_id", None, f"With --distributed: the number of this one, from 0; {cluster}.")


@contextlib.contextmanager
def joined(distributed: str | None) -> Iterator[None]:
    """Joins the processes of a run for as long as it takes; only process 0 prints to standard output.

    Args:
      distributed: how the experiment is shared, one of KINDS; None where it cannot be, and `define` was not called.

    Raises:
      InputError: flags that belong to --distributed are given without it, or this host is one of several already.
      DistributedError: as `runtime.connect`.
    """
    import jax

    from gram_jax import runtime

    given = {name: getattr(flags.FLAGS, name) for name in _NAMES} if distributed else {}
    if distributed and flags.FLAGS.distributed:
        runtime.connect(**given, preemption=distributed == "steps")
    elif alone := [f"--{name}={value}" for name, value in given.items() if value is not None]:
        raise InputError(f"{' '.join(alone)}: add --distributed, in every process")
    elif jax.process_count() > 1:
        remedy = "add --distributed, on every host" if distributed else "run this experiment on a machine of its own"
        raise InputError(f"this is host {jax.process_index()} of a slice of {jax.process_count()}; {remedy}")
    with contextlib.ExitStack() as stack:
        if not runtime.is_main():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        try:
            yield
        except SystemExit as stop:
            if distributed == "units":
                leave(stop.code)
            raise
        runtime.barrier("finished")  # JAX's own farewell waits for minutes, and processes may end hours apart


def agree(settings: Mapping[str, Any]) -> None:
    """Raises InputError, in every process, where one was started with other settings; each that differs is named."""
    import jax

    from gram_jax import runtime

    if jax.process_count() == 1:
        return
    every = runtime.gather(dict(settings))
    ours = every[jax.process_index()]
    for number, theirs in enumerate(every):
        differing = [
            f"--{name}={theirs.get(name)} and not {ours.get(name)}"
            for name in sorted(ours.keys() | theirs.keys())
            if theirs.get(name) != ours.get(name)
        ]
        if differing:
            here = jax.process_index()
            raise InputError(
                f"process {number} was started with {', '.join(differing)}, as process {here} was; give all processes "
                "the same settings"
            )


def failed(error: Exception) -> int | None:
    """Tells an error that is not the user's, as one of several processes.

    Returns:
      The status to end with, or None where there is one process: the error is to be raised.
    """
    import jax

    from gram_jax import runtime

    if not jax.distributed.is_initialized():
        return None
    if runtime.is_loss(error):
        which = f"process {jax.process_index()} of {jax.process_count()}"
        lines = str(error).splitlines() or [repr(error)]
        message = f"{which} lost another process of this run, whose own output says why ({lines[0]})"
        message += "; once all have ended, the same commands continue from what is finished"
        print(f"error: {message}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)
    return 1


def leave(status: int) -> int:
    """Ends one of several processes before the others have finished, at once, so that none of them waits for it.

    JAX would first wait until all processes say farewell, and they may be waiting for this one in a collective.

    Returns:
      The status, where there is one process: it ends by itself.
    """
    import jax

    from gram_jax import runtime

    if not jax.distributed.is_initialized():
        return status
    if runtime.is_main():
        time.sleep(_GRACE)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
