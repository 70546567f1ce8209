"""The compilation cache: one process fills it, the next one reads it."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import sys, jax, jax.monitoring, jax.numpy as jnp
from gram_jax.runtime import enable_compilation_cache
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
folder = enable_compilation_cache(sys.argv[1])
print(folder, float(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((7, 7)))[0, 0]), bool(hits))
"""


def test_second_process_reads_what_the_first_compiled(tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    runs = [
        subprocess.run(
            [sys.executable, "-c", CODE, str(tmp_path / "run")],
            env=environment,
            capture_output=True,
            text=True,
            timeout=90,
        ).stdout.split()
        for _ in range(2)
    ]
    folder = str(tmp_path / "run" / "compilation_cache")
    assert [run[0] for run in runs] == [folder, folder]
    assert os.listdir(folder)
    assert runs[0][1] == runs[1][1]
    assert [run[2] for run in runs] == ["False", "True"]
