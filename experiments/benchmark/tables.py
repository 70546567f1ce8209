"""The measurements of the benchmark as rows of results and as tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from gram_jax.evaluation import Row
from gram_jax.reporting import Table

from .workloads import FRUGAL, OURS, SHORTCUTS, TORCH

Entry = dict[str, Any]  # a workload's measurements, see `run.measure`
_QUANTITIES = ("compile_seconds", "step_bytes", "process_step_bytes", "process_peak_bytes", "flops")


def result_rows(entries: Sequence[Entry], dataset: str) -> tuple[Row, ...]:
    """Returns the measurements in long form: one row per workload, side and quantity."""
    rows = []
    for entry in entries:
        before = None
        for label, side in entry["sides"].items():
            seconds = median(side["seconds"])
            values = {"seconds": seconds} | {name: side[name] for name in _QUANTITIES if side.get(name) is not None}
            if side.get("flops"):
                values["flops_per_second"] = side["flops"] / seconds
                values["ceiling_share"] = values["flops_per_second"] / entry["ceiling"]
            if entry["workload"] in SHORTCUTS and before:
                values["speedup_over_previous"] = before / seconds
            for other, name in ((TORCH, "speedup"), (FRUGAL, "speedup_over_frugal")):
                if label == OURS and other in entry["sides"]:
                    values[name] = median(entry["sides"][other]["seconds"]) / seconds
            before = seconds
            rows += [Row(label, dataset, entry["workload"], name, float(value)) for name, value in values.items()]
    return tuple(rows)


def main_table(entries: Sequence[Entry]) -> Table:
    """Returns a table with a row per workload and both sides next to each other."""
    rows = []
    for entry in entries:
        ours, torch, frugal = (entry["sides"].get(name, {}) for name in (OURS, TORCH, FRUGAL))
        seconds, torch_seconds, frugal_seconds = (
            median(side["seconds"]) if side else None for side in (ours, torch, frugal)
        )
        speed = _ratio(ours.get("flops"), seconds)
        rows.append(
            {
                "workload": entry["title"],
                "ms": _cell(seconds, 1e3),
                "PyTorch, ms": _cell(torch_seconds, 1e3),
                "times faster": _cell(_ratio(torch_seconds, seconds)),
                "operations, PyTorch / ours": _cell(_ratio(torch.get("flops"), ours.get("flops"))),
                "frugal PyTorch, ms": _cell(frugal_seconds, 1e3),
                "times faster than frugal": _cell(_ratio(frugal_seconds, seconds)),
                "operations, frugal / ours": _cell(_ratio(frugal.get("flops"), ours.get("flops"))),
                "compile, s": _cell(ours.get("compile_seconds")),
                "memory, MiB": _cell(ours.get("process_step_bytes"), 2**-20),
                "by compiler, MiB": _cell(ours.get("step_bytes"), 2**-20),
                "PyTorch, MiB": _cell(torch.get("process_step_bytes"), 2**-20),
                "GFLOP/s": _cell(speed, 1e-9),
                "of ceiling": _cell(_ratio(speed, entry["ceiling"]), 100, " %"),
            }
        )
    return table_of(rows)


def shortcuts_table(entry: Entry) -> Table:
    """Returns a table with a row per shortcut, compared with the row before."""
    rows, before = [], None
    for label, side in entry["sides"].items():
        seconds = median(side["seconds"])
        rows.append(
            {
                entry["title"]: label,
                "ms": _cell(seconds, 1e3),
                "times faster": _cell(_ratio(before, seconds)),
                "GFLOP": _cell(side["flops"], 1e-9),
                "by compiler, MiB": _cell(side["step_bytes"], 2**-20),
                "compile, s": _cell(side["compile_seconds"]),
            }
        )
        before = seconds
    return table_of(rows)


def report(entries: Sequence[Entry], notes: Sequence[str], show: Callable[[Table], str]) -> str:
    """Returns all tables and notes; `show` formats a table."""
    measured = [entry for entry in entries if entry["sides"]]
    compared = [entry for entry in measured if entry["workload"] not in SHORTCUTS]
    parts = [show(main_table(compared))] if compared else []
    parts += [show(shortcuts_table(entry)) for entry in measured if entry["workload"] in SHORTCUTS]
    lines = [*notes, *(f"{entry['title']}: {note}" for entry in entries for note in entry["notes"])]
    return "\n\n".join([*parts, *(["\n".join(lines)] if lines else [])]) + "\n"


def summary(entry: Entry) -> str:
    """Returns one line with the times of a workload and its notes."""
    times = [f"{label} {1e3 * median(side['seconds']):,.3g} ms" for label, side in entry["sides"].items()]
    return f"{entry['title']}: {', '.join([*times, *entry['notes']])}"


def table_of(rows: Sequence[dict[str, str]]) -> Table:
    """Returns a table of rows that map its columns to cells."""
    return Table(tuple(rows[0]), tuple(tuple(row.values()) for row in rows))


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def _cell(value: float | None, scale: float = 1.0, unit: str = "") -> str:
    if value is None:
        return "-"
    value *= scale
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}") + unit
