"""One run in a work directory at a time."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator

import jax
from etils import epath

from gram_jax.errors import InputError
from gram_jax.io import absolute

try:
    import fcntl
except ImportError:  # Windows, where runs are not kept apart
    fcntl = None

logger = logging.getLogger(__name__)

LOCK = "running.lock"


class WorkdirError(InputError):
    """A work directory cannot be written to, or another run is at work in it."""


@contextlib.contextmanager
def claim(workdir: str | os.PathLike[str]) -> Iterator[epath.Path]:
    """Makes a work directory and keeps other runs out of it; a context manager.

    The operating system holds the lock: it ends with its process, however that ends, so a run that was killed is never
    in the way of the next. The file says who it is. Of the processes of one run, process 0 speaks for all. Remote
    folders (``gs://...``), and file systems without locks, keep nobody out.

    Args:
      workdir: the folder, local or remote.

    Returns:
      A context manager that gives its absolute path; the folder exists.

    Raises:
      WorkdirError: it cannot be written to, or another run is at work in it, which the message names.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> with claim(folder), claim(folder):
      ...     pass
      Traceback (most recent call last):
        ...
      gram_jax.runtime.workdir.WorkdirError: another run (process ... on ...) is at work in ...

    Reference:
      Our own choice; flock(2).
    """
    folder = absolute(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from error
    if fcntl is None or "://" in os.fspath(folder) or jax.process_index() != 0:
        yield folder
        return
    file = _lock(folder)
    try:
        yield folder
    finally:
        if file is not None:
            with contextlib.suppress(OSError):  # while the lock is still held, or it would be the next run's file
                os.unlink(folder / LOCK)
            os.close(file)


def _lock(folder: epath.Path) -> int | None:
    """The descriptor that holds the lock, or None where there are no locks."""
    path = folder / LOCK
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise _unusable(folder, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(file, 1000).decode(errors="replace").strip()
            os.close(file)
            raise WorkdirError(
                f"another run ({owner or 'which has just begun'}) is at work in {folder}; wait for it, end it, or give "
                "another --workdir"
            ) from error
        except OSError as error:
            os.close(file)
            logger.warning("%s has no locks (%s): see that no other run uses it", folder, error.strerror)
            return None
        try:
            if os.path.samestat(os.fstat(file), os.stat(path)):
                break
        except FileNotFoundError:
            pass
        os.close(file)  # its owner ended, and removed it, between the two calls above
    with contextlib.suppress(OSError):  # on a full disk the message to others is shorter
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file


def _unusable(folder: epath.Path, error: OSError) -> WorkdirError:
    return WorkdirError(
        f"the work directory {folder} cannot be written to ({error.strerror or error}); make room or mend its "
        "permissions, or give another --workdir"
    )
