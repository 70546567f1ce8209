"""Runs an experiment in its work directory and turns errors into exit statuses."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import flags
from absl import logging as absl_logging

from gram_jax import evaluation, runtime
from gram_jax.errors import InputError

from . import _processes

logger = logging.getLogger(__name__)

_PATH_ERRORS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # a full or read-only disk


def execute(run: Callable[[Any, Any], Any], config: object, name: str, distributed: str | None) -> int:
    """Runs an experiment called `name`, see `_launch.launch`; returns the exit status."""
    runtime.compile_quickly()  # before anything uses a device
    runtime.keep_freed_memory()
    if not flags.FLAGS["verbosity"].present:
        # JAX tells of every kind of device that it looks for. Orbax logs every file that it touches at info level, and
        # errors of its threads with a traceback each; the errors themselves reach the run.
        # The client of the hub tells of every attempt; its last error reaches the run.
        logging.getLogger("jax").setLevel(logging.WARNING)
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
        for noisy in (absl_logging.get_absl_logger(), logging.getLogger("asyncio")):
            noisy.setLevel(logging.CRITICAL)
    try:
        with (
            _processes.joined(distributed),
            runtime.claim(flags.FLAGS.workdir) as folder,
            _stopped_by_sigterm(distributed),
        ):
            _processes.agree(dataclasses.asdict(config) | {"workdir": os.fspath(folder)})
            _run(run, config, folder, name)
    except _Terminated:
        # At once: XLA threads that are still compiling would crash while the interpreter shuts down.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)
    except (InputError, *_PATH_ERRORS) as error:
        return _refuse(str(error))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return _refuse(f"{error}; finished work is kept: fix the disk and run the same command again")
        if (status := _processes.failed(error)) is None:
            raise
        return _processes.leave(status)
    except KeyboardInterrupt:
        _processes.complain("interrupted; the same command resumes from the last checkpoint, if there is one")
        return _processes.leave(130)
    return 0


def _refuse(message: str) -> int:
    logger.debug("traceback of the error below", exc_info=True)
    _processes.complain(message)
    return _processes.leave(2)


def _run(run: Callable[[Any, Any], Any], config: object, folder: Any, name: str) -> None:
    runtime.enable_compilation_cache(folder)
    given = {f.name: value for f in dataclasses.fields(config) if (value := getattr(config, f.name)) != f.default}
    if runtime.is_main():
        width = max(map(len, given), default=0)
        print(f"{name} in {folder}", *(f"  {k:<{width}}  {v!r}" for k, v in given.items()), sep="\n", flush=True)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would warn that PyTorch is missing
    environment = evaluation.environment()
    device = environment["device"]
    logger.info("jax %s on %d x %s", environment["packages"]["jax"], device["count"], device["kind"])
    results = run(config, folder)
    if results is not None and runtime.is_main():
        evaluation.save_results(folder, results)
        print(f"results in {folder / 'results.json'}", flush=True)


class _Terminated(SystemExit):
    """Raised by the handler of SIGTERM."""


@contextlib.contextmanager
def _stopped_by_sigterm(distributed: str | None) -> Iterator[None]:
    """Ends the program with status 0 on SIGTERM, which schedulers send before they kill; finished work is on disk.

    `gram_jax.runtime.Checkpoints` replaces the handler in order to save first. With several processes that take steps
    together, JAX's preemption service owns the signal.
    """
    together = distributed == "steps" and jax.process_count() > 1
    if together or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second SIGTERM ends the program at once
        os.write(2, b"asked to stop; the same command resumes\n")  # print is not allowed in a handler
        raise _Terminated(0)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
