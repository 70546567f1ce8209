"""Imports in fresh processes: what they load, and that they touch no device."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import gram_jax
from gram_jax.data import Reading, plan_units
from gram_jax.data.glyphs.builders import build_corpus
from gram_jax.data.pairs.shards import write_shard
from gram_jax.runtime import worker_pool
from tests.unit.data.pair_files import pack, png

ROOT = Path(gram_jax.__file__).parents[1]
MODULES = [
    module.name
    for package in ("gram_jax", "experiments")
    for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}.")
]
HEAVY = {"jax", "flax", "optax", "orbax", "tensorflow_datasets", "transformers", "matplotlib", "scipy", "sklearn"}
FRAMEWORKS = {"torch", "tensorflow", "torchvision"}


def fresh_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_importing_the_package_loads_nothing_heavy():
    done = fresh_python("import json, sys, gram_jax; print(json.dumps(sorted(sys.modules)))")
    assert not (HEAVY | FRAMEWORKS) & set(json.loads(done.stdout))


def test_importing_everything_touches_no_device_and_no_setting_and_prints_nothing():
    code = f"""
import importlib, sys, jax
before = dict(jax.config.values)
for name in {MODULES!r}:
    importlib.import_module(name)
assert dict(jax.config.values) == before
assert not {FRAMEWORKS!r} & set(sys.modules)
"""
    # The platform does not exist: any use of a device fails.
    done = fresh_python(code, JAX_PLATFORMS="nonexistent")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert fresh_python("import jax; jax.devices()", JAX_PLATFORMS="nonexistent").returncode != 0


PROGRAMS = sorted(
    path.stem if path.is_file() else path.name
    for path in (ROOT / "experiments").iterdir()
    if not path.name.startswith("_") and (path.suffix == ".py" or (path / "__main__.py").exists())
)


@pytest.mark.parametrize("program", [*PROGRAMS, "benchmark.costs", "benchmark.scaling"])
def test_help_imports_no_heavy_package(program):
    """A user who asks for the flags waits for none of the packages that only a run needs."""
    code = f"""
import runpy, sys
sys.argv = ["{program}", "--helpfull"]
try:
    runpy.run_module("experiments.{program}", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code
print("modules", *sys.modules)
"""
    done = fresh_python(code)
    assert done.returncode == 0, done.stderr
    shown, _, modules = done.stdout.rpartition("modules")
    assert "--workdir" in shown
    # A module that is only prepared for use, by lazy_loader, has loaded none of its parts.
    parts = {name.partition(".")[0] for name in modules.split() if "." in name}
    assert not parts & (HEAVY | FRAMEWORKS | {"jaxlib", "orbax", "tensorstore", "tokenizers", "pandas"})


@pytest.mark.parametrize("source", ["glyphs", "csv", "webdataset", "folder", "tfds"])
def test_workers_do_not_import_jax(source, tmp_path):
    """`write_shard` is the only function that is sent to workers; it reads each kind of source."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/0.png").write_bytes(png(0))
    (tmp_path / "images/0.txt").write_text("a caption")
    (tmp_path / "pairs.csv").write_text("path,caption\nimages/0.png,a caption\n")
    pack(tmp_path / "pairs.tar", [("0.png", png(0)), ("0.txt", b"a caption")])
    if source == "tfds":
        build_corpus(tmp_path, pairs=1)
    spec = {
        "glyphs": "glyphs",
        "csv": f"csv:{tmp_path}/pairs.csv",
        "webdataset": f"webdataset:{tmp_path}/pairs.tar",
        "folder": f"folder:{tmp_path}/images",
        "tfds": "tfds:glyph_corpus/pairs_1_seed_0",
    }[source]
    (unit,) = plan_units(spec, Reading(pairs=1, data_dir=str(tmp_path)))
    with worker_pool(1) as pool:
        assert pool.submit(write_shard, tmp_path / "0", unit, 10_000).result().pairs == 1
        loaded = set(pool.submit(eval, "list(__import__('sys').modules)").result())
    assert "gram_jax.data.pairs.shards" in loaded
    assert not ({"jax", "flax"} | FRAMEWORKS) & loaded
