"""Results that are computed ahead, in order, while somebody else computes: what a training step waits for, counted."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ordered(Generic[T]):
    """The results ``map_function(start), ..., map_function(count - 1)`` in order; made by `ordered`.

    Iterate it once, best within ``with``, which ends the work that is under way. An error of the function is raised at
    its turn, when all results before it have been given.

    Attributes:
      waited: seconds that the consumer waited for a result, without the first one, which nobody can have ready.
      elapsed: seconds since the first result was given.
    """

    def __init__(
        self,
        map_function: Callable[[int], T],
        indices: range,
        workers: int,
        prefetch: int,
        executor: Executor | None,
        clock: Callable[[], float],
    ):
        self._function, self._indices, self._clock = map_function, iter(indices), clock
        self._executor = executor or ThreadPoolExecutor(workers, thread_name_prefix="ordered")
        self._owned = executor is None
        self._ahead: collections.deque[Future[T]] = collections.deque()
        self._size = prefetch + 1
        self._first: float | None = None
        self.waited = self.elapsed = 0.0

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        self._fill()
        if not self._ahead:
            self.close()
            raise StopIteration
        asked = self._clock()
        try:
            result = self._ahead.popleft().result()
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

    def _fill(self) -> None:
        while len(self._ahead) < self._size and (index := next(self._indices, None)) is not None:
            self._ahead.append(self._executor.submit(self._function, index))

    @property
    def share(self) -> float:
        """The share of the time that the consumer spent waiting: near 0 where input is never late, 1 where it is all.

        0.0 before the second result.
        """
        return self.waited / self.elapsed if self.elapsed > 0 else 0.0

    def close(self) -> None:
        """Ends the work that is under way; what was not given is lost."""
        self._indices = iter(())
        while self._ahead:
            self._ahead.popleft().cancel()
        if self._owned:
            self._executor.shutdown(wait=True, cancel_futures=True)

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
    executor: Executor | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Ordered[T]:
    """Computes a pure function of an index ahead of its consumer, in parallel, in order.

    The function is all the state there is, so a run that was stopped resumes from its step alone. Threads are enough
    for images: Pillow decodes and resizes, NumPy copies and TFDS reads without Python's lock. For a function that holds
    the lock (drawing, tokenising), pass a process pool; the function and its results are pickled then.

    Args:
      map_function: a pure function of an index, for example
        ``lambda index: draw(seed, index, index / steps)``; called from several threads at a time.
      count: the number of all indices, those before ``start`` included.
      start: the first index.
      workers: threads.
      prefetch: results, finished or under way, beside the one that is waited for: what memory must hold.
      executor: computes instead of threads of our own, and is left open.
      clock: seconds as a float; for tests.

    Returns:
      An iterator of the results, which counts the time that its consumer waits (see `Ordered`).

    Raises:
      ValueError: where a number is out of range.

    Example:
      >>> with ordered(lambda index: index**2, 6, start=3, workers=2) as squares:
      ...     list(squares)
      [9, 16, 25]

    Reference:
      The semantics of Grain's ``MapDataset.to_iter_dataset`` (random access, deterministic, resumable by position),
      github.com/google/grain, on the standard library's executors.
    """
    if not 0 <= start <= count:
        raise ValueError(f"start is {start}; it must lie between 0 and count, {count}")
    if workers < 1 or prefetch < 0:
        raise ValueError(f"workers is {workers} and prefetch {prefetch}; give at least 1 worker, and 0 or more ahead")
    return Ordered(map_function, range(start, count), workers, prefetch, executor, clock)
