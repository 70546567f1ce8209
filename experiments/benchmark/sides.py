"""Sides of a comparison: ways to compute the same step, with their time, memory and operations."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache as jax_cache
from jax.extend import core

from gram_jax.tuning import memory_bytes

Values = tuple[float, ...]
_CACHE_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


class Side(NamedTuple):
    """One way to compute a step; its costs are None if unknown.

    `run` computes it once and returns its seconds and the numbers on which all sides must agree, the loss first.
    `compile_seconds` includes tracing; `step_bytes` are arguments, results and scratch memory according to the
    compiler; `flops` the operations of the matrix products, which `count` counts in a run otherwise.
    """

    run: Callable[[], tuple[float, Values]]
    compile_seconds: float | None = None
    step_bytes: float | None = None
    flops: float | None = None
    count: Callable[[], float] | None = None


class Builder(NamedTuple):
    """A side that is not built (and compiled) yet, and an estimate of the bytes that it needs, or 0."""

    build: Callable[[], Side]
    estimate: float = 0.0


class Program(NamedTuple):
    """A compiled step and its costs, as in `Side`."""

    run: jax.stages.Compiled
    compile_seconds: float
    step_bytes: float | None
    flops: float


def compile_program(function: Any, *arguments: Any) -> Program:
    """Compiles a jitted function for its arguments."""
    start = time.perf_counter()
    traced = function.trace(*arguments)
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - start
    return Program(compiled, seconds, memory_bytes(compiled) or None, matmul_flops(traced.jaxpr.jaxpr))


def compiled_side(function: Any, arguments: Callable[[], tuple], values: Callable[[Any], Sequence[Any]]) -> Side:
    """Returns a side that is one jitted function.

    `arguments` makes its arguments, again for each run (a step may donate them); `values` extracts from the result the
    numbers on which all sides must agree.
    """
    program = compile_program(function, *arguments())

    def run() -> tuple[float, Values]:
        given = jax.block_until_ready(arguments())
        start = time.perf_counter()
        result = jax.block_until_ready(program.run(*given))
        seconds = time.perf_counter() - start
        return seconds, tuple(map(float, values(result)))

    return Side(run, *program[1:])


def plain_side(function: Callable[[], Sequence[float]]) -> Side:
    """Returns a side that is not one JAX program; `function` computes the step and returns the values."""

    def run() -> tuple[float, Values]:
        start = time.perf_counter()
        values = tuple(function())
        return time.perf_counter() - start, values

    return Side(run)


def square_product(size: int) -> Side:
    """Returns the product of two square matrices, which shows the peak performance of a device."""
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.float32)
    return compiled_side(jax.jit(lambda x: x @ x), lambda: (x,), lambda result: (result[0, 0],))


def matmul_flops(jaxpr: core.Jaxpr, live: Sequence[bool] | None = None) -> float:
    """Counts the operations of the matrix products of a traced program, two per multiplication and addition.

    The body of a loop counts once per iteration (XLA's own analysis counts it once). Products whose result is not used
    do not count, because the compiler removes them; `live` tells which results of the program are used.
    """
    live = [True] * len(jaxpr.outvars) if live is None else live
    used = {id(var) for var, wanted in zip(jaxpr.outvars, live, strict=True) if wanted}
    total = 0.0
    for eqn in reversed(jaxpr.eqns):
        wanted = [id(var) in used for var in eqn.outvars]
        if not any(wanted) and not eqn.effects:
            continue
        used.update(id(var) for var in eqn.invars)
        if eqn.primitive.name == "dot_general":
            ((contracted, _), _) = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
            continue
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        inner = _jaxprs(eqn.params)
        same = times == 1 and len(inner) == 1 and len(inner[0].outvars) == len(wanted)
        total += times * sum(matmul_flops(part, wanted if same else None) for part in inner)
    return total


def _jaxprs(params: Mapping[str, Any]) -> list[core.Jaxpr]:
    parts = jax.tree.leaves(list(params.values()))
    found = (part for part in parts if isinstance(part, core.Jaxpr | core.ClosedJaxpr))
    return [part.jaxpr if isinstance(part, core.ClosedJaxpr) else part for part in found]


@contextlib.contextmanager
def compilation_cache(folder: str | None) -> Iterator[None]:
    """Compiles with a persistent cache of every program in a folder, or with none, and restores the settings."""
    before = [getattr(jax.config, name) for name in _CACHE_SETTINGS]

    def use(values: Sequence[Any]) -> None:
        for name, value in zip(_CACHE_SETTINGS, values, strict=True):
            jax.config.update(name, value)
        jax_cache.reset_cache()

    use((folder, 0.0, -1))
    try:
        yield
    finally:
        use(before)


def run_in_turns(
    sides: Mapping[str, Side], repeats: int, steps: int, max_seconds: float, update: Callable[[], None] = lambda: None
) -> tuple[dict[str, list[float]], dict[str, Values]]:
    """Times the sides in turns, so that a temporary slowdown of the machine affects all of them.

    The first step of a turn does not count if others follow: it allocates memory that the previous side released,
    which no step of a continuous loop does. After `max_seconds` no further turn begins; `update` is called after each
    turn of all sides. Returns the seconds of all timed steps, and the values of the first step, by side.
    """
    began = time.perf_counter()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    values: dict[str, Values] = {}
    for turn in range(repeats):
        if turn and time.perf_counter() - began > max_seconds:
            break
        for name, side in sides.items():
            runs = [side.run() for _ in range(steps)]
            seconds[name] += [taken for taken, _ in runs[1:] or runs]
            values.setdefault(name, runs[0][1])
        update()
    return seconds, values


def relative_difference(a: Values, b: Values) -> float:
    """Returns the largest relative difference of two sides' values; infinite if their number differs or one is NaN."""
    if len(a) != len(b):
        return math.inf
    pairs = (abs(x - y) / max(abs(x), abs(y), 1e-8) for x, y in zip(a, b, strict=True))
    return max((pair if math.isfinite(pair) else math.inf for pair in pairs), default=0.0)
