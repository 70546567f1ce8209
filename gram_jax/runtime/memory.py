"""Estimates of the memory that a step needs, printed before the first step, and how freed memory is kept."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

import jax

GIB = 2**30
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of `mallopt`, from glibc's malloc.h


def available_memory() -> int | None:
    """Returns the bytes that the first device of this process may use, or None if unknown.

    On a CPU this is the memory of the machine, divided by the number of devices.
    """
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None and device.platform == "cpu":
        with contextlib.suppress(ValueError, OSError):  # a system without these settings
            limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
    return limit


def memory_line(needed: int, devices: int = 1, available: int | None = None) -> str:
    """Returns a message about the memory of a step, with advice if it exceeds the available memory.

    Args:
      needed: bytes on each device, e.g. by `gram_jax.tuning.memory_bytes`.
      devices: the number of devices that the step runs on.
      available: bytes of a device, e.g. `available_memory()`; None if unknown.

    Example:
      >>> memory_line(3 * 2**29, 4)
      'a step needs 1.5 GiB on each of 4 devices'
      >>> memory_line(2**29)
      'a step needs 0.5 GiB'
    """
    line = f"a step needs {needed / GIB:.2g} GiB" + (f" on each of {devices} devices" if devices > 1 else "")
    if available is not None and needed > available:
        line += (
            f", but {available / GIB:.2g} GiB are available: use smaller batches, fewer tasks at once or more devices"
        )
    return line


def keep_freed_memory() -> bool:
    """Lets this process reuse the memory of arrays that it has freed.

    glibc takes every large array from the system and gives it back when the array is freed. The system then clears its
    pages anew for every step: with the mini clip, a step of VPT takes 1.4 times as long. After this call, up to 1 GiB
    of freed memory stays with the process. Only glibc on Linux has the setting, and only arrays on a CPU depend on it.
    A setting that the user has made (`MALLOC_MMAP_MAX_`, for example) remains.

    Returns:
      Whether the setting is in effect.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_MMAP_MAX, 0) == 1 and mallopt(_TRIM_THRESHOLD, GIB) == 1
