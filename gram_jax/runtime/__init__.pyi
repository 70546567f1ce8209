from .checkpoints import CheckpointError, Checkpoints, Restored
from .compilation import compile_quickly, enable_compilation_cache
from .devices import (
    all_devices,
    barrier,
    connect,
    gather,
    global_arrays,
    is_main,
    is_process_loss,
    make_mesh,
    own_rows,
    require_device,
)
from .memory import available_memory, keep_freed_memory, memory_line
from .metrics_log import MetricsLog, read_metrics
from .progress import Progress, hidden_bar
from .units import SharedUnits, Units
from .workdir import claim
from .workers import worker_pool

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "MetricsLog",
    "Progress",
    "Restored",
    "SharedUnits",
    "Units",
    "all_devices",
    "available_memory",
    "barrier",
    "claim",
    "compile_quickly",
    "connect",
    "enable_compilation_cache",
    "gather",
    "global_arrays",
    "hidden_bar",
    "is_main",
    "is_process_loss",
    "keep_freed_memory",
    "make_mesh",
    "memory_line",
    "own_rows",
    "read_metrics",
    "require_device",
    "worker_pool",
]
