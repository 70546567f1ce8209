"""Several processes of one experiment, on one or several hosts: connecting, comparing settings, ending."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import flags

from gram_jax import runtime
from gram_jax.errors import InputError

_NAMES = ("coordinator_address", "num_processes", "process_id")
_GRACE = 2.0  # seconds that process 0 waits after its error, so that the others can report theirs


def complain(message: str) -> None:
    """Prints an error message to standard error."""
    print(f"error: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def joined(distributed: str | None) -> Iterator[None]:
    """Connects the processes of a run within the context; only process 0 prints to standard output.

    Raises InputError if flags require --distributed, or if this host is one of several without it.
    """
    given = {name: getattr(flags.FLAGS, name) for name in _NAMES} if distributed else {}
    if distributed and flags.FLAGS.distributed:
        runtime.connect(**given, preemption=distributed == "steps")
    elif alone := [f"--{name}={value}" for name, value in given.items() if value is not None]:
        raise InputError(f"{' '.join(alone)}: add --distributed, in every process")
    runtime.require_device()
    if not (distributed and flags.FLAGS.distributed) and jax.process_count() > 1:
        remedy = "add --distributed, on every host" if distributed else "run this experiment on a single host"
        raise InputError(f"this is host {jax.process_index()} of a slice of {jax.process_count()} hosts; {remedy}")
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
        runtime.barrier("finished")  # JAX's own shutdown waits for minutes only, and processes may end hours apart


def agree(settings: Mapping[str, Any]) -> None:
    """Raises InputError, in every process, if the processes have different settings; names each difference."""
    if jax.process_count() == 1:
        return
    every, here = runtime.gather(dict(settings)), jax.process_index()
    ours = every[here]
    for number, theirs in enumerate(every):
        differing = [
            f"--{name}={theirs.get(name)} instead of {ours.get(name)}"
            for name in sorted(ours.keys() | theirs.keys())
            if theirs.get(name) != ours.get(name)
        ]
        if differing:
            raise InputError(
                f"process {number} has {', '.join(differing)} of process {here}; give all processes the same settings"
            )


def failed(error: Exception) -> int | None:
    """Reports an error that is not the user's in one of several processes.

    Returns the exit status, or None if there is one process only and the error must be raised.
    """
    if not jax.distributed.is_initialized():
        return None
    if runtime.is_process_loss(error):
        lines = str(error).splitlines() or [repr(error)]
        complain(
            f"process {jax.process_index()} of {jax.process_count()} lost another process of this run, whose output "
            f"has the reason ({lines[0]}); when all processes have ended, run the same commands again to resume"
        )
    else:
        traceback.print_exception(error)
    return 1


def leave(status: int) -> int:
    """Ends one of several processes at once, before the others have finished, so that none waits for it.

    JAX would first wait for all processes, which may be waiting for this one in a collective. Returns the status if
    there is one process only.
    """
    if not jax.distributed.is_initialized():
        return status
    if runtime.is_main():
        time.sleep(_GRACE)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
