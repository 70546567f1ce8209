"""Checkpoints in processes of their own: damaged files, full disks, other devices, kills, SIGTERM."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gram_jax.runtime import Checkpoints
from tests.unit.runtime.test_checkpoints import CONFIG, make_state, steps_in, write


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_a_byte(folder):
    path = largest_file(folder)  # array data: Orbax alone reads the changed values without an error
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(bytes(data))


def truncate_meta(folder):
    (folder / "meta" / "metadata").write_text('{"config":')


def remove_data(folder):
    largest_file(folder).unlink()


# What Orbax leaves behind after a failed read (threads, coroutines) complains at odd times: a process of its own.
RESTORE_DAMAGED = """
    import json, pathlib, sys
    from gram_jax.runtime import CheckpointError, Checkpoints
    from tests.unit.runtime.test_checkpoints import CONFIG, assert_states_equal, make_state
    found = {}
    for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
        with Checkpoints(folder, CONFIG) as checkpoints:
            try:
                step, state = checkpoints.restore(make_state(0))
            except CheckpointError as error:
                found[folder.name] = str(error)
                continue
            assert_states_equal(state, make_state(step))
            checkpoints.save(2, make_state(2))
        with Checkpoints(folder, CONFIG) as checkpoints:
            again = checkpoints.restore(make_state(0))
            assert_states_equal(again.state, make_state(again.step))
        found[folder.name] = [step, again.step]
    print(json.dumps(found))
"""


DAMAGES = [flip_a_byte, truncate_meta, remove_data]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    root = tmp_path_factory.mktemp("damaged")
    for damage in DAMAGES:
        write(root / damage.__name__, [1, 2])
        damage(root / damage.__name__ / "2")
    write(root / "everything", [1, 2])
    flip_a_byte(root / "everything" / "1")
    flip_a_byte(root / "everything" / "2")
    done = run_python(RESTORE_DAMAGED, str(root), PYTHONPATH=str(Path(__file__).parents[2]))
    assert done.returncode == 0, done.stderr[-2000:]
    return root, json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("name", [damage.__name__ for damage in DAMAGES])
def test_damaged_latest_falls_back_and_can_be_written_again(damaged, name):
    root, found, log = damaged
    assert found[name] == [1, 2]
    assert f"damaged checkpoint in {root / name}, trying the previous one: step 2" in log
    assert (root / name / "damaged-2").is_dir()


def test_everything_damaged_is_an_error(damaged):
    message = damaged[1]["everything"]
    assert re.search(r"everything is damaged.*step 2.*checksum.*step 1.*checksum", message)


FULL_DISK = """
    import resource, sys
    import numpy as np
    from gram_jax.runtime import CheckpointError, Checkpoints
    from tests.unit.runtime.test_checkpoints import CONFIG, assert_states_equal, make_state
    folder, large = sys.argv[1], make_state(2) | {"weights": np.random.default_rng(0).normal(size=(500, 64))}
    for when in ("wait", "next save", "end"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
        try:
            with Checkpoints(folder, CONFIG) as checkpoints:
                checkpoints.save(2, large)
                if when == "wait":
                    checkpoints.wait()
                if when == "next save":
                    checkpoints.save(3, large)
        except CheckpointError as error:
            print(when, error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with Checkpoints(folder, CONFIG) as checkpoints:  # there is room again
        assert_states_equal(checkpoints.restore(make_state(0)).state, make_state(1))
        checkpoints.save(2, make_state(2))
    with Checkpoints(folder, CONFIG) as checkpoints:
        print(checkpoints.last_good())
"""


def test_a_full_disk_is_told_and_the_checkpoints_before_stay(tmp_path):
    write(tmp_path, [1])
    done = run_python(FULL_DISK, str(tmp_path), PYTHONPATH=str(Path(__file__).parents[2]))
    assert done.returncode == 0, done.stderr[-2000:]
    *told, last = done.stdout.splitlines()
    assert [line.partition(" a checkpoint cannot be written to ")[0] for line in told] == ["wait", "next save", "end"]
    assert all("File too large" in line and "kept" in line for line in told)
    assert last == f"the last good checkpoint is step 2 in {tmp_path}"


def test_a_step_may_be_damaged_twice(tmp_path):
    write(tmp_path, [1])
    for name in ("damaged-2", "damaged-2-2"):
        write(tmp_path, [2])
        truncate_meta(tmp_path / "2")
        with Checkpoints(tmp_path, CONFIG) as checkpoints:
            assert checkpoints.restore(make_state(0)).step == 1
        assert (tmp_path / name / "meta").is_dir()


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_restores_on_another_number_of_devices(tmp_path):
    write(tmp_path, [1])
    code = """
        import sys, jax, jax.numpy as jnp, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from gram_jax.runtime import Checkpoints
        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
        place = lambda shape, dtype, spec: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        target = {
            "weights": place((64, 64), jnp.float32, P("data")), "half": place((3,), jnp.bfloat16, P()),
            "moments": (place((4,), jnp.int32, P("data")), None), "key": place((), jax.random.key(0).dtype, P()),
            "table": np.zeros(5, np.int64), "count": 0,
        }
        config = {"seed": 0, "optimizer": {"name": "adam", "learning_rate": 0.1}, "shots": [1, 2]}
        with Checkpoints(sys.argv[1], config) as checkpoints:
            state = checkpoints.restore(target).state
        assert len(state["weights"].sharding.device_set) == 4, state["weights"].sharding
        print(np.array_equal(state["weights"], jax.random.normal(jax.random.key(1), (64, 64))))
    """
    # The values are drawn anew, with the compiler settings of this process: others round otherwise.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    done = run_python(code, str(tmp_path), XLA_FLAGS=flags)
    assert done.stdout.strip() == "True", done.stderr[-2000:]


TRAIN = """
    import os, signal, sys, jax, jax.numpy as jnp
    from gram_jax.runtime import Checkpoints, MetricsLog
    folder, stop_at, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    state = {"x": jnp.ones(8), "key": jax.random.key(0)}
    @jax.jit
    def train_step(state):
        key, now = jax.random.split(state["key"])
        x = jnp.sin(state["x"] * 1.3) + 0.1 * jax.random.normal(now, (8,))
        return {"x": x, "key": key}
    with Checkpoints(folder + "/checkpoints", {"seed": 0}) as checkpoints:
        restored = checkpoints.restore(state)
        start = 0
        if restored is not None:
            start, state = restored.step, restored.state
        with MetricsLog(folder + "/metrics.jsonl", resumed_at=start) as log:
            for step in range(start + 1, 13):
                state = train_step(state)
                log.write(step, mean=state["x"].mean())
                if step % 5 == 0:
                    checkpoints.save(step, state)
                if step == stop_at:
                    os.kill(os.getpid(), {"kill": signal.SIGKILL, "term": signal.SIGTERM}[how])
                checkpoints.exit_if_preempted(step, state)
    print("finished", state["x"].tolist())
"""


@pytest.mark.parametrize("how", ["kill", "term"])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, how):
    whole = run_python(TRAIN, str(tmp_path / "whole"), "0", how)
    assert whole.returncode == 0, whole.stderr[-2000:]
    stopped = run_python(TRAIN, str(tmp_path / "parts"), "8", how)
    assert stopped.returncode == (0 if how == "term" else -signal.SIGKILL), stopped.stderr[-2000:]
    assert "finished" not in stopped.stdout
    found = steps_in(tmp_path / "parts" / "checkpoints")
    # A kill may come before step 5, which is written in the background, is complete; SIGTERM waits for step 8.
    assert found in ([[5, 8]] if how == "term" else [[5], []])
    resumed = run_python(TRAIN, str(tmp_path / "parts"), "0", how)
    assert resumed.stdout == whole.stdout != ""
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert metrics[0] == metrics[1]
    assert metrics[0].count(b"\n") == 12
