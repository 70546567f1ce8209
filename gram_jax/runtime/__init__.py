"""What a running experiment needs around the mathematics: processes and devices, checkpoints, a metrics log,
progress, estimates of memory, a compilation cache, a lock on its folder.

Only programs in ``experiments`` import this package; the library never does.
"""

from gram_jax.runtime.checkpoints import CheckpointError, Checkpoints, ConfigMismatchError, Restored
from gram_jax.runtime.compilation import compile_quickly, enable_compilation_cache
from gram_jax.runtime.devices import (
    DistributedError,
    all_devices,
    barrier,
    check_processes,
    connect,
    gather,
    global_arrays,
    is_loss,
    is_main,
    make_mesh,
    own_rows,
)
from gram_jax.runtime.memory import available_memory, memory_line
from gram_jax.runtime.metrics_log import MetricsLog, read_metrics
from gram_jax.runtime.progress import Progress
from gram_jax.runtime.workdir import WorkdirError, claim

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "ConfigMismatchError",
    "DistributedError",
    "MetricsLog",
    "Progress",
    "Restored",
    "WorkdirError",
    "all_devices",
    "available_memory",
    "barrier",
    "check_processes",
    "claim",
    "compile_quickly",
    "connect",
    "enable_compilation_cache",
    "gather",
    "global_arrays",
    "is_loss",
    "is_main",
    "make_mesh",
    "memory_line",
    "own_rows",
    "read_metrics",
]
