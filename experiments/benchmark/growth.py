"""Measures how time and memory of a step grow along one axis at a time, and plots each axis.

    python -m experiments.benchmark.growth
    python -m experiments.benchmark.growth --clip_size=vit_b16 --axes=classes --run_gib=0
    python -m experiments.benchmark.growth --axes=seeds,tasks --repeats=10

Axes: the classes of a CoOp step (in chunks of --class_chunk, as in experiments.evaluate), the seeds of a CoOp step that
tunes several prompts at once, the shots and the tasks of a meta step, and the devices of a meta step with as many tasks
per device, on fake devices that share the cores. Every other size is that of experiments.benchmark, with random weights
and random image features.

Memory is the compiler's, without the weights of the text transformer. Time is the shortest of --repeats runs, which
take turns over the points of an axis; a point that needs more than --run_gib is compiled and not run. An exponent p
says that the cost is proportional to (size of the axis)^p. It is fitted by least squares between logarithms; "at the
end" is that of the two largest points, where constant costs count least. On the axis of devices, time is processor time
of all of them.

WORKDIR gets growth.png, table.md and results.json. The default takes four to ten minutes on two cores, and 3 GiB.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax import evaluation, regulators, reporting, tuning
from gram_jax.errors import InputError, require_known
from gram_jax.io import absolute, write_file
from gram_jax.reporting import plots
from gram_jax.runtime.memory import GIB

from .._launch import at_least, launch, positive, setting
from . import inputs, scaling
from .inputs import Problem, Setup
from .sides import Side, compiled_side, run_in_turns
from .tables import table_of
from .workloads import meta_step, tuning_step

POINTS = {
    "classes": (100, 300, 1000, 3000, 10_000, 20_000),
    "seeds": (1, 2, 4, 8, 16),
    "shots": (1, 2, 4, 8, 16),
    "tasks": (1, 2, 4, 8, 16, 32),
    "devices": (1, 2, 4, 8),
}
AXES = tuple(POINTS)


@dataclasses.dataclass(frozen=True)
class Config:
    """The axes and the limits of the measurement."""

    clip_size: str = setting("mini", "size of the clip, whose weights are random", choices=tuple(inputs.CLIPS))
    axes: tuple[str, ...] = setting(AXES, f"some of {', '.join(AXES)}")
    largest: int = setting(20_000, "largest size of an axis; larger points are left out")
    class_chunk: int = setting(512, "classes whose texts are computed at once; 0: all")
    repeats: int = setting(8, "runs of a point; the shortest counts")
    max_seconds: float = setting(120.0, "no further turn over the points of an axis begins after this time, seconds")
    run_gib: float = setting(4.0, "a point that needs more memory is compiled and not run, GiB")
    small: bool = setting(False, "tiny sizes and a tiny clip instead of --clip_size, for tests")

    def __post_init__(self) -> None:
        if not self.axes:
            raise InputError(f"--axes=: choose from {', '.join(AXES)}")
        for axis in self.axes:
            require_known("--axes", axis, AXES)
        at_least(self, 1, "repeats", "largest")
        for axis in self.axes:
            if self.largest < POINTS[axis][0]:
                raise InputError(
                    f"--largest={self.largest}: {axis} begin at {POINTS[axis][0]}; give more, or other --axes"
                )
        at_least(self, 0, "class_chunk")
        positive(self, "max_seconds")


class Point(NamedTuple):
    """One size of an axis: seconds (None if it was not run), and bytes without the weights (None if unknown)."""

    size: int
    seconds: float | None
    bytes: float | None


def exponents(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Returns the exponent p of cost ~ size^p, fitted to all points by least squares, and that of the last two.

    Example:
      >>> exponents([(1, 3.0), (2, 6.0), (4, 24.0)])
      (1.5, 2.0)
    """
    x, y = np.log(np.array(points, np.float64)).T
    slope = float(np.sum((x - x.mean()) * (y - y.mean())) / np.sum((x - x.mean()) ** 2))
    return round(slope, 12), round(float((y[-1] - y[-2]) / (x[-1] - x[-2])), 12)


def stacked_step(setup: Setup, problem: Problem, runs: int) -> Side:
    """Returns a step of `tuning.make_tuning` for several prompts at once."""
    regulator = regulators.identity()
    step = tuning.make_tuning(problem.tuner, regulator)
    phi = regulator.init(jax.random.key(0), problem.prompt)
    batch = dict(problem.batches["support"])
    batch |= {name: jnp.stack([batch[name]] * runs) for name in ("images", "labels")}
    state = step.init(jax.tree.map(lambda leaf: jnp.stack([leaf] * runs), problem.prompt))
    function = jax.jit(lambda state, clip, batch: step.step(state, phi, clip, batch, inputs.RATE, 1))
    return compiled_side(function, lambda: (state, setup.clip, batch), lambda out: (out[1]["loss"][0],))


def with_random_features(setup: Setup, problem: Problem) -> Problem:
    """Returns a problem whose images are random unit features; a text tuner's step costs the same with any."""
    rng, dim = np.random.default_rng(7), setup.clip.config.embed_dim

    def features(images: Any) -> Any:
        made = rng.standard_normal((*images.shape[:-3], dim)).astype(np.float32)
        return jnp.asarray(made / np.linalg.norm(made, axis=-1, keepdims=True))

    batches = {name: batch | {"images": features(batch["images"])} for name, batch in problem.batches.items()}
    return problem._replace(batches=batches)


def builder(axis: str, setup: Setup, size: int) -> Side:
    """Compiles the step of a point."""
    if axis in ("classes", "seeds"):
        classes = size if axis == "classes" else setup.sizes.classes
        problem = with_random_features(setup, inputs.one_batch("coop", setup, setup.sizes.batch, classes))
        return tuning_step(setup, problem) if axis == "classes" else stacked_step(setup, problem, size)
    resized = setup._replace(sizes=dataclasses.replace(setup.sizes, **{axis: size}))
    return meta_step(resized, with_random_features(setup, inputs.episodic("coop", 3, "exact", resized)))


def measure(config: Config, axis: str, setup: Setup) -> list[Point]:
    """Returns the points of an axis."""
    sizes = [size for size in POINTS[axis] if size <= config.largest]
    if axis == "devices":
        return [_devices(size) for size in sizes]
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(setup.clip.params["text"]))  # the others are not used
    sides = {size: builder(axis, setup, size) for size in sizes}
    small = {str(n): side for n, side in sides.items() if (side.step_bytes or 0) <= config.run_gib * GIB}
    seconds = run_in_turns(small, config.repeats, 1, config.max_seconds)[0] if small else {}
    return [
        Point(
            size,
            min(seconds[str(size)]) if str(size) in seconds else None,
            None if side.step_bytes is None else max(side.step_bytes - weights, 1.0),
        )
        for size, side in sides.items()
    ]


def _devices(count: int) -> Point:
    case = scaling.Config(devices=(count,), steps=5)
    measured = scaling.measure(case, 1, count)
    return Point(count, measured["cpu_seconds_a_task"] * case.tasks * count, None)


def plot(found: Mapping[str, Sequence[Point]], path: Any) -> None:
    """Draws time and memory against each axis, with logarithmic scales and the fitted exponents."""
    kinds: tuple[tuple[str, str, Callable[[Point], float | None]], ...] = (
        ("milliseconds", "#0072B2", lambda point: None if point.seconds is None else 1e3 * point.seconds),
        ("MiB", "#D55E00", lambda point: None if point.bytes is None else point.bytes / 2**20),
    )
    with plots.drawing(2.6 * len(found), len(found), 2) as (figure, axes):
        for row, (axis, points) in zip(axes, found.items(), strict=True):
            for panel, (unit, color, value) in zip(row, kinds, strict=True):
                known = [(point.size, value(point)) for point in points if value(point)]
                panel.set(xscale="log", yscale="log", xlabel=axis, ylabel=unit)
                if len(known) < 2:
                    panel.set_visible(False)
                    continue
                x, y = zip(*known, strict=True)
                panel.plot(x, y, "o-", color=color)
                panel.plot(x, [y[-1] * size / x[-1] for size in x], ":", color=plots.GRAY)  # exactly linear
                panel.minorticks_off()
                panel.set_xticks(x, [f"{size // 1000}k" if size % 1000 == 0 else str(size) for size in x])
                panel.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
                panel.yaxis.set_major_formatter("{x:,g}")
                panel.set_title("exponent {:.2f}, at the end {:.2f}".format(*exponents(known)))
        plots.save(figure, path)


def table(found: Mapping[str, Sequence[Point]]) -> reporting.Table:
    """Returns a table with a row per axis."""
    rows = []
    for axis, points in found.items():
        row = {"axis": axis, "from": f"{points[0].size:,}", "to": f"{points[-1].size:,}"}
        for name, unit, scale in (("seconds", "ms", 1e3), ("bytes", "MiB", 2.0**-20)):
            known = [(point.size, getattr(point, name)) for point in points if getattr(point, name)]
            shown = f"{scale * known[0][1]:.3g} to {scale * known[-1][1]:.4g}" if known else "-"
            fit = exponents(known) if len(known) > 1 else (math.nan, math.nan)
            row |= {unit: shown, f"exponent of {name}": "-" if math.isnan(fit[0]) else f"{fit[0]:.2f}"}
            row |= {f"{name}, at the end": "-" if math.isnan(fit[1]) else f"{fit[1]:.2f}"}
        rows.append(row)
    return table_of(rows)


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Measures the axes one after the other."""
    workdir = absolute(workdir)
    if config.small:
        setup = inputs.make_setup(config.clip_size, True, 0, workdir)
    else:
        clip = inputs.random_clip(config.clip_size, class_chunk=config.class_chunk)
        setup = Setup(clip, inputs.Sizes(), workdir)
    found: dict[str, list[Point]] = {}
    for axis in config.axes:
        found[axis] = measure(config, axis, setup)
        for point in found[axis]:
            taken = "not run" if point.seconds is None else f"{1e3 * point.seconds:,.1f} ms"
            needed = "" if point.bytes is None else f", {point.bytes / 2**20:,.1f} MiB"
            print(f"{axis} {point.size:,}: {taken}{needed}", flush=True)
    plot(found, workdir / "growth.png")
    write_file(workdir / "table.md", reporting.to_markdown(table(found)) + "\n")
    print(f"\n{reporting.to_text(table(found))}", flush=True)
    rows = [
        evaluation.Row(f"{axis} {point.size}", "growth", "made up", name, float(value))
        for axis, points in found.items()
        for point in points
        for name, value in (("seconds", point.seconds), ("bytes", point.bytes))
        if value is not None
    ]
    return evaluation.Results(dataclasses.asdict(config), evaluation.environment(), tuple(rows))


if __name__ == "__main__":
    launch(run, Config)
