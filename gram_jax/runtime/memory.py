"""Estimates of the memory that a step needs, printed before the first step."""

from __future__ import annotations

import contextlib
import os

import jax

GIB = 2**30


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
