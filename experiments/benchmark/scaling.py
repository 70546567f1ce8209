"""Measures how meta-training scales over devices and processes, with a constant number of tasks per device.

    python -m experiments.benchmark.scaling
    python -m experiments.benchmark.scaling --clip=openai/clip-vit-base-patch16 --steps=50

Every case runs in new processes on the CPU of this host. The devices share its cores, so the measure of scaling is the
processor time per task: its growth is the overhead of devices and processes. On an otherwise idle host, the time per
step, with as many devices as cores, shows the same. The bytes of the all-reduce are read from the compiled program;
each device sends about as many, whatever the number of devices.

A task has 8 classes with 2 shots of random features; costs depend on shapes only. With the mini CLIP on two idle cores,
a case takes 10 seconds (mostly compilation) and 1 GiB per process. Writes WORKDIR/results.json.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from typing import Any

import lazy_loader
import numpy as np

import gram_jax as gram
from gram_jax import evaluation, runtime, tasks, tuning

from .._launch import at_least, launch, setting

# Loaded when used, so that --help answers at once.
jax = lazy_loader.load("jax")
optax = lazy_loader.load("optax")

WAYS, SHOTS, PAIRS = 8, 2, 192
RANK = 8  # of the regulator
METRICS = ("step_seconds", "cpu_seconds_a_task", "all_reduce_bytes")
NAMES = (
    "alpha", "beta", "gamma", "delta", "one", "two", "three", "four", "left arrow", "right arrow", "up arrow",
    "down arrow", "king", "queen", "rook", "pawn",
)  # fmt: skip
_ALL_REDUCE = re.compile(r"= (\(?[^=]*?) all-reduce(?:-start)?\(")
_WORK = f"import sys; from {__package__}.scaling import work; work(*sys.argv[1:])"


@dataclasses.dataclass(frozen=True)
class Config:
    """The cases."""

    clip: str = setting("mini", 'folder, file, hub name, OpenCLIP MODEL:TAG, or "mini"')
    devices: tuple[int, ...] = setting((1, 2, 4, 8), "cases with one process: numbers of devices")
    processes: tuple[int, ...] = setting((2, 4), "cases with one device per process: numbers of processes")
    tasks: int = setting(2, "tasks per device")
    inner_steps: int = setting(3, "gradient steps on the support")
    steps: int = setting(20, "measured steps")

    def __post_init__(self) -> None:
        at_least(self, 1, "devices", "processes", "tasks", "inner_steps", "steps")


def all_reduce_bytes(program: str) -> int:
    """Returns the bytes that a device passes to the all-reduces of a compiled program, given as text.

    Example:
      >>> all_reduce_bytes("%a = (f32[4,16]{1,0}, f32[]) all-reduce(%b, %c), channel_id=1")
      260
    """
    total = 0
    for dtype, sizes in re.findall(r"([a-z]+\d+)\[([\d,]*)\]", " ".join(_ALL_REDUCE.findall(program))):
        total += math.prod(int(size) for size in sizes.split(",") if size) * int(dtype.lstrip("bfsu")) // 8
    return total


def work(case: str, count: str, number: str, address: str) -> None:
    """Runs one of `count` processes of a case and prints its measurements as JSON."""
    values = json.loads(case).items()
    config = Config(**{name: tuple(value) if isinstance(value, list) else value for name, value in values})
    if int(count) > 1:
        runtime.connect(address, int(count), int(number))
    clip = gram.load_clip(config.clip)
    tuner, regulator = gram.tuners.coop(init_text="a photo of a"), gram.regulators.gated_low_rank(rank=RANK)
    features = np.random.default_rng(0).standard_normal((2, PAIRS, clip.config.embed_dim)).astype(np.float32)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    hierarchy = tasks.from_groups(["all"] * PAIRS, list(NAMES) * (PAIRS // len(NAMES)), *features)
    episodes = tasks.make_episodes(hierarchy, clip, tasks.EpisodeConfig(ways=WAYS, shots=SHOTS))
    settings = {"steps": config.inner_steps, "gradient": "first_order", "devices": runtime.all_devices()}
    step = gram.meta.make_meta_step(tuning.classification_loss(tuner), regulator, optax.adam(1e-3), **settings)
    prompt = tuner.init(jax.random.key(0), clip, None)
    state = step.init(gram.meta.init_meta(prompt, regulator.init(jax.random.key(1), prompt), 0.3))
    frozen = step.place(clip.replace(tokenizer=None, transform=None))
    total = config.tasks * step.devices
    own = runtime.own_rows(step.sharding, total)

    def batch(index: int) -> Any:
        drawn = episodes.batch(0, index, total, 1.0, lambda rows: hierarchy.image_features[rows], own)
        return runtime.global_arrays(step.sharding, drawn, total)

    program = step.update.lower(state, frozen, batch(0)).compile()
    taken = []
    for index in range(config.steps + 1):
        tasks_of_step, before = batch(index), (time.monotonic(), time.process_time())
        state, _ = jax.block_until_ready(program(state, frozen, tasks_of_step))
        taken.append(np.subtract((time.monotonic(), time.process_time()), before))
    seconds, cpu = np.median(taken[1:], axis=0).tolist()
    measured = {"step_seconds": seconds, "cpu_seconds": cpu, "tasks": total}
    print(json.dumps(measured | {"all_reduce_bytes": all_reduce_bytes(program.as_text())}))
    runtime.barrier("measured")


def measure(config: Config, processes: int, devices: int) -> dict[str, float]:
    """Runs one case and returns the METRICS over all its processes."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{trial.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-c", _WORK, json.dumps(dataclasses.asdict(config)), str(processes)]
    settings = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([*command, str(number), address], **settings) for number in range(processes)]
    outputs = [process.communicate() for process in started]
    for process, (_, errors) in zip(started, outputs, strict=True):
        if process.returncode:
            raise RuntimeError(f"{processes} x {devices} devices: a process ended with {process.returncode}: {errors}")
    measured = [json.loads(printed.splitlines()[-1]) for printed, _ in outputs]
    return {
        "step_seconds": max(each["step_seconds"] for each in measured),
        "cpu_seconds_a_task": sum(each["cpu_seconds"] for each in measured) / measured[0]["tasks"],
        "all_reduce_bytes": measured[0]["all_reduce_bytes"],
    }


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Measures the cases one after the other."""
    del workdir
    rows = []
    for processes, devices in [(1, n) for n in config.devices] + [(n, 1) for n in config.processes]:
        measured = measure(config, processes, devices)
        name = f"{processes} x {devices}"
        rows += [evaluation.Row(name, "scaling", "made up", metric, float(measured[metric])) for metric in METRICS]
        print(
            f"{name} devices, {config.tasks * processes * devices} tasks: {1000 * measured['step_seconds']:.1f} ms per "
            f"step, {1000 * measured['cpu_seconds_a_task']:.1f} ms of processor time per task, all-reduce of "
            f"{measured['all_reduce_bytes']:,} bytes",
            flush=True,
        )
    return evaluation.Results(dataclasses.asdict(config), evaluation.environment(), tuple(rows))


if __name__ == "__main__":
    launch(run, Config)
