"""The memory that a step is going to take, told before it is taken."""

from __future__ import annotations

import os

import jax

GIB = 2**30


def available_memory() -> int | None:
    """The memory of a device of this process.

    Returns:
      Bytes that the first device may use; on a CPU the memory of the machine, which all its devices share. None where
      nobody says it.

    Example:
      >>> available_memory() is None or available_memory() > 2**20
      True

    Reference:
      Our own choice.
    """
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None and device.platform == "cpu":
        try:
            limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
        except (ValueError, OSError):  # a system that does not count its pages
            limit = None
    return limit


def memory_line(needed: int, devices: int = 1, available: int | None = None) -> str:
    """What a step takes, in words, and what to do where that is more than there is.

    Args:
      needed: bytes on each device, e.g. by `gram_jax.tuning.memory_bytes`.
      devices: how many devices the step runs on.
      available: bytes of a device, e.g. `available_memory()`; None where it is not known.

    Returns:
      One line.

    Example:
      >>> memory_line(3 * 2**29, 4)
      'a step takes 1.5 GiB on each of 4 devices'
      >>> memory_line(2**29)
      'a step takes 0.5 GiB'

    Reference:
      Our own choice.
    """
    line = f"a step takes {needed / GIB:.2g} GiB" + (f" on each of {devices} devices" if devices > 1 else "")
    if available is not None and needed > available:
        line += (
            f", and there are {available / GIB:.2g}: it will hardly fit; take smaller batches, fewer at once, or more "
            "devices"
        )
    return line
