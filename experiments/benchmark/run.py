"""What a step takes: time, compilation, memory, operations; beside the way public PyTorch code does the same.

    python -m experiments.benchmark --clip_size=vit_b32
    python -m experiments.benchmark --workloads=coop,gram_exact_5,rules --repeats=7
    python -m experiments.benchmark --clip_size=mini --workloads=clustering --pairs=100000

Weights are random: they change no figure. A row is one workload. Where PyTorch is installed (the extra ``torch``), both
sides do the same step by turns in one process, PyTorch as the public code of the field does it (see
``_torch_workloads``), and losses must agree to 1e-4, or the benchmark stops. ``rules`` and ``image_rules`` show
what each exact shortcut brings to a CoOp and a VPT step, each against the one before.

Time is the median of --repeats turns of --steps steps; the first step of a turn, which fetches memory anew that the
other side gave back, counts only where it is the only one. Memory is that of a process of its own that does one step,
beyond what it held before (clip, inputs); the compiler's figure for our side, with clip and inputs, stands beside it.
Operations are those of matrix products, counted in the program and, for PyTorch, by its own counter: their ratio is the
speed-up to expect from two machines of equal efficiency. The ceiling is the product of two square float32 matrices,
measured by turns with the rest.

By the count of operations two cores take about two hours at vit_b32 and four at vit_b16, most of it UNIGRAM and the
clustering of a million pairs; choose --workloads, or leave out --memory, which does every step once more. mini takes
minutes. A side that needs more than --max_gib is left out, saying so; a workload that has taken --max_seconds begins no
further turn.

WORKDIR gets benchmark.jsonl, which grows by a line with each workload (the same command goes on behind a kill),
results.json, and table.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib.metadata
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from gram_jax import evaluation, runtime
from gram_jax import reporting as reporting_lib
from gram_jax.errors import InputError
from gram_jax.evaluation import Row
from gram_jax.io import absolute, write_file
from gram_jax.reporting import Table
from gram_jax.runtime.memory import GIB
from gram_jax.runtime.units import Units

from .._launch import at_least, positive, setting
from . import gauge as _gauge
from . import memory as _memory
from . import torch_workloads as _torch_workloads
from .workload_inputs import CLIP_SIZES, Setup, make_setup
from .workloads import OURS, TORCH, WORKLOADS

CEILING, RULES = "ceiling", ("rules", "image_rules")
LOSS_TOLERANCE, TOLERANCE = 1e-4, 1e-3  # of losses, and of the norms of gradients that are compared beside them
_NONE = "-"
Entry = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and how long."""

    clip_size: str = setting("vit_b32", "the clip, with random weights", choices=CLIP_SIZES)
    workloads: tuple[str, ...] = setting(tuple(WORKLOADS), f"rows of the table: {', '.join(WORKLOADS)}")
    repeats: int = setting(3, "turns of each side")
    steps: int = setting(3, "steps in a turn, the first of which is not counted where others follow")
    pairs: int = setting(1_000_000, "pairs that are clustered")
    max_gib: float = setting(16.0, "workloads that need more memory are left out, GiB")
    max_seconds: float = setting(600.0, "a workload begins no further turn after so many seconds")
    torch: bool = setting(True, "compare with PyTorch, where it is installed")
    memory: bool = setting(True, "measure memory in processes of their own, on the CPU")
    small: bool = setting(False, "tiny sizes and a tiny clip in place of --clip_size, for tests")

    def __post_init__(self) -> None:
        unknown = sorted(set(self.workloads) - set(WORKLOADS))
        if unknown or not self.workloads:
            raise InputError(f"--workloads={','.join(self.workloads)}: choose from {', '.join(WORKLOADS)}")
        at_least(self, 1, "repeats", "steps", "pairs")
        positive(self, "max_gib", "max_seconds")


def measure(config: Config, name: str, setup: Setup, compare: bool, update: Callable[[], None]) -> Entry:
    """Measures one workload.

    Args:
      config: the settings.
      name: the workload.
      setup: the clip and the sizes.
      compare: whether PyTorch takes part.
      update: called after each turn of all sides.

    Returns:
      JSON values: "workload", "title", "sides" (by name, each with "seconds" and what else is known), "ceiling"
      (operations a second, or None) and "notes", what was left out and why.

    Raises:
      ArithmeticError: the sides do not compute the same.
    """
    workload, notes = WORKLOADS[name], []
    entry: Entry = {"workload": name, "title": workload.title, "sides": {}, "ceiling": None, "notes": notes}
    limit = config.max_gib * GIB

    def too_large(side: str, needed: float | None) -> bool:
        if needed is None or needed <= limit:
            return False
        notes.append(f"{side}: left out, it needs about {needed / GIB:.3g} GiB, more than --max_gib={config.max_gib:g}")
        return True

    if too_large(OURS, workload.estimate(setup)):
        return entry
    problem = workload.problem(setup) if workload.problem else None
    sides, makers = {}, workload.sides(setup, problem)
    for label, make in makers.items():
        side = make()
        if not too_large(label, side.step_bytes):
            sides[label] = side
    if compare and list(makers) == [OURS] and problem is not None:
        estimate = _torch_workloads.graph_bytes(name, setup, problem)
        if not too_large(TORCH, estimate):
            sides[TORCH] = _torch_workloads.side(name, setup, problem)
    if not sides:
        return entry
    ceiling = _gauge.product(setup.sizes.product)
    turns = _gauge.by_turns(sides | {CEILING: ceiling}, config.repeats, config.steps, config.max_seconds, update)
    _check_equal(name, {label: turns.values[label] for label in sides})
    entry["ceiling"] = ceiling.flops / _gauge.median(turns.seconds[CEILING])
    for label, side in sides.items():
        entry["sides"][label] = {
            "seconds": turns.seconds[label],
            "values": turns.values[label],
            "compile_seconds": side.compile_seconds,
            "step_bytes": side.step_bytes,
            "flops": side.flops,
        }
    del sides, problem
    gc.collect()
    if config.memory and jax.default_backend() == "cpu" and name not in RULES:
        for label, found in entry["sides"].items():
            found |= _process_memory(config, name, label, setup, notes)
    return entry


def _process_memory(config: Config, name: str, side: str, setup: Setup, notes: list[str]) -> Entry:
    order = {"clip_size": config.clip_size, "small": config.small, "pairs": config.pairs, "folder": str(setup.folder)}
    found = _memory.in_child({"workload": name, "side": side, **order})
    if isinstance(found, str):
        notes.append(f"{side}: no memory, {found}")
        return {}
    known = {"process_step_bytes": found["step_bytes"], "process_peak_bytes": found["peak_bytes"]}
    return known | ({} if found["flops"] is None else {"flops": found["flops"]})


def _check_equal(name: str, values: Mapping[str, _gauge.Values]) -> None:
    (first, expected), *others = values.items()
    for label, found in others:
        loss, rest = (_gauge.disagreement(expected[part], found[part]) for part in (slice(0, 1), slice(1, None)))
        if loss > LOSS_TOLERANCE or rest > TOLERANCE:
            raise ArithmeticError(f"{name}: {first} arrives at {expected} and {label} at {found}: not the same step")


def rows(config: Config, entries: Sequence[Entry]) -> tuple[Row, ...]:
    """The measurements in long form: one for each workload, side and quantity."""
    size = "small" if config.small else config.clip_size
    found = []
    for entry in entries:
        before = None
        for label, side in entry["sides"].items():
            known = {"seconds": _gauge.median(side["seconds"])}
            names = ("compile_seconds", "step_bytes", "process_step_bytes", "process_peak_bytes", "flops")
            known |= {name: side[name] for name in names if side.get(name) is not None}
            if side.get("flops"):
                known["flops_per_second"] = side["flops"] / known["seconds"]
                known["ceiling_share"] = known["flops_per_second"] / entry["ceiling"]
            if entry["workload"] in RULES and before:
                known["speedup_over_previous"] = before / known["seconds"]
            before = known["seconds"]
            if label == OURS and TORCH in entry["sides"]:
                known["speedup"] = _gauge.median(entry["sides"][TORCH]["seconds"]) / known["seconds"]
            found += [Row(label, f"benchmark:{size}", entry["workload"], key, float(v)) for key, v in known.items()]
    return tuple(found)


def main_table(entries: Sequence[Entry]) -> Table:
    """A row for each workload, both sides beside each other."""
    header = (
        "workload",
        "ms",
        "PyTorch, ms",
        "times faster",
        "operations, PyTorch / ours",
        "compile, s",
        "memory, MiB",
        "by compiler, MiB",
        "PyTorch, MiB",
        "GFLOP/s",
        "of ceiling",
    )
    body = []
    for entry in entries:
        ours, torch = entry["sides"].get(OURS, {}), entry["sides"].get(TORCH, {})
        seconds, theirs = (_gauge.median(side["seconds"]) if side else None for side in (ours, torch))
        speed = _ratio(ours.get("flops"), seconds)
        body.append(
            (
                entry["title"],
                _cell(seconds, 1e3),
                _cell(theirs, 1e3),
                _cell(_ratio(theirs, seconds)),
                _cell(_ratio(torch.get("flops"), ours.get("flops"))),
                _cell(ours.get("compile_seconds")),
                _cell(ours.get("process_step_bytes"), 2**-20),
                _cell(ours.get("step_bytes"), 2**-20),
                _cell(torch.get("process_step_bytes"), 2**-20),
                _cell(speed, 1e-9),
                _cell(_ratio(speed, entry["ceiling"]), 100, " %"),
            )
        )
    return Table(header, tuple(body))


def rules_table(entry: Entry) -> Table:
    """A row for each shortcut, against the one before."""
    header = (entry["title"], "ms", "times faster", "GFLOP", "by compiler, MiB", "compile, s")
    body, before = [], None
    for label, side in entry["sides"].items():
        seconds = _gauge.median(side["seconds"])
        cells = (seconds, 1e3), (_ratio(before, seconds), 1), (side["flops"], 1e-9), (side["step_bytes"], 2**-20)
        body.append((label, *(_cell(*cell) for cell in cells), _cell(side["compile_seconds"])))
        before = seconds
    return Table(header, tuple(body))


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def _cell(value: float | None, scale: float = 1.0, unit: str = "") -> str:
    if value is None:
        return _NONE
    value *= scale
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}") + unit


def report(entries: Sequence[Entry], notes: Sequence[str], show: Callable[[reporting_lib.Table], str]) -> str:
    """The tables, and what was left out and why."""
    parts = []
    compared = [entry for entry in entries if entry["workload"] not in RULES and entry["sides"]]
    if compared:
        parts.append(show(main_table(compared)))
    parts += [show(rules_table(entry)) for entry in entries if entry["workload"] in RULES and entry["sides"]]
    lines = [*notes, *(f"{entry['title']}: {note}" for entry in entries for note in entry["notes"])]
    return "\n\n".join([*parts, *(["\n".join(lines)] if lines else [])]) + "\n"


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Measures every workload, one after the other, and keeps each as soon as it is done."""
    workdir = absolute(workdir)
    if "://" in os.fspath(workdir):
        raise InputError(f"--workdir={workdir}: images are written to a local folder and read again; give one")
    missing = _torch_workloads.missing() if config.torch else None
    compare = config.torch and missing is None
    device = jax.devices()[0]
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("workloads", "max_seconds")}
    versions = {"jax": jax.__version__, "pytorch": importlib.metadata.version("torch") if compare else None}
    units = Units(workdir / "benchmark.jsonl", settings | versions | {"device": device.device_kind})
    todo = [name for name in config.workloads if (name,) not in units]
    with (
        _no_compilation_cache(),
        jax.default_matmul_precision("highest"),  # float32 is float32 on accelerators too, as it is in PyTorch
        runtime.Progress(len(todo) * config.repeats, "benchmark", unit="turn") as progress,
    ):
        setup = make_setup(config.clip_size, config.small, config.pairs, Path(os.fspath(workdir)))
        for number, name in enumerate(todo, 1):
            progress.update(0, workload=name)
            entry = measure(config, name, setup, compare, progress.update)
            units.add((name,), entry)
            progress.update(number * config.repeats - progress.done)
            print(_line(entry), flush=True)
    entries = [units[name,] for name in config.workloads]
    sizes = ", ".join(f"{name} {value:,}" for name, value in dataclasses.asdict(setup.sizes).items())
    notes = [f"sizes: {sizes}", *([missing] if missing else [])]
    write_file(workdir / "table.md", report(entries, notes, reporting_lib.to_markdown))
    print(f"\n{report(entries, notes, reporting_lib.to_text)}", end="", flush=True)
    settings = dataclasses.asdict(config) | {"sizes": dataclasses.asdict(setup.sizes)}
    settings |= {"notes": {entry["workload"]: entry["notes"] for entry in entries}, "ceilings": ceilings(entries)}
    return evaluation.Results(settings, evaluation.environment(), rows(config, entries))


def ceilings(entries: Sequence[Entry]) -> dict[str, float]:
    """Operations a second of the product of two square matrices, beside each workload."""
    return {entry["workload"]: entry["ceiling"] for entry in entries if entry["ceiling"]}


def _line(entry: Entry) -> str:
    medians = {label: _gauge.median(side["seconds"]) for label, side in entry["sides"].items()}
    told = [f"{label} {1e3 * seconds:,.3g} ms" for label, seconds in medians.items()]
    return f"{entry['title']}: {', '.join([*told, *entry['notes']])}"


@contextlib.contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """Programs are compiled anew: with a cache, the time of compilation would be that of reading a file."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
