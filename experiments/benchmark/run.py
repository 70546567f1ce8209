"""Measures training steps: time, compilation, memory and operations, next to the same steps in PyTorch.

    python -m experiments.benchmark --clip_size=vit_b32
    python -m experiments.benchmark --workloads=coop,gram_exact_5,rules --repeats=7
    python -m experiments.benchmark --clip_size=mini --workloads=clustering --pairs=100000

Weights are random; they do not affect the costs. A row is one workload. If PyTorch is installed (the extra `torch`),
both sides compute the same step in turns in one process, PyTorch as public code of the field does (see
`torch_workloads`). Their losses must agree to 1e-4, otherwise the benchmark stops. The workloads `rules` and
`image_rules` show the gain of each exact shortcut in a CoOp and a VPT step, compared with the row before.

Time is the median over --repeats turns of --steps steps. The first step of a turn allocates memory and counts only if
it is the only one. Memory is measured in a separate process that computes one step, and excludes the clip and the
inputs; the compiler's number for our side includes both. Operations are those of matrix products, counted in the
program and, for PyTorch, by its own counter; their ratio is the expected speed-up on machines of equal efficiency. The
ceiling is the product of two square float32 matrices, measured in turns with the sides.

Two cores need about two hours at vit_b32, four at vit_b16 (mostly for UNIGRAM and clustering) and minutes at mini;
choose --workloads, or pass --nomemory, which saves one step of each side. A side that needs more than --max_gib is left
out with a note. After --max_seconds, a workload begins no further turn.

WORKDIR gets benchmark.jsonl (one line per workload; rerun the command to resume), results.json and table.md.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import jax

from gram_jax import evaluation, reporting, runtime
from gram_jax.errors import InputError, require_known
from gram_jax.io import absolute, is_remote, write_file
from gram_jax.runtime.memory import GIB
from gram_jax.runtime.units import Units

from .._launch import at_least, positive, setting
from . import memory, torch_workloads
from .inputs import CLIPS, Setup, make_setup
from .sides import Side, Values, compilation_cache, relative_difference, run_in_turns, square_product
from .tables import Entry, report, result_rows, summary
from .workloads import SHORTCUTS, WORKLOADS, builders

CEILING = "ceiling"
LOSS_TOLERANCE, TOLERANCE = 1e-4, 1e-3  # of losses, and of the other values, which are norms of gradients


@dataclasses.dataclass(frozen=True)
class Config:
    """The workloads, their sizes, and the limits of the measurements."""

    clip_size: str = setting("vit_b32", "size of the clip, whose weights are random", choices=tuple(CLIPS))
    workloads: tuple[str, ...] = setting(tuple(WORKLOADS), f"rows of the table: {', '.join(WORKLOADS)}")
    repeats: int = setting(3, "turns of each side")
    steps: int = setting(3, "steps of a turn; the first does not count if others follow")
    pairs: int = setting(1_000_000, "pairs to cluster")
    max_gib: float = setting(16.0, "workloads that need more memory are left out, GiB")
    max_seconds: float = setting(600.0, "a workload begins no further turn after this time, seconds")
    torch: bool = setting(True, "compare with PyTorch if it is installed")
    memory: bool = setting(True, "measure memory in separate processes (CPU only)")
    small: bool = setting(False, "tiny sizes and a tiny clip instead of --clip_size, for tests")

    def __post_init__(self) -> None:
        if not self.workloads:
            raise InputError(f"--workloads=: choose from {', '.join(WORKLOADS)}")
        for name in self.workloads:
            require_known("--workloads", name, WORKLOADS)
        at_least(self, 1, "repeats", "steps", "pairs")
        positive(self, "max_gib", "max_seconds")


def measure(config: Config, name: str, setup: Setup, compare: bool, update: Callable[[], None]) -> Entry:
    """Measures one workload, with PyTorch if `compare`; `update` is called after each turn of all sides.

    Returns JSON values: "workload", "title", "sides" (by name, each with "seconds" and its other quantities), "ceiling"
    (operations per second, or None) and "notes" (reasons for missing numbers). Raises ArithmeticError if the sides do
    not agree.
    """
    entry: Entry = {"workload": name, "title": WORKLOADS[name].title, "sides": {}, "ceiling": None, "notes": []}

    def fits(label: str, needed: float | None) -> bool:
        if not needed or needed <= config.max_gib * GIB:
            return True
        needs = f"it needs about {needed / GIB:.3g} GiB, more than --max_gib={config.max_gib:g}"
        entry["notes"].append(f"{label}: left out, {needs}")
        return False

    sides: dict[str, Side] = {}
    for label, builder in builders(name, setup, compare).items():
        if fits(label, builder.estimate):
            side = builder.build()
            if fits(label, side.step_bytes):
                sides[label] = side
    if not sides:
        return entry
    ceiling = square_product(setup.sizes.product)
    timed = sides | {CEILING: ceiling}
    seconds, values = run_in_turns(timed, config.repeats, config.steps, config.max_seconds, update)
    _check_agreement(name, {label: values[label] for label in sides})
    entry["ceiling"] = ceiling.flops / median(seconds[CEILING])
    for label, side in sides.items():
        quantities = {key: getattr(side, key) for key in ("compile_seconds", "step_bytes", "flops")}
        entry["sides"][label] = {"seconds": seconds[label], "values": values[label], **quantities}
    del sides, side, builder, timed
    gc.collect()
    if config.memory and jax.default_backend() == "cpu" and name not in SHORTCUTS:
        for label, side in entry["sides"].items():
            side |= _memory(config, name, label, setup, entry["notes"])
    return entry


def _memory(config: Config, name: str, side: str, setup: Setup, notes: list[str]) -> dict[str, float | None]:
    sizes = {"clip_size": config.clip_size, "small": config.small, "pairs": config.pairs}
    result = memory.measure_in_child(workload=name, side=side, folder=str(setup.folder), **sizes)
    if isinstance(result, str):
        notes.append(f"{side}: no memory, {result}")
        return {}
    quantities = {"process_step_bytes": result["step_bytes"], "process_peak_bytes": result["peak_bytes"]}
    return quantities if result["flops"] is None else quantities | {"flops": result["flops"]}


def _check_agreement(name: str, values: Mapping[str, Values]) -> None:
    (first, expected), *others = values.items()
    for label, given in others:
        loss = relative_difference(expected[:1], given[:1])
        if loss > LOSS_TOLERANCE or relative_difference(expected[1:], given[1:]) > TOLERANCE:
            raise ArithmeticError(f"{name}: {first} computes {expected} and {label} computes {given}")


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Measures every workload in turn, and keeps each result as soon as it is complete."""
    workdir = absolute(workdir)
    if is_remote(workdir):
        raise InputError(f"--workdir={workdir}: the benchmark reads images from disk; give a local folder")
    missing = torch_workloads.missing() if config.torch else None
    compare = config.torch and missing is None
    identity = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("workloads", "max_seconds")}
    identity |= {"jax": jax.__version__, "pytorch": importlib.metadata.version("torch") if compare else None}
    identity |= {"device": jax.devices()[0].device_kind}
    units = Units(workdir / "benchmark.jsonl", evaluation.measured_by(evaluation.environment()))
    found = {name: units.find((name,), identity) for name in config.workloads}
    todo = [name for name, entry in found.items() if entry is None]
    with (
        compilation_cache(None),  # with one, the time of compilation would be that of reading a file
        jax.default_matmul_precision("highest"),  # full float32 on accelerators too, as in PyTorch
        runtime.Progress(len(todo) * config.repeats, "benchmark", unit="turn") as progress,
    ):
        setup = make_setup(config.clip_size, config.small, config.pairs, Path(workdir))
        for number, name in enumerate(todo, 1):
            progress.update(0, workload=name)
            found[name] = units.add((name,), identity, measure(config, name, setup, compare, progress.update))["found"]
            progress.update(number * config.repeats - progress.done)
            print(summary(found[name]), flush=True)
    entries = list(found.values())
    sizes = dataclasses.asdict(setup.sizes)
    notes = [f"sizes: {', '.join(f'{name} {value:,}' for name, value in sizes.items())}"]
    notes += [missing] if missing else []
    write_file(workdir / "table.md", report(entries, notes, reporting.to_markdown))
    print(f"\n{report(entries, notes, reporting.to_text)}", end="", flush=True)
    settings = dataclasses.asdict(config) | {
        "sizes": sizes,
        "notes": {entry["workload"]: entry["notes"] for entry in entries},
        "ceilings": {entry["workload"]: entry["ceiling"] for entry in entries if entry["ceiling"]},
    }
    dataset = f"benchmark:{'small' if config.small else config.clip_size}"
    return evaluation.Results(settings, evaluation.environment(), result_rows(entries, dataset))
