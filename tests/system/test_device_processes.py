"""Processes that connect, and checkpoints that are restored onto other numbers of devices."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tests.system.processes import free_port


def python(code, *arguments, devices=1):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_without_a_cluster_the_remedy_is_named():
    alone = python("from gram_jax import runtime; runtime.connect()")
    errors = alone.communicate(timeout=100)[1]
    assert alone.returncode == 1
    assert "--coordinator_address=HOST:PORT" in errors


@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_stays_alone_says_what_to_check(number):
    code = (
        "import sys; from gram_jax import runtime; runtime.connect(sys.argv[1], 2, int(sys.argv[2]), timeout_seconds=2)"
    )
    alone = python(code, f"127.0.0.1:{free_port()}", number)
    errors = alone.communicate(timeout=100)[1]
    assert alone.returncode == 1
    assert "within 2 s. Check that this command runs on all 2 hosts" in errors
    assert "Traceback" not in errors


TOGETHER = """
    import json, sys
    import jax, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from gram_jax import meta, regulators, runtime
    address, number = sys.argv[1], int(sys.argv[2])
    runtime.connect(address, 2, number, timeout_seconds=100)
    mesh = runtime.make_mesh("tasks")
    divided, whole = NamedSharding(mesh, PartitionSpec("tasks")), NamedSharding(mesh, PartitionSpec())
    own, every = runtime.own_rows(divided, 8), runtime.own_rows(whole, 8)
    rows = np.arange(40, dtype=np.float32).reshape(8, 5)
    placed = runtime.global_arrays(divided, {"x": rows[own.start : own.stop]}, 8)
    means = jax.jit(lambda x: (x.mean(0), x[3]), out_shardings=whole)(placed["x"])
    held = runtime.gather({"number": number, "text": "x" * (5 + 100_000 * number), "rows": list(own)})
    runtime.barrier("end")
    try:
        meta.make_meta_step(None, regulators.identity(), None, steps=1, mapper="pmap")
    except ValueError as error:
        refused = str(error)
    print(json.dumps({
        "main": runtime.is_main(), "devices": jax.device_count(), "every": list(every), "shape": placed["x"].shape,
        "held": [[each["number"], len(each["text"]), each["rows"]] for each in held],
        "means": [np.asarray(mean).tolist() for mean in means],
        "loss": runtime.is_process_loss(ValueError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer")),
        "bug": runtime.is_process_loss(ValueError("shapes differ")), "refused": refused[:17],
    }))
"""


def test_two_processes_share_an_array_and_learn_what_each_holds():
    address = f"127.0.0.1:{free_port()}"
    started = [python(TOGETHER, address, number, devices=2) for number in range(2)]
    said = [process.communicate(timeout=100) for process in started]
    rows = np.arange(40).reshape(8, 5)
    for number, (printed, errors) in enumerate(said):
        assert started[number].returncode == 0, errors
        found = json.loads(printed.splitlines()[-1])  # Gloo talks before
        assert found.pop("main") == (number == 0)
        assert found == {
            "devices": 4,
            "every": list(range(8)),
            "shape": [8, 5],
            "held": [[0, 5, [0, 1, 2, 3]], [1, 100_005, [4, 5, 6, 7]]],
            "means": [rows.mean(0).tolist(), rows[3].tolist()],
            "loss": True,
            "bug": False,
            "refused": "mapper='pmap' map",
        }


RESTORE = """
    import sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from gram_jax import runtime

    def state(count, factor):
        mesh = runtime.make_mesh("data", jax.devices()[:count])
        place = lambda array, spec: jax.device_put(array * factor, NamedSharding(mesh, spec))
        return {
            "rows": place(jnp.arange(24.0).reshape(8, 3), PartitionSpec("data")),
            "columns": place(jnp.arange(32, dtype=jnp.int32).reshape(2, 16), PartitionSpec(None, "data")),
            "whole": place(jnp.full((3,), 0.1, jnp.bfloat16), PartitionSpec()),
        }

    saved = jax.tree.map(np.asarray, state(4, 1))
    with runtime.Checkpoints(sys.argv[1], {}) as checkpoints:
        checkpoints.save(1, state(4, 1))
    for count in (1, 2, 4):
        with runtime.Checkpoints(sys.argv[1], {}) as checkpoints:
            found = checkpoints.restore(state(count, 0)).state
        for name, leaf in found.items():
            assert len(leaf.sharding.device_set) == count, (name, leaf.sharding)
            np.testing.assert_array_equal(np.asarray(leaf), saved[name])
        print(count)
"""


def test_a_checkpoint_of_four_devices_is_restored_onto_one_two_and_four(tmp_path):
    process = python(RESTORE, tmp_path, devices=4)
    printed, errors = process.communicate(timeout=100)
    assert printed.split() == ["1", "2", "4"], errors
