"""Ordered prefetching: order, memory, errors and the measured waiting time."""

import os
import threading
import time

import pytest

from gram_jax.data import ordered
from gram_jax.errors import InputError


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 0), (1, 3), (4, 0), (4, 9)])
@pytest.mark.parametrize("start", [0, 7, 20])
def test_results_come_in_order(workers, prefetch, start):
    def slow_if_even(index):
        time.sleep(0.004 * (index % 2 == 0))
        return index * index

    with ordered(slow_if_even, 20, start=start, workers=workers, prefetch=prefetch) as results:
        assert list(results) == [index * index for index in range(start, 20)]


def test_prefetch_bounds_the_results_in_memory():
    begun, held = [], threading.Event()

    def function(index):
        begun.append(index)
        held.wait(0 if index < 3 else 5)
        return index

    with ordered(function, 100, workers=50, prefetch=4) as results:
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        for _ in range(200):
            if len(begun) == 7:
                break
            time.sleep(0.005)
        assert sorted(begun) == list(range(7))  # the three that were given, and those ahead of the last
        held.set()


def test_workers_run_in_parallel():
    barrier = threading.Barrier(3, timeout=5)
    with ordered(lambda index: barrier.wait() >= 0, 9, workers=3, prefetch=2) as results:
        assert all(results)


def test_an_error_comes_at_its_turn():
    def function(index):
        if index >= 4:
            raise ValueError(f"image {index} is broken")
        return index

    given = []
    with pytest.raises(ValueError, match="image 4 is broken"), ordered(function, 9, workers=3) as results:
        given.extend(results)
    assert given == [0, 1, 2, 3]


def test_the_first_result_is_not_waiting_time():
    now = [100.0]

    def clock():  # every second look at it, when a result was given, is 2 seconds after the first
        now.append(now[-1] + 2.0 * (len(now) % 2 == 0))
        return now[-1]

    with ordered(lambda index: index, 5, clock=clock) as results:
        assert results.share == 0.0
        assert next(results) == 0
        assert (results.waited, results.elapsed, results.share) == (0.0, 0.0, 0.0)
        for _ in range(3):
            now[-1] += 6.0  # a step of the consumer
            next(results)
    assert (results.waited, results.elapsed) == (6.0, 24.0)
    assert results.share == 0.25


def test_none_is_a_result():
    with ordered(lambda index: None, 3) as results:
        assert list(results) == [None] * 3


def square_in(index):
    if index == 7:
        raise ValueError("image 7 is broken")
    return index * index, os.getpid()


def test_processes_compute_the_same_in_order():
    given = []
    with pytest.raises(ValueError, match="image 7 is broken"), ordered(square_in, 9, start=2, processes=2) as results:
        given.extend(results)
    assert [square for square, _ in given] == [4, 9, 16, 25, 36]
    assert len({process for _, process in given} - {os.getpid()}) == 2


def test_leaving_early_ends_the_work():
    before = threading.active_count()
    with ordered(lambda index: index, 10**9, workers=4) as results:
        assert next(results) == 0
    for _ in range(200):
        if threading.active_count() <= before:
            break
        time.sleep(0.01)
    assert threading.active_count() <= before
    assert list(results) == []


@pytest.mark.parametrize("settings", [{"start": 6}, {"start": -1}, {"workers": 0}, {"prefetch": -1}, {"processes": -1}])
def test_impossible_settings(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        ordered(abs, 5, **settings)
