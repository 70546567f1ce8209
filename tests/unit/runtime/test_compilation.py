"""Compilation settings: the cache folder and the XLA flags."""

from __future__ import annotations

import os

import jax
import pytest

from gram_jax.io import absolute
from gram_jax.runtime import compilation as cache
from gram_jax.runtime import compile_quickly, enable_compilation_cache


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
