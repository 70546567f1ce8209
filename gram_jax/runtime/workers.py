"""Worker processes that never import JAX.

A process that imports JAX costs a second and hundreds of megabytes, and must not find the accelerator that its parent
holds. Importing any module of gram_jax runs the package's own imports, JAX among them; in a worker they are left out.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor

BARE = ("gram_jax", "gram_jax.clip", "gram_jax.data")  # packages whose own imports are left out


def pool(workers: int) -> ProcessPoolExecutor:
    """A pool of processes for functions of gram_jax that need no JAX.

    The processes are spawned: a fork of a process with threads, as JAX's is, may hang. They end when their parent does,
    even if it was killed.

    Args:
      workers: how many.

    Returns:
      The executor.
    """
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start)


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt reaches the whole group: the parent speaks for all
    threading.Thread(target=_end_with_parent, daemon=True).start()
    path = None
    for name in BARE:
        if name not in sys.modules:
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            sys.modules[name] = importlib.util.module_from_spec(spec)
        path = sys.modules["gram_jax"].__path__


def _end_with_parent() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
