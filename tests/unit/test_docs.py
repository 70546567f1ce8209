"""The documentation: tables, links, commands and worked examples agree with the code."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from pathlib import Path

import pytest

import gram_jax

ROOT = Path(gram_jax.__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
tables = importlib.import_module("tables")

PAGES = [*tables.pages(), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
HOW_TO = sorted((ROOT / "docs" / "how-to").glob("*.md"))
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHELL = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
SHARED = {"workdir", "help", "verbosity", "distributed", "coordinator_address", "num_processes", "process_id"}
PROGRAM = re.compile(r"-m (?:gram_jax\.)?(experiments(?:\.\w+)+)(.*)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_tables_are_up_to_date(path):
    page = path.read_text(encoding="utf-8")
    assert tables.rendered(page) == page, "run python docs/tables.py"


def test_every_file_of_measurements_is_shown():
    used = {name for path in PAGES for _, name, _ in tables.MARKED.findall(path.read_text(encoding="utf-8"))}
    assert {path.stem for path in (ROOT / "docs" / "results").glob("*.csv")} <= used


def test_a_difference_is_bold_where_its_interval_leaves_out_0():
    header, *rows = tables.pivot([["CoOp", "H", "88.5", "", "", ""], ["CoOp", "+ GRAM", "+3.6", "+1.3", "+5.8", "1"]])
    assert (header, rows) == (["", "H", "+ GRAM"], [["CoOp", "88.5", "**+3.6 [+1.3, +5.8]**"]])
    assert tables.markdown([["method", "H"], ["CoOp", "88.5"]]) == "| method | H |\n| :-- | --: |\n| CoOp | 88.5 |\n"


def test_measurements_are_shown_after_the_last_step_and_after_the_first():
    of = {30: {"coop": (80, 82), "coop+gram": (84, 84)}, 100: {"coop": (0, 0)}, 300: {"coop": (70, 74)}}
    lines = [
        ["base_to_new", "glyphs:arabic", method, "4", str(seed), str(step), "H", str(value)]
        for step, methods in of.items()
        for method, values in methods.items()
        for seed, value in enumerate(values)
    ]
    half = 12.706204736 / 2**0.5  # the 97.5 % quantile of Student's t with one degree of freedom, from a table
    assert tables.along_tuning(lines) == [
        ["method", "H", "H, 30 steps"],
        ["CoOp", f"72.0 ±{2 * 2**0.5 * half:.1f}", f"81.0 ±{2**0.5 * half:.1f}"],
        ["CoOp + GRAM", "", "84.0 ±0.0"],
    ]
    lines = [["few_shot", "mean", "coop", shots, "10", "300", "accuracy", "+1.0 [+0.2, +1.8]"] for shots in ("4", "16")]
    assert tables.along_tuning(lines)[1:] == [["CoOp", shots, "+1.0 [+0.2, +1.8]"] for shots in ("4", "16")]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(path):
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
            assert anchor in slugs, link


def commands(path: Path) -> list[tuple[str, list[str]]]:
    """Returns the programs that a page runs, with the names of their flags."""
    found = []
    for block in SHELL.findall(path.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", "").splitlines():
            for module, rest in PROGRAM.findall(line.split("  #")[0]):
                found.append((module, re.findall(r"(?<=\s)--(\w+)", rest.split(" && ")[0])))
    return found


def flags_of(module: str) -> set[str]:
    """Returns the names of the flags of a program."""
    package = importlib.import_module(module)
    program = importlib.import_module(f"{module}.run") if hasattr(package, "__path__") else package
    return {field.name for field in dataclasses.fields(program.Config)} | SHARED


@pytest.mark.parametrize("path", [path for path in PAGES if commands(path)], ids=name_of)
def test_commands_name_programs_and_flags_that_exist(path):
    for module, given in commands(path):
        known = flags_of(module)
        for flag in given:
            assert flag in known or flag.removeprefix("no") in known, f"{module} --{flag}"


@pytest.mark.parametrize("path", HOW_TO, ids=name_of)
def test_worked_examples_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "example"}
    page = path.read_text(encoding="utf-8")
    blocks = list(PYTHON.finditer(page))
    assert blocks
    for block in blocks:  # empty lines before a block, so that a traceback shows the lines of the page
        exec(compile("\n" * page.count("\n", 0, block.start(1)) + block[1], str(path), "exec"), namespace)


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "api").glob("*.md")), ids=name_of)
def test_api_pages_show_functions_that_share_the_name_of_their_module(page):
    """The page of a package leaves out a name that is also the name of a submodule."""
    listed = re.findall(r"^::: (gram_jax[\w.]*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    for package in [name for name in listed if name.count(".") < 2]:
        module = importlib.import_module(package)
        names = [name for name in module.__all__ if callable(getattr(module, name))]
        homes = {
            name: getattr(module, name).__module__ for name in names if hasattr(getattr(module, name), "__module__")
        }
        hidden = {f"{home}.{name}" for name, home in homes.items() if home == f"{package}.{name}"}
        assert hidden <= set(listed)
