"""What a running experiment needs around the mathematics: checkpoints, a metrics log, progress, a compilation cache.

Only programs in ``experiments`` import this package; the library never does.
"""

from gram_jax.runtime.cache import enable_compilation_cache
from gram_jax.runtime.checkpoints import CheckpointError, Checkpoints, ConfigMismatchError, Restored
from gram_jax.runtime.metrics import MetricsLog, read_metrics
from gram_jax.runtime.paths import absolute
from gram_jax.runtime.progress import Progress

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "ConfigMismatchError",
    "MetricsLog",
    "Progress",
    "Restored",
    "absolute",
    "enable_compilation_cache",
    "read_metrics",
]
