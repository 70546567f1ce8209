"""Measures every workload of the benchmark in turn."""

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
from gram_jax.errors import InputError
from gram_jax.io import absolute, is_remote, write_file
from gram_jax.runtime.memory import GIB
from gram_jax.runtime.units import Units

from . import memory, torch_workloads
from .config import Config
from .inputs import Setup, make_setup
from .sides import Side, Values, compilation_cache, relative_difference, run_in_turns, square_product
from .tables import Entry, report, result_rows, summary
from .workloads import SHORTCUTS, WORKLOADS, builders

CEILING = "ceiling"
LOSS_TOLERANCE, TOLERANCE = 1e-4, 1e-3  # of losses, and of the other values, which are norms of gradients


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
    result = memory.measure_in_child(workload=name, side=side, folder=str(setup.folder), **_sizes(config))
    if isinstance(result, str):
        notes.append(f"{side}: no memory, {result}")
        return {}
    quantities = {"process_step_bytes": result["step_bytes"], "process_peak_bytes": result["peak_bytes"]}
    return quantities if result["flops"] is None else quantities | {"flops": result["flops"]}


def _sizes(config: Config) -> dict[str, Any]:
    """Returns the settings of `make_setup`, without the folder."""
    return {name: getattr(config, name) for name in ("clip_size", "small", "pairs", "many_classes", "unroll")}


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
        setup = make_setup(folder=Path(workdir), **_sizes(config))
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
