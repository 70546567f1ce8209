"""Ordered parallel prefetching."""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, Generic, TypeVar

from gram_jax.errors import InputError, require_int

T = TypeVar("T")


class Ordered(Generic[T]):
    """The results ``map_function(start), ..., map_function(count - 1)`` in order; made by `ordered`.

    Iterate over it once, best inside ``with``, which stops running work at the end. An error of the function is raised
    at its turn, after all results before it.

    Attributes:
      waited: seconds that the consumer waited for results, without the first one, which cannot be ready.
      elapsed: seconds since the first result was returned.
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
        """The share of the time that the consumer waited, from 0 to 1; 0.0 before the second result."""
        return self.waited / self.elapsed if self.elapsed > 0 else 0.0

    def close(self) -> None:
        """Stops running work; results that were not returned are lost."""
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
    """Computes a pure function of an index ahead of its consumer, in parallel and in order.

    The index is the whole state, so a stopped run resumes from its step. Threads suffice for images: Pillow, NumPy and
    TFDS release Python's lock. A function that holds the lock (drawing, tokenizing) is faster in processes; then the
    function and its results are pickled, and the start takes seconds.

    Args:
      map_function: a pure function of an index, called by several threads or processes at once.
      count, start: the number of indices, including those before the first one, ``start``.
      workers, processes: the number of threads; or the number of processes, on the CPU, if it is not 0.
      prefetch: the number of results in memory, finished or not, besides the next one.
      clock: returns seconds; for tests.

    Returns:
      An iterator over the results, which measures how long its consumer waits (see `Ordered`).

    Example:
      >>> with ordered(lambda index: index**2, 6, start=3, workers=2) as squares:
      ...     list(squares)
      [9, 16, 25]

    Reference:
      Processes are those of Grain's ``MapDataset`` (random access, deterministic, resumable by position),
      github.com/google/grain.
    """
    for name, value, least in (("workers", workers, 1), ("prefetch", prefetch, 0), ("processes", processes, 0)):
        require_int(name, value, least)
    if not 0 <= start <= count:
        raise InputError(f"start={start}: it must be between 0 and count={count}")
    if start == count:
        return Ordered(None, clock)
    if not processes:
        return Ordered(_in_threads(map_function, range(start, count), workers, prefetch), clock)
    import grain
    from absl import flags

    # In a tuple, because Grain drops results that are None.
    dataset = grain.MapDataset.range(start, count).map(lambda index: (map_function(int(index)),))
    results = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads its own flags before it starts processes, also outside a program
    each = math.ceil((prefetch + 1) / processes)
    options = grain.MultiprocessingOptions(num_workers=processes, per_worker_buffer_size=each)
    return Ordered(iter(results.mp_prefetch(options, worker_init_fn=_on_cpu)), clock)


def _in_threads(function: Callable[[int], T], indices: range, workers: int, prefetch: int) -> Iterator[tuple[T]]:
    """Yields the results in order; when one is given, `prefetch` calls after it have begun or wait for a thread."""
    begun: collections.deque[futures.Future[T]] = collections.deque()
    with futures.ThreadPoolExecutor(workers) as pool:
        try:
            for index in indices:
                begun.append(pool.submit(function, index))
                if len(begun) > prefetch:
                    yield (begun.popleft().result(),)
            while begun:
                yield (begun.popleft().result(),)
        finally:
            for each in begun:
                each.cancel()


def _on_cpu(worker: int, workers: int) -> None:
    """Keeps a process off the accelerator that its parent holds."""
    del worker, workers
    import jax

    jax.config.update("jax_platforms", "cpu")
