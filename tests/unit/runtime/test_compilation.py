"""The compilation cache: filled by one process, and read by the next."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import pytest

from gram_jax.io import absolute
from gram_jax.runtime import compilation as cache
from gram_jax.runtime import compile_quickly, enable_compilation_cache

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


def test_a_configured_cache_is_kept(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
        assert enable_compilation_cache(tmp_path) == str(tmp_path / "mine")
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_folder_is_absolute_and_remote_paths_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(absolute("run/a")) == str(tmp_path / "run" / "a")
    assert str(absolute("gs://bucket/run")) == "gs://bucket/run"


QUICK = "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (None, QUICK),
        ("--xla_force_host_platform_device_count=2", f"--xla_force_host_platform_device_count=2 {QUICK}"),
        ("--xla_cpu_use_fusion_emitters=true", "--xla_cpu_use_fusion_emitters=true --xla_backend_optimization_level=1"),
    ],
)
def test_cpu_programs_are_compiled_quickly_and_set_flags_stay(monkeypatch, flags, expected):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(cache.jaxlib, "__version__", "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", "") if flags is None else monkeypatch.setenv("XLA_FLAGS", flags)
    assert compile_quickly() == os.environ["XLA_FLAGS"] == expected


@pytest.mark.parametrize(
    ("platforms", "version", "plugins"), [("cuda,cpu", "0.10.2", []), ("", "0.10.2", ["cuda"]), ("cpu", "0.11.0", [])]
)
def test_flags_stay_where_they_could_do_harm(monkeypatch, platforms, version, plugins):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setenv("XLA_FLAGS", "--mine")
    monkeypatch.setattr(cache.jaxlib, "__version__", version)
    monkeypatch.setattr(cache.importlib.metadata, "entry_points", lambda group: plugins)
    assert compile_quickly() == os.environ["XLA_FLAGS"] == "--mine"
