"""A lock on the work directory, so that one run uses it at a time."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator

import filelock
import jax
from etils import epath

from gram_jax.errors import InputError
from gram_jax.io import PathLike, absolute, is_remote

logger = logging.getLogger(__name__)

LOCK = "running.lock"


@contextlib.contextmanager
def claim(workdir: PathLike) -> Iterator[epath.Path]:
    """Creates a work directory and locks it; a context manager.

    The operating system holds the lock and releases it when the process ends, even if it is killed. The lock file names
    the process. Only process 0 of a distributed run locks. Remote folders (`gs://...`) and file systems without locks
    are not locked.

    Args:
      workdir: the folder, local or remote.

    Yields:
      The absolute path of the folder, which exists.

    Raises:
      InputError: the folder is not writable, or another run uses it; the message names the other process.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> with claim(folder), claim(folder):
      ...     pass
      Traceback (most recent call last):
        ...
      gram_jax.errors.InputError: another run (process ... on ...) uses ...
    """
    if not os.fspath(workdir).strip():
        raise InputError(f"--workdir={os.fspath(workdir)!r} is empty; give a folder, such as runs/first")
    folder = absolute(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(folder, error) from error
    with contextlib.nullcontext() if is_remote(folder) or jax.process_index() else _locked(folder):
        yield folder


@contextlib.contextmanager
def _locked(folder: epath.Path) -> Iterator[None]:
    path = folder / LOCK
    lock = filelock.FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        owner = path.read_bytes().decode(errors="replace").strip() if path.exists() else ""
        raise InputError(
            f"another run ({owner or 'which has just begun'}) uses {folder}; wait for it, end it, or give another "
            "--workdir"
        ) from error
    except OSError as error:
        if not os.access(folder, os.W_OK) or not path.exists():
            raise _not_writable(folder, error) from error
        logger.warning("%s has no locks (%s): make sure that no other run uses it", folder, error.strerror)
        yield
        return
    with contextlib.suppress(OSError):  # on a full disk the message to other runs is shorter
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while the lock is held: later it could be the file of the next run
        lock.release()


def _not_writable(folder: epath.Path, error: OSError) -> InputError:
    return InputError(
        f"the work directory {folder} is not writable ({error.strerror or error}); free disk space, change its "
        "permissions, or give another --workdir"
    )
