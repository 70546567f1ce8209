"""The whole package: imports, documentation, size of functions. import-linter checks the layers."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import types
from collections.abc import Iterator
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
USES_TORCH = "experiments/benchmark/torch_workloads.py"  # PyTorch's side of the benchmark; imports it inside functions


def imported_packages(path: Path) -> set[str]:
    """Returns the top-level packages that a source file imports, inside functions included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def test_nothing_imports_pytorch_or_tensorflow():
    importing = [str(path.relative_to(ROOT)) for path in SOURCES if imported_packages(path) & NEVER_IMPORTED]
    assert importing == [USES_TORCH]


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
NO_VERB = {"What", "How", "Which", "Where", "Of", "From"}  # a docstring says what a function does: "Returns ..."


@pytest.mark.parametrize(("name", "value"), PUBLIC, ids=[name for name, _ in PUBLIC])
def test_public_names_are_documented(name, value):
    if not callable(value) or isinstance(value, types.GenericAlias):
        return
    text = inspect.getdoc(value) or ""
    assert text
    assert not text.startswith(f"{name.rpartition('.')[2]}("), "the docstring that dataclass generates has no content"
    assert len(text.splitlines()[0]) <= 120
    assert text.split()[0] not in NO_VERB
    if inspect.isclass(value):
        return
    signature = inspect.signature(value)
    if signature.parameters:
        assert "Args:" in text
    if signature.return_annotation not in (None, "None"):
        assert re.search(r"^(Returns:|Yields:|Returns )", text, re.MULTILINE)


def test_the_list_of_public_names_is_complete_and_sorted():
    assert gram_jax.__all__ == sorted(gram_jax.__all__)
    # Submodules that something else has imported are attributes too.
    names = {name for name, value in vars(gram_jax).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert names <= set(gram_jax.__all__)


MOST_LINES, MOST_BRANCHES, MOST_ARGUMENTS = 60, 12, 8
BRANCHES = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.IfExp, ast.comprehension)


def large_functions(path: Path) -> Iterator[str]:
    """Yields functions of more code lines, branches or arguments than a reader can follow.

    A comment `# long: REASON` on the first line of a function allows an exception.
    """
    text = path.read_text()
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and not re.search(r"# long: \w", lines[node.lineno - 1]):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            size = node.end_lineno - node.lineno + 1 - documented * (first.end_lineno - first.lineno + 1)
            branches = sum(isinstance(inner, BRANCHES) for inner in ast.walk(node))
            arguments = len(node.args.args) + len(node.args.kwonlyargs)
            if size > MOST_LINES or branches > MOST_BRANCHES or arguments > MOST_ARGUMENTS:
                place = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
                yield f"{place}: {size} lines, {branches} branches, {arguments} arguments"


def test_functions_are_small():
    assert [function for path in SOURCES for function in large_functions(path)] == []
