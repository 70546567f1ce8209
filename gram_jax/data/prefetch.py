"""Results that are computed ahead, in order, while somebody else computes: what a training step waits for, counted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from gram_jax.errors import InputError

T = TypeVar("T")


class Ordered(Generic[T]):
    """The results ``map_function(start), ..., map_function(count - 1)`` in order; made by `ordered`.

    Iterate it once, best within ``with``, which ends the work that is under way. An error of the function is raised at
    its turn, when all results before it have been given.

    Attributes:
      waited: seconds that the consumer waited for a result, without the first one, which nobody can have ready.
      elapsed: seconds since the first result was given.
    """

    def __init__(self, source: Any, clock: Callable[[], float]):
        self._source, self._clock = source, clock
        self._first: float | None = None
        self.waited = self.elapsed = 0.0

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._source is None:
            raise StopIteration
        asked = self._clock()
        try:
            (result,) = next(self._source)
        except BaseException:
            self.close()
            raise
        given = self._clock()
        if self._first is None:
            self._first = given
        else:
            self.waited += given - asked
        self.elapsed = given - self._first
        return result

    @property
    def share(self) -> float:
        """The share of the time that the consumer spent waiting: near 0 where input is never late, 1 where it is all.

        0.0 before the second result.
        """
        return self.waited / self.elapsed if self.elapsed > 0 else 0.0

    def close(self) -> None:
        """Ends the work that is under way; what was not given is lost."""
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def __enter__(self) -> Ordered[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def ordered(
    map_function: Callable[[int], T],
    count: int,
    *,
    start: int = 0,
    workers: int = 2,
    prefetch: int = 4,
    processes: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Ordered[T]:
    """Computes a pure function of an index ahead of its consumer, in parallel, in order, through Grain.

    The function is all the state there is, so a run that was stopped resumes from its step alone. Threads are enough
    for images: Pillow decodes and resizes, NumPy copies and TFDS reads without Python's lock. A function that holds
    the lock (drawing, tokenizing) goes faster in processes; the function and its results are pickled then, and
    processes take seconds to start.

    Args:
      map_function: a pure function of an index, for example
        ``lambda index: draw(seed, index, index / steps)``; called from several threads, or processes, at a time.
      count: the number of all indices, those before ``start`` included.
      start: the first index.
      workers: threads, where there are no processes.
      prefetch: results, finished or under way, beside the one that is waited for: what memory must hold.
      processes: processes that compute instead; JAX runs on the CPU in them.
      clock: seconds as a float; for tests.

    Returns:
      An iterator of the results, which counts the time that its consumer waits (see `Ordered`).

    Raises:
      InputError: where a number is out of range.

    Example:
      >>> with ordered(lambda index: index**2, 6, start=3, workers=2) as squares:
      ...     list(squares)
      [9, 16, 25]

    Reference:
      Grain's ``MapDataset`` (random access, deterministic, resumable by position), github.com/google/grain.
    """
    if not 0 <= start <= count:
        raise InputError(f"start is {start}; it must lie between 0 and count, {count}")
    if workers < 1 or prefetch < 0 or processes < 0:
        raise InputError(
            f"workers is {workers}, prefetch {prefetch} and processes {processes}; give at least 1 worker, and 0 or "
            "more of the others"
        )
    if start == count:
        return Ordered(None, clock)
    import grain

    # In a tuple, because Grain leaves out results that are None.
    dataset = grain.MapDataset.range(start, count).map(lambda index: (map_function(int(index)),))
    threads, ahead = (1, 1) if processes else (min(workers, prefetch + 1), prefetch)
    found = dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
    if processes:
        _parse_flags()
        each = math.ceil((prefetch + 1) / processes)
        options = grain.MultiprocessingOptions(num_workers=processes, per_worker_buffer_size=each)
        found = found.mp_prefetch(options, worker_init_fn=_on_cpu)
    return Ordered(iter(found), clock)


def _parse_flags() -> None:
    """Grain reads flags of its own before it starts processes; outside of a program nobody parsed them."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _on_cpu(worker: int, workers: int) -> None:
    """Keeps a process off the accelerator that its parent holds."""
    del worker, workers
    import jax

    jax.config.update("jax_platforms", "cpu")
