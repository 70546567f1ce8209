"""The memory of a step, measured in a process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .gauge import Side

Found = dict[str, float | None]
_ANSWER = "measured: "


def peak(side: Side) -> Found:
    """Runs a side once in this process and watches its memory.

    Returns:
      "peak_bytes", the largest memory of the process; "step_bytes", how much of that came with the step; "flops", where
      the side can count them. None where the system does not say.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the largest memory so far is forgotten
        before = _status("VmRSS")
    except OSError:
        before = None
    if side.count is None:
        flops = side.flops
        side.run()
    else:
        flops = side.count()
    largest = None if before is None else _status("VmHWM")
    return {"peak_bytes": largest, "step_bytes": None if before is None else largest - before, "flops": flops}


def _status(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024.0 * int(line.split()[1])


def in_child(order: Mapping[str, Any]) -> Found | str:
    """What `peak` finds in a process of its own, or a text that says why it finds nothing.

    Args:
      order: the arguments of `main`.

    Returns:
      What `peak` returns, or the text.
    """
    command = [sys.executable, "-m", f"{__package__}.memory", json.dumps(order)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(_ANSWER)]
    if done.returncode == 0 and lines:
        return json.loads(lines[-1].removeprefix(_ANSWER))
    if done.returncode < 0:
        return f"its process was killed by signal {-done.returncode}"
    last = done.stderr.strip().splitlines()[-1:] or ["no message"]
    return f"its process ended with status {done.returncode}: {last[0]}"


def main(workload: str, side: str, clip_size: str, small: bool, pairs: int, folder: str) -> None:
    """Builds one side of one workload, runs it once and prints what memory it took."""
    from . import torch_workloads as _torch_workloads
    from .workload_inputs import make_setup
    from .workloads import TORCH, WORKLOADS

    setup = make_setup(clip_size, small, pairs, Path(folder))
    made = WORKLOADS[workload]
    problem = made.problem(setup) if made.problem else None
    if side == TORCH:
        found = peak(_torch_workloads.side(workload, setup, problem))
    else:
        found = peak(made.sides(setup, problem)[side]())
    print(_ANSWER + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
