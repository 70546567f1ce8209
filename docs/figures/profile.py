"""Measures and draws where the time goes: a CoOp step, a meta step, and quickstart as a whole.

    python docs/figures/profile.py steps  # writes docs/results/profile_steps.csv
    python docs/figures/profile.py quickstart --seeds=1,2   # writes docs/results/profile_quickstart.csv
    python docs/figures/profile.py             # draws docs/figures/profile.png from both

Steps are those of experiments.benchmark.growth: the mini CLIP's size, 100 classes and 32 images, or 8 tasks of 5
classes. Of each operation of the compiled program the shortest of five runs counts. The stages of quickstart are
seconds of processor time of all threads, with compilation; the last one ends when the report is written.
"""

from __future__ import annotations

import collections
import csv
import itertools
import os
import re
import runpy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999933", "#6b6b6b")
_PARTS = (
    ("matrix products", re.compile(r"dot|ynn_fusion|gemm|convolution")),
    ("copies and transpositions", re.compile(r"copy|transpose|concatenate|slice|pad|broadcast|bitcast")),
    ("elementwise, norms, softmax", re.compile(r"fusion|reduce|add|multiply|exp|divide|tanh|select|compare")),
)
_CONTAINERS = re.compile(r"while|call|conditional|ThunkExecutor|Pjit|[$]|CommonPjRt|Tfrt|Run|Xla")


def operations(run: Callable[[], object]) -> dict[str, float]:
    """Returns seconds by part of a step, from the profiler's record of every operation."""
    import jax

    shortest: dict[str, float] = {}
    for _ in range(5):
        taken: collections.Counter[str] = collections.Counter()
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                run()
            (file,) = Path(folder).rglob("*.xplane.pb")
            for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
                for line in plane.lines:
                    if line.name != "python":
                        for event in line.events:
                            if not _CONTAINERS.match(event.name):
                                taken[event.name] += event.duration_ns / 1e9
        shortest = {name: min(seconds, shortest.get(name, seconds)) for name, seconds in taken.items()}
    parts = dict.fromkeys([name for name, _ in _PARTS], 0.0) | {"other": 0.0}
    for name, seconds in shortest.items():
        parts[next((part for part, pattern in _PARTS if pattern.search(name)), "other")] += seconds
    return parts


def measure_steps() -> None:
    """Writes the parts of the two steps."""
    from experiments.benchmark import growth, inputs
    from experiments.benchmark.workloads import meta_step, tuning_step
    from gram_jax import runtime

    runtime.compile_quickly()
    setup = inputs.Setup(inputs.random_clip("mini"), inputs.Sizes(), Path(tempfile.gettempdir()))
    coop = growth.with_random_features(setup, inputs.one_batch("coop", setup, setup.sizes.batch, setup.sizes.classes))
    gram = growth.with_random_features(setup, inputs.episodic("coop", 3, "first_order", setup))
    lines = []
    for name, side in (("CoOp step", tuning_step(setup, coop)), ("meta step", meta_step(setup, gram))):
        side.run()
        lines += [(name, part, f"{1e3 * seconds:.2f}") for part, seconds in operations(side.run).items()]
    write("profile_steps", ("step", "part", "ms"), lines)


def measure_quickstart(arguments: list[str]) -> None:
    """Runs quickstart and writes the processor time of its stages."""
    import builtins

    def spent() -> float:
        times = os.times()
        return times.user + times.system

    stages, shown = [("start", 0.0)], builtins.print

    def told(*values: object, **options: object) -> None:
        if values and (stage := re.match(r"\n\[ *\d+ s\] (.*)", str(values[0]))):
            stages.append((stage[1], spent()))
        shown(*values, **options)

    builtins.print, sys.argv = told, ["quickstart", *arguments]
    try:
        runpy.run_module("experiments.quickstart", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
    finally:
        builtins.print = shown
    lines = [(name, f"{until - since:.1f}") for (name, since), (_, until) in itertools.pairwise(stages)]
    write("profile_quickstart", ("stage", "s"), lines)


def write(name: str, header: tuple[str, ...], lines: list[tuple[str, ...]]) -> None:
    with (RESULTS / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *lines])


def read(name: str) -> list[list[str]]:
    with (RESULTS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def draw() -> None:
    """Draws one bar per step and one for quickstart, as shares of their time."""
    from matplotlib.figure import Figure

    bars = collections.defaultdict(list)
    for step, part, milliseconds in read("profile_steps"):
        bars[step].append((part, float(milliseconds), "ms"))
    bars["quickstart"] = [(stage, float(seconds), "s") for stage, seconds in read("profile_quickstart")]
    figure = Figure(figsize=(9.0, 6.0), layout="constrained")
    for axis, (name, parts) in zip(figure.subplots(len(bars), 1), bars.items(), strict=True):
        total, left, unit = sum(value for _, value, _ in parts), 0.0, parts[0][2]
        for color, (part, value, _) in zip(COLORS * 3, parts, strict=False):
            axis.barh([0], [value], left=left, color=color, label=f"{part}: {value:.3g} {unit}")
            left += value
        axis.set(yticks=[], xlim=(0, total), xlabel=unit, title=f"{name}, {total:.3g} {unit}")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, frameon=False)
    figure.savefig(HERE / "profile.png", dpi=150)


if __name__ == "__main__":
    if sys.argv[1:2] == ["steps"]:
        measure_steps()
    elif sys.argv[1:2] == ["quickstart"]:
        measure_quickstart(sys.argv[2:])
    else:
        draw()
