"""Programs in several processes on this machine, which meet on loopback."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def start(experiment, workdir, *flags, processes=1, devices=1, own=None, cache=None):
    """Types a command in every process; each has so many devices, and flags of its own. Compiled code is cached."""
    address = f"127.0.0.1:{free_port()}"
    xla = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla}
    if cache is not None:
        environment |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    started = []
    for number in range(processes):
        command = [sys.executable, "-m", f"experiments.{experiment}", f"--workdir={workdir}", *flags]
        if processes > 1:
            command += ["--distributed", f"--coordinator_address={address}"]
            command += [f"--num_processes={processes}", f"--process_id={number}", *(own[number] if own else ())]
        started.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    return started


def finish(started, timeout=900):
    """Waits for processes; what each printed."""
    try:
        said = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, said, strict=True):
        assert process.returncode == 0, errors
    return [printed for printed, _ in said]
