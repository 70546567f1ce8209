"""Measures of continual learning, from the matrix of accuracies along a stream of tasks."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from gram_jax.errors import InputError


def stream_metrics(matrix: ArrayLike, counts: ArrayLike) -> dict[str, float]:
    """Returns the measures of a stream, under every definition in use.

    A[t, j] is the accuracy on task j after task t <= T, among the classes of the tasks 1, ..., t; n_j is the number of
    test images of task j::

        last              sum_j n_j A[T, j] / sum_j n_j          Acc or Last: the pooled accuracy (VPT-NSP^2)
        last_mean         mean_j A[T, j]                         every task counts the same
        average           mean_t of the pooled accuracy after t  Avg: the average incremental accuracy
        average_mean      mean_t mean_{j <= t} A[t, j]
        forgetting        mean_{j < T} max_{t <= T} A[t, j] - A[T, j]    at least 0 (VPT-NSP^2)
        forgetting_before mean_{j < T} max_{t <  T} A[t, j] - A[T, j]    may be negative (Chaudhry et al.)
        backward          mean_{j < T} A[T, j] - A[j, j]                 (GEM)
        backward_all      mean over all t > j of A[t, j] - A[j, j]       (Diaz-Rodriguez et al.)

    With one task, forgetting and backward transfer are 0. A method that is measured after the last task only has NaN in
    the other rows, and no other measure than `last` and `last_mean`.

    Args:
      matrix: A, `[tasks, tasks]`; what is above the diagonal is not read.
      counts: n, test images per task, `[tasks]`.

    Example:
      >>> found = stream_metrics([[0.9, np.nan], [0.7, 0.8]], [10, 30])
      >>> round(found["last"], 3), round(found["forgetting"], 3), round(found["backward"], 3)
      (0.775, 0.2, -0.2)

    Reference:
      "Visual Prompt Tuning in Null Space for Continual Learning", public code; "Riemannian Walk for Incremental
      Learning", section 3; "Gradient Episodic Memory for Continual Learning", section 2; "Don't forget, there is more
      than forgetting", section 3.
    """
    a, n = np.asarray(matrix, np.float64), np.asarray(counts, np.float64)
    tasks = len(n)
    if a.shape != (tasks, tasks) or not tasks or np.isnan(a[-1]).any():
        raise InputError(f"the matrix {list(a.shape)} does not fit {tasks} tasks with a complete last row")
    last = a[-1]
    found = {"last": float(last @ n / n.sum()), "last_mean": float(last.mean())}
    lower = np.tril_indices(tasks)
    if np.isnan(a[lower]).any():
        return found
    pooled = [a[t, : t + 1] @ n[: t + 1] / n[: t + 1].sum() for t in range(tasks)]
    found["average"] = float(np.mean(pooled))
    found["average_mean"] = float(np.mean([a[t, : t + 1].mean() for t in range(tasks)]))
    old = range(tasks - 1)
    found["forgetting"] = _mean([a[j:, j].max() - last[j] for j in old])
    found["forgetting_before"] = _mean([a[j:-1, j].max() - last[j] for j in old])
    found["backward"] = _mean([last[j] - a[j, j] for j in old])
    found["backward_all"] = _mean([a[t, j] - a[j, j] for j in old for t in range(j + 1, tasks)])
    return found


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else 0.0
