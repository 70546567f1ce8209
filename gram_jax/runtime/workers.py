"""Worker processes for functions that need no JAX."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Returns a pool of processes for functions of modules that do not import JAX.

    JAX would cost each process a second and hundreds of megabytes, and would claim the accelerator of the parent.
    The processes are spawned, because a fork of a process with threads may deadlock. They end with their parent, even
    if it is killed.

    Args:
      workers: the number of processes.
    """
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_initialize)


def _initialize() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the whole process group; only the parent reports it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # a pool's process has one
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
