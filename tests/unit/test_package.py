"""The package as a whole: what importing it does and does not do, its layers, its documentation."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import gram_jax

ROOT = Path(gram_jax.__file__).parents[1]
SOURCES = sorted([*(ROOT / "gram_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")])
MODULES = [
    module.name
    for package in ("gram_jax", "experiments")
    for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}.")
]
NEVER_IMPORTED = {"torch", "tensorflow", "torchvision"}
COMPARES = (
    "experiments/benchmark/torch_workloads.py"  # what others do, for the benchmark; imports PyTorch when it is asked to
)

# A package may import from its own level and the levels below it.
LEVELS = [
    {"clip", "data"},
    {"tuners", "regulators", "objectives"},
    {"evaluation", "meta", "tasks"},
]


def fresh_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_import_is_quick_and_light():
    code = """
import json, sys, time
start = time.process_time()
import gram_jax
print(json.dumps([time.process_time() - start, sorted(sys.modules)]))
"""
    # Processor time, so that what else the machine does is not counted; the better of two, for a cold disk.
    seconds, modules = min(json.loads(fresh_python(code).stdout) for _ in range(2))
    assert seconds < 3.0
    heavy = {"torch", "tensorflow", "tensorflow_datasets", "transformers", "matplotlib", "orbax.checkpoint"}
    assert not heavy & set(modules)


def test_importing_everything_touches_no_device_and_no_setting_and_prints_nothing():
    code = f"""
import importlib, sys, jax
before = dict(jax.config.values)
for name in {MODULES!r}:
    importlib.import_module(name)
assert dict(jax.config.values) == before
assert not {NEVER_IMPORTED!r} & set(sys.modules)
"""
    # A platform that does not exist: whatever asks for a device fails.
    done = fresh_python(code, JAX_PLATFORMS="nonexistent")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert fresh_python("import jax; jax.devices()", JAX_PLATFORMS="nonexistent").returncode != 0


def imported_names(path: Path) -> set[str]:
    """Every module that a source file imports, at its top or within a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    names = imported_names(path)
    allowed = {"torch"} if str(path.relative_to(ROOT)) == COMPARES else set()
    assert not {name.split(".")[0] for name in names} & (NEVER_IMPORTED - allowed)
    package, *rest = path.relative_to(ROOT).parts
    ours = {name.split(".")[1] for name in names if name.startswith("gram_jax.")}
    if package == "experiments" or len(rest) == 1:  # programs, and modules at the top of the library
        return
    here = rest[0]
    assert not any(name.split(".")[0] == "experiments" for name in names)
    assert "runtime" not in ours or here == "runtime"
    level = next((i for i, members in enumerate(LEVELS) if here in members), None)
    if level is not None:
        assert not ours & set().union(*LEVELS[level + 1 :]), f"{here} imports from above"


def public() -> list[tuple[str, object]]:
    found = {}
    for name in ["gram_jax", *MODULES]:
        module = importlib.import_module(name)
        if not hasattr(module, "__path__"):
            continue
        for public_name in getattr(module, "__all__", ()):
            value = getattr(module, public_name)
            if not inspect.ismodule(value):
                found.setdefault(id(value), (f"{name}.{public_name}", value))
    return sorted(found.values(), key=lambda pair: pair[0])


PUBLIC = public()


@pytest.mark.parametrize(("name", "value"), PUBLIC, ids=[name for name, _ in PUBLIC])
def test_public_names_are_documented(name, value):
    if not callable(value):
        return
    text = inspect.getdoc(value) or ""
    assert text
    assert not text.startswith(f"{name.rpartition('.')[2]}("), "the docstring that dataclass makes says nothing"
    assert len(text.splitlines()[0]) <= 120
    if inspect.isclass(value):
        return
    expected = ["Example:"]
    signature = inspect.signature(value)
    if signature.parameters:
        expected.append("Args:")
    if signature.return_annotation not in (None, "None"):
        expected.append("Returns:")
    missing = [section for section in expected if section not in text]
    assert not missing, f"{name} lacks {', '.join(missing)}"
    assert ">>> " in text


def test_the_list_of_public_names_is_complete_and_sorted():
    assert gram_jax.__all__ == sorted(gram_jax.__all__)
    # Submodules that something else has imported are attributes too.
    names = {name for name, value in vars(gram_jax).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert names <= set(gram_jax.__all__)
