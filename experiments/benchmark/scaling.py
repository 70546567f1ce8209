"""How meta-training scales: a step on more and more devices and processes, each with as many tasks as before.

    python -m experiments.benchmark.scaling
    python -m experiments.benchmark.scaling --clip=openai/clip-vit-base-patch16 --steps=50

Every case runs in processes of its own, on the CPU of this host, whose cores are taken for several devices: so devices
share cores, and what tells of scaling is the time of the processor for one task, whose growth is what devices and
processes add. On a host of its own the time of a step, over as many devices as it has cores, tells the same. Bytes of
the all-reduce are read from the compiled program; each device sends about as many, whatever the number of devices.

Tasks are of 8 classes, 2 shots, on made-up features: a step costs what its shapes say. A case takes 10 seconds and
1 GiB a process with the mini CLIP on two idle cores, compilation above all. Writes WORKDIR/results.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np

from gram_jax import evaluation, runtime
from gram_jax import tuning as tuning_lib

from .._launch import at_least, launch, setting

WAYS, SHOTS, PAIRS = 8, 2, 192
RANK = 8  # of the regulator
METRICS = ("step_seconds", "cpu_seconds_a_task", "all_reduce_bytes")
_ALL_REDUCE = re.compile(r"= (\(?[^=]*?) all-reduce(?:-start)?\(")
_WORK = f"import sys; from {__package__}.scaling import work; work(*sys.argv[1:])"


@dataclasses.dataclass(frozen=True)
class Config:
    """The cases."""

    clip: str = setting("mini", 'a folder, a hub name, or "mini"')
    devices: tuple[int, ...] = setting((1, 2, 4, 8), "numbers of devices of one process")
    processes: tuple[int, ...] = setting((2, 4), "numbers of processes of one device")
    tasks: int = setting(2, "tasks of a device")
    inner_steps: int = setting(3, "gradient steps on the support")
    steps: int = setting(20, "steps that are measured")

    def __post_init__(self) -> None:
        at_least(self, 1, "devices", "processes", "tasks", "inner_steps", "steps")


def all_reduce_bytes(program: str) -> int:
    """The bytes that a device puts into the all-reduces of a compiled program.

    Args:
      program: its text (`compiled.as_text()`).

    Returns:
      The size of all operands.

    Example:
      >>> all_reduce_bytes("%a = (f32[4,16]{1,0}, f32[]) all-reduce(%b, %c), channel_id=1")
      260
    """
    total = 0
    for shapes in _ALL_REDUCE.findall(program):
        for kind, sizes in re.findall(r"([a-z]+\d+)\[([\d,]*)\]", shapes):
            total += int(np.prod([int(size) for size in sizes.split(",") if size])) * int(kind.lstrip("bfsu")) // 8
    return total


def work(settings: str, count: str, number: str, address: str) -> None:
    """One process of a case: prints, as JSON, what was measured."""
    given = json.loads(settings).items()
    config = Config(**{name: tuple(value) if isinstance(value, list) else value for name, value in given})
    if int(count) > 1:
        runtime.connect(address, int(count), int(number))
    import jax
    import optax

    import gram_jax as gram
    from gram_jax import meta, regulators, tasks, tuners

    clip = gram.load_clip(config.clip)
    tuner, regulator = tuners.coop(init_text="a photo of a"), regulators.gated_low_rank(rank=RANK)
    features = np.random.default_rng(0).standard_normal((2, PAIRS, clip.config.embed_dim)).astype(np.float32)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    names = ["alpha", "beta", "gamma", "delta", "one", "two", "three", "four"]
    names += ["left arrow", "right arrow", "up arrow", "down arrow", "king", "queen", "rook", "pawn"]
    hierarchy = tasks.from_groups(["all"] * PAIRS, names * (PAIRS // len(names)), *features)
    episodes = tasks.make_episodes(hierarchy, clip, ways=WAYS, shots=SHOTS, cross_ways=WAYS)
    step = meta.make_meta_step(
        tuning_lib.classification_loss(tuner),
        regulator,
        optax.adam(1e-3),
        steps=config.inner_steps,
        gradient="first_order",
        devices=runtime.all_devices(),
    )
    prompt = tuner.init(jax.random.key(0), clip, None)
    state = step.init(meta.init_meta(prompt, regulator.init(jax.random.key(1), prompt), 0.3))
    frozen = step.place(clip.replace(tokenizer=None, transform=None))
    every = config.tasks * step.devices
    own = runtime.own_rows(step.sharding, every)

    def batch(index: int) -> Any:
        drawn = episodes.batch(0, index, every, 1.0, lambda rows: hierarchy.image_features[rows], own)
        return runtime.global_arrays(step.sharding, drawn, every)

    program = step.update.lower(state, frozen, batch(0)).compile()
    seconds, cpu = [], []
    for index in range(config.steps + 1):
        tasks_of_step = batch(index)
        clock, processor = time.monotonic(), time.process_time()
        state, metrics = program(state, frozen, tasks_of_step)
        jax.block_until_ready((state, metrics))
        seconds.append(time.monotonic() - clock)
        cpu.append(time.process_time() - processor)
    found = {"step_seconds": float(np.median(seconds[1:])), "cpu_seconds": float(np.median(cpu[1:]))}
    print(json.dumps(found | {"all_reduce_bytes": all_reduce_bytes(program.as_text()), "tasks": every}))
    runtime.barrier("measured")


def measure(config: Config, processes: int, devices: int) -> dict[str, float]:
    """One case: the METRICS, of all processes together."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{trial.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    settings = json.dumps(dataclasses.asdict(config))
    commands = [
        [sys.executable, "-c", _WORK, settings, str(processes), str(number), address] for number in range(processes)
    ]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    said = [process.communicate() for process in started]
    for process, (_, errors) in zip(started, said, strict=True):
        if process.returncode:
            raise RuntimeError(
                f"a process of {processes} x {devices} devices ended with {process.returncode}: {errors}"
            )
    found = [json.loads(printed.splitlines()[-1]) for printed, _ in said]
    return {
        "step_seconds": max(each["step_seconds"] for each in found),
        "cpu_seconds_a_task": sum(each["cpu_seconds"] for each in found) / found[0]["tasks"],
        "all_reduce_bytes": found[0]["all_reduce_bytes"],
    }


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Measures the cases one after the other."""
    del workdir
    rows = []
    for processes, devices in [(1, n) for n in config.devices] + [(n, 1) for n in config.processes]:
        found = measure(config, processes, devices)
        name = f"{processes} x {devices}"
        rows += [evaluation.Row(name, "scaling", "made up", metric, float(found[metric])) for metric in METRICS]
        print(
            f"{name} devices, {config.tasks * processes * devices} tasks: {1000 * found['step_seconds']:.1f} ms a "
            f"step, {1000 * found['cpu_seconds_a_task']:.1f} ms of processor a task, all-reduce of "
            f"{found['all_reduce_bytes']:,} bytes",
            flush=True,
        )
    return evaluation.Results(dataclasses.asdict(config), evaluation.environment(), tuple(rows))


if __name__ == "__main__":
    launch(run, Config)
