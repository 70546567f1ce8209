"""The setting that keeps freed memory in the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

MEBIBYTES = 64
COUNT = f"""
import resource
from gram_jax.runtime.memory import keep_freed_memory

print(keep_freed_memory())
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    b"x" * ({MEBIBYTES} * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
@pytest.mark.parametrize("kept", [True, False])
def test_the_system_clears_pages_once_or_every_time(kept):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment |= {} if kept else {"MALLOC_ARENA_MAX": "4"}  # a setting of the user remains
    done = subprocess.run([sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True, check=True)
    answer, faults = done.stdout.split()
    pages = MEBIBYTES * 2**20 / os.sysconf("SC_PAGE_SIZE")
    assert answer == str(kept)
    assert int(faults) < 2 * pages if kept else int(faults) > 5 * pages
