"""Time and operations of a step, and of several ways to do the same step, by turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

Values = tuple[float, ...]


class Side(NamedTuple):
    """One way to do a step.

    Attributes:
      run: does it once and returns its seconds and the numbers that every way must arrive at, the loss first.
      compile_seconds: tracing and compilation; None where nothing is compiled ahead.
      step_bytes: arguments, results and scratch memory as the compiler states them; None where there is none.
      flops: operations of its matrix products, two for a multiplication and an addition; None where they are not known.
      count: counts the operations of a run where that is not known ahead.
    """

    run: Callable[[], tuple[float, Values]]
    compile_seconds: float | None = None
    step_bytes: float | None = None
    flops: float | None = None
    count: Callable[[], float] | None = None


def compiled(function: Any, arguments: Callable[[], tuple], values: Callable[[Any], Sequence[Any]]) -> Side:
    """Compiles a step for its arguments.

    Args:
      function: a jitted function.
      arguments: makes its arguments, anew for each run (a step may use them up).
      values: what of the result every way must arrive at.

    Returns:
      The side.
    """
    given = arguments()
    start = time.perf_counter()
    traced = function.trace(*given)
    program = traced.lower().compile()
    compile_seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    step_bytes = None
    if memory is not None:
        step_bytes = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        step_bytes -= memory.alias_size_in_bytes

    def run() -> tuple[float, Values]:
        given = jax.block_until_ready(arguments())
        start = time.perf_counter()
        result = jax.block_until_ready(program(*given))
        seconds = time.perf_counter() - start
        return seconds, tuple(float(value) for value in values(result))

    return Side(run, compile_seconds, step_bytes, matmul_flops(traced.jaxpr.jaxpr))


def plain(function: Callable[[], Sequence[float]]) -> Side:
    """A step that is no single program of JAX; `function` does it and returns the values."""

    def run() -> tuple[float, Values]:
        start = time.perf_counter()
        values = tuple(function())
        return time.perf_counter() - start, values

    return Side(run)


def product(size: int) -> Side:
    """The product of two square matrices: what a device can reach at best."""
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.float32)
    return compiled(jax.jit(lambda x: x @ x), lambda: (x,), lambda found: (found[0, 0],))


def matmul_flops(jaxpr: core.Jaxpr, live: Sequence[bool] | None = None) -> float:
    """Operations of the matrix products of a program, two for a multiplication and an addition.

    Loops count as often as they run (XLA's own analysis takes their body once), and products whose result is not used
    are left out, as the compiler does.

    Args:
      jaxpr: the traced program.
      live: which of its results are used; None: all.

    Returns:
      The number.
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
        inner = list(_jaxprs(eqn.params))
        same = times == 1 and len(inner) == 1 and len(inner[0].outvars) == len(wanted)
        total += times * sum(matmul_flops(part, wanted if same else None) for part in inner)
    return total


def _jaxprs(params: Mapping[str, Any]) -> Iterator[core.Jaxpr]:
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, core.Jaxpr):
                yield part


class Turns(NamedTuple):
    """What `by_turns` found.

    Attributes:
      seconds: of each side, every timed step.
      values: of each side, what its first step arrived at.
    """

    seconds: dict[str, list[float]]
    values: dict[str, Values]


def by_turns(
    sides: Mapping[str, Side],
    repeats: int,
    steps: int,
    max_seconds: float,
    update: Callable[[], None] = lambda: None,
) -> Turns:
    """Times the sides by turns, so that what slows the machine for a while slows all of them.

    The first step of a turn is not counted where others follow in it: it fetches memory anew that the side before gave
    back, which no step in a loop of its own does.

    Args:
      sides: by name.
      repeats: how often each side has its turn.
      steps: its steps in a turn.
      max_seconds: after so many seconds no turn begins but the first.
      update: called after each round.

    Returns:
      The `Turns`.
    """
    began = time.perf_counter()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    values: dict[str, Values] = {}
    for turn in range(repeats):
        if turn and time.perf_counter() - began > max_seconds:
            break
        for name, side in sides.items():
            found = [side.run() for _ in range(steps)]
            seconds[name] += [taken for taken, _ in found[1:] or found]
            values.setdefault(name, found[0][1])
        update()
    return Turns(seconds, values)


def disagreement(a: Values, b: Values) -> float:
    """The largest relative difference of two sides' numbers; infinite where they are not as many, or not finite."""
    if len(a) != len(b):
        return math.inf
    pairs = [abs(x - y) / max(abs(x), abs(y), 1e-8) for x, y in zip(a, b, strict=True)]
    return max((pair if math.isfinite(pair) else math.inf for pair in pairs), default=0.0)


def median(values: Sequence[float]) -> float:
    """The median, a float."""
    return float(np.median(values))
