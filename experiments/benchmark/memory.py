"""The memory of a step, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from .sides import Side

_ANSWER = "measured: "


def measure(side: Side) -> dict[str, float | None]:
    """Runs a side once in this process; returns values, or None where the system does not report them.

    "peak_bytes" is the peak memory of the process, "step_bytes" the part that the step added, "flops" its operations.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _status("VmRSS")
    except OSError:
        before = None
    if side.count is None:
        flops = side.flops
        side.run()
    else:
        flops = side.count()
    peak = None if before is None else _status("VmHWM")
    return {"peak_bytes": peak, "step_bytes": None if before is None else peak - before, "flops": flops}


def _status(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024.0 * int(line.split()[1])


def measure_in_child(**settings: Any) -> dict[str, float | None] | str:
    """Returns the result of `measure` in a new process, or the reason for none; `settings` are those of `main`."""
    command = [sys.executable, "-m", f"{__package__}.memory", json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(_ANSWER)]
    if done.returncode == 0 and lines:
        return json.loads(lines[-1].removeprefix(_ANSWER))
    if done.returncode < 0:
        return f"its process was killed by signal {-done.returncode}"
    last = done.stderr.strip().splitlines()[-1:] or ["no message"]
    return f"its process ended with status {done.returncode}: {last[0]}"


def main(workload: str, side: str, folder: str, **sizes: Any) -> None:
    """Builds one side of one workload, runs it once and prints its memory; `sizes` are settings of `make_setup`."""
    from .inputs import make_setup
    from .workloads import builders

    builder = builders(workload, make_setup(folder=Path(folder), **sizes))[side]
    print(_ANSWER + json.dumps(measure(builder.build())), flush=True)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
