"""Measures how long every program takes until its first step is done.

    python docs/starts.py                    # all programs; writes docs/results/starts.csv
    python docs/starts.py meta_train build_tasks  # prints some of them

Each program runs in a temporary folder with tiny settings and ends as soon as its first step is done: an optimizer
step, or the first batch of images where such batches come first. Programs without steps run to their end. The same
command again finds what the first run left, above all its compiled programs; the shorter of two such runs counts. Times
are processor time of the process, user and system. The last column is time by the clock until the step begins, that is,
until its compiled program is ready; measure it on an idle machine.
"""

from __future__ import annotations

import csv
import importlib.abc
import importlib.machinery
import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "starts.csv"
GLYPHS = "--dataset=glyphs:greek_small"
ONE = f"{GLYPHS} --shots=1 --seeds=1 --steps=5"
HIERARCHY = "--tasks=../tasks/hierarchy.safetensors"
# What the programs below read is made once by the commands of PREPARED, in runs/NAME each.
PREPARED = {
    "photos": "build_glyphs --pairs=0 --dataset=glyphs:chess --photos=../photos/images",
    "tasks": "build_tasks --pairs=2000 --themes=8",
    "results": f"evaluate {ONE} --protocol=few_shot --learning_rate=0.3 --methods=tuner --save_prompts",
}
PROMPT = "../results/prompts/glyphs_greek_small-few_shot-1-coop.safetensors"
COMMANDS = {
    "quickstart": "--pairs=2000 --themes=8",
    "evaluate": f"{ONE} --protocol=few_shot --learning_rate=0.3 --methods=tuner",
    "evaluate --protocol=test_time": f"{GLYPHS} --domains=unseen --max_test_images=2 --learning_rate=0.005",
    "classify": "--images=../photos/images --clip=mini",
    "headroom": f"{GLYPHS} --seeds=1",
    "collapse": f"{ONE} --learning_rate=0.3 --report_steps=1,5",
    "compositional": "--seeds=1 --steps=5",
    "compositional --methods=coop": "--seeds=1 --steps=5",
    "continual": "--stream=glyphs:chess --tasks=3 --steps=5 --seeds=1 --methods=null_space",
    "meta_train": HIERARCHY,
    "meta_train --warmup_steps=0": HIERARCHY,
    "pretrain_clip": "",
    "build_tasks": "--pairs=2000 --themes=8",
    "embed_corpus": "--corpus=glyphs --pairs=2000",
    "zero_shot": GLYPHS,
    "predict": "--images=../photos/images --classes=king,queen",
    "check_data": "--dataset=folder:../photos/images",
    "export": f"--prompt={PROMPT} --classes_from=glyphs:greek_small",
    "report": "--results=../results",
}

HEADER = ("program", "first start, s", "second start, s", "the same until the step begins, by the clock, s")


def until_first_step(program: str, arguments: list[str]) -> None:
    """Runs a program in this process, and leaves it after its first step, with processor times in a file."""
    ready = []  # when compiled programs were ready

    def since_start() -> float:
        return time.monotonic() - float(os.environ["STARTED"])

    def compiled(event: str, seconds: float, **named: Any) -> None:
        del seconds, named
        if event.endswith("backend_compile_duration"):
            ready.append(since_start())

    def done(*arrays: Any) -> None:
        if "jax" in sys.modules:
            sys.modules["jax"].block_until_ready(arrays)
        times, begun = os.times(), ready[-1] if ready else since_start()
        Path(os.environ["FIRST_STEP"]).write_text(f"{times.user + times.system} {begun}")
        os._exit(0)

    def once(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **named: done(function(*given, **named))

    def learning(module: ModuleType, maker: str, name: str) -> None:
        """Makes the steps of a factory the last ones."""
        make = getattr(module, maker)

        def made(*given: Any, **named: Any) -> Any:
            steps = make(*given, **named)
            return steps._replace(**{name: once(getattr(steps, name))}) if name else once(steps)

        setattr(module, maker, made)

    def last(holder: Any, name: str) -> None:
        setattr(holder, name, once(getattr(holder, name)))

    marks = {
        "gram_jax.tuning.step": lambda module: learning(module, "make_tuning", "step"),
        "gram_jax.tuning.stream": lambda module: learning(module, "make_stream_tuning", "step"),
        "gram_jax.tuning.test_time": lambda module: learning(module, "make_test_time_tuning", ""),
        "gram_jax.meta.step": lambda module: last(module.MetaStep, "__call__"),
        "experiments.pretrain_clip.run": lambda module: last(module, "train_step"),
        "jax._src.monitoring": lambda module: module.register_event_duration_secs_listener(compiled),
    }
    if program in ("classify", "headroom") or (program == "compositional" and "--methods=coop" not in arguments):
        marks["gram_jax.evaluation.encoder"] = lambda module: last(module.Encoder, "_encode")
    if program in ("build_tasks", "embed_corpus", "zero_shot", "predict"):
        marks["gram_jax.runtime.progress"] = lambda module: last(module.Progress, "update")
    sys.meta_path.insert(0, _Marking(marks))
    sys.argv = [program, *arguments]
    try:
        runpy.run_module(f"experiments.{program}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
    done()


class _Marking(importlib.abc.MetaPathFinder):
    """Changes modules as soon as they are imported."""

    def __init__(self, marks: dict[str, Callable[[ModuleType], None]]):
        self._marks = marks

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in self._marks:
            return None
        mark, spec = self._marks.pop(name), importlib.util.find_spec(name)
        assert spec, name
        assert spec.loader, name
        execute = spec.loader.exec_module

        def executed(module: ModuleType) -> None:
            execute(module)
            mark(module)

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


def measure(command: str, folder: Path) -> tuple[float, float, float]:
    """Returns the seconds of a first and a second run, and those by the clock until the second takes its step."""
    (folder / "run").mkdir()
    program, *flags = command.split()
    found, clock = [], folder / "seconds"
    for _ in range(3):
        words = [*flags, *COMMANDS[command].split(), "--workdir=."]
        environment = os.environ | {"FIRST_STEP": str(clock), "PYTHONPATH": str(ROOT), "STARTED": f"{time.monotonic()}"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # Python keeps bytecode, as it does by default
        given = [sys.executable, __file__, "--child", program, *words]
        done = subprocess.run(given, cwd=folder / "run", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        found.append(tuple(map(float, clock.read_text().split())))
        clock.unlink()
    shutil.rmtree(folder / "run")
    return found[0][0], *map(min, zip(*found[1:], strict=True))


def main(names: list[str]) -> None:
    lines, whole = [], not names
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names = names or list(COMMANDS)
        read = " ".join(COMMANDS[name] for name in names)
        for name, text in PREPARED.items():
            if f"../{name}" not in read:
                continue
            (folder / name).mkdir(exist_ok=True)
            words = [sys.executable, "-m", *f"experiments.{text} --workdir=.".split()]
            subprocess.run(words, cwd=folder / name, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
        for command in names:
            lines.append((f"`{command}`", *(f"{seconds:.1f}" for seconds in measure(command, folder))))
            print(*lines[-1], flush=True)  # noqa: T201
    if whole:
        with RESULTS.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([HEADER, *lines])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        until_first_step(sys.argv[2], sys.argv[3:])
    else:
        main(sys.argv[1:])
