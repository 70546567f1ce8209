from .checkpoints import CheckpointError, Checkpoints, ConfigMismatchError, Restored
from .compilation import compile_quickly, enable_compilation_cache
from .devices import (
    DistributedError,
    all_devices,
    barrier,
    check_processes,
    connect,
    gather,
    global_arrays,
    is_main,
    is_process_loss,
    make_mesh,
    own_rows,
)
from .memory import available_memory, memory_line
from .metrics_log import MetricsLog, read_metrics
from .progress import Progress
from .units import SharedUnits, Units
from .workdir import WorkdirError, claim
from .workers import worker_pool

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "ConfigMismatchError",
    "DistributedError",
    "MetricsLog",
    "Progress",
    "Restored",
    "SharedUnits",
    "Units",
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
    "is_main",
    "is_process_loss",
    "make_mesh",
    "memory_line",
    "own_rows",
    "read_metrics",
    "worker_pool",
]
