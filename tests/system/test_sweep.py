"""The whole field in one command, killed twice on the way: a complete sweep on small copies of the real layouts."""

import csv
import json
import logging
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gram_jax as gram
from gram_jax.data import coop
from gram_jax.evaluation import protocols as _protocols
from gram_jax.reporting import sheets
from gram_jax.testing import tiny_clip
from tests.unit.data import layouts

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ELEVEN = tuple(name for name in layouts.NAMES if name not in coop.VARIANTS)
EVALUATE = (
    "experiments.evaluate",
    "--clip=clip",
    "--dataset=" + ",".join(f"coop:data:{name}" for name in ELEVEN),
    "--source=coop:data:imagenet",
    "--protocol=" + ",".join(_protocols.LABELED),
    "--shots=2",
    "--seeds=1,2",
    "--largest=4",
    "--tau=0.25",
    "--learning_rate=10",
    "--steps=2",
    "--batch_size=2",
    "--report_steps=",
    "--metrics=macro_f1",
)
RESULTS = "runs/evaluate/results.json"
REPORT = ("experiments.report", f"--results={RESULTS}")
UNITS = 4 * (3 * len(ELEVEN) + 2)  # two zero-shot methods, two seeds of CoOp: three protocols, two of the source


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """The fifteen datasets and a clip in the files of a Hugging Face checkpoint."""
    field = tmp_path_factory.mktemp("field")
    layouts.write_all(field / "data", per_class=(6, 2, 3), classes=4)  # as many of each, to share compiled steps
    gram.save_clip(tiny_clip(seed=1, text_layers=1, vision_layers=1, text_context_length=77), field / "clip")
    return field


def start(folder, *command):
    """Types a command in a folder."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": paths,
        # All runs share what is compiled, however little.
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *command], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


def finish(folder, *command):
    assert start(folder, *command).wait(timeout=3600) == 0, (folder / "log.txt").read_text()


def units(folder):
    """The finished units."""
    path = folder / "runs" / "evaluate" / "rows.jsonl"
    return path.read_text().split("\n")[:-1] if path.exists() else []  # without one that is being written


def kill_after(folder, count):
    """Starts the sweep, and ends it without a warning once so many units are finished."""
    process = start(folder, *EVALUATE)
    try:
        while len(units(folder)) < count:
            assert process.poll() is None, (folder / "log.txt").read_text()
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()


def place(field, name):
    """A folder to work in, with the data beside it."""
    folder = field / name
    folder.mkdir()
    for each in ("data", "clip"):
        (folder / each).symlink_to(field / each)
    return folder


@pytest.fixture(scope="module")
def killed(field):
    folder, kept = place(field, "killed"), []
    points = random.randrange(1, UNITS // 2), random.randrange(UNITS // 2 + 5, UNITS - 5)
    logging.getLogger(__name__).warning("killed after %s of %d units", points, UNITS)  # shown where a test fails
    for count in points:
        kill_after(folder, count)
        kept.append(units(folder))
        assert count <= len(kept[-1]) < UNITS
        assert not (folder / RESULTS).exists()
    finish(folder, *EVALUATE)
    # What was finished is neither lost nor done again: each tuned unit is reported once.
    assert all(units(folder)[: len(lines)] == lines for lines in kept)
    said = [
        line.partition(", coop: ")[0] for line in (folder / "log.txt").read_text().splitlines() if ", coop: " in line
    ]
    assert len(said) == len(set(said)) >= UNITS // 3 - 2  # a killed run may not come to saying it
    finish(folder, *REPORT)
    return folder


@pytest.fixture(scope="module")
def whole(field):
    folder = place(field, "whole")
    finish(folder, *EVALUATE)
    return folder


def document(folder):
    return json.loads((folder / RESULTS).read_text())


def test_a_sweep_that_is_killed_twice_equals_one_that_is_not(killed, whole):
    assert len(units(whole)) == UNITS
    found, expected = document(killed), document(whole)
    assert found == expected
    assert units(killed) == units(whole)
    for file in ("table.md", "table.csv"):
        texts = [(folder / "runs" / "evaluate" / file).read_text() for folder in (killed, whole)]
        assert texts[0] == texts[1]
        reported = (killed / "runs" / "report" / file).read_text()
        assert reported.replace(RESULTS, "this evaluation") == texts[0]


def test_everything_of_the_field_was_measured(killed):
    rows = [row for row in document(killed)["rows"] if row["method"] == "coop" and row["metric"] == "accuracy"]
    names = {f"coop:{name}" for name in ELEVEN}
    for protocol in ("few_shot", "base_to_new", "imbalanced:0.25"):
        assert {row["dataset"] for row in rows if row["protocol"] == protocol} == names
    domains = {
        "cross_dataset": {None, *names - {"coop:imagenet"}},
        "domain_generalization": {None, *coop.VARIANTS},
    }
    for protocol, expected in domains.items():
        of_source = [row for row in rows if row["protocol"] == protocol]
        assert {row["domain"] for row in of_source} == expected
        assert len(of_source) == len(expected) * 2  # seeds
    assert {row["protocol"].partition(":")[0] for row in rows} == set(_protocols.LABELED)
    assert set(document(killed)["environment"]["splits"]) == {f"coop:{name}" for name in layouts.NAMES}


def test_the_tables_hold_means_over_all_datasets(killed):
    rows = [row for row in document(killed)["rows"] if row["metric"] == "accuracy" and row["method"] == "coop"]
    with (killed / "runs" / "report" / "table.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    for protocol, shifted in (("few_shot", False), ("cross_dataset", True), ("domain_generalization", True)):
        values = [row["value"] for row in rows if (row["protocol"], row["domain"] is not None) == (protocol, shifted)]
        mean = 100 * sum(values) / len(values)
        assert any(cell["percent"] and abs(float(cell["percent"]) - mean) < 1e-9 for cell in cells), protocol


def test_published_numbers_stand_beside_none_of_the_copies(killed):
    for experiment in ("evaluate", "report"):
        said = (killed / "runs" / experiment / "table.md").read_text()
        assert "No published rows for datasets that differ from the published ones" in said
        refused = said.partition("the published ones: ")[2].splitlines()[0]
        assert all(f"coop:{name} (" in refused for name in ELEVEN)
        assert not [line for line in said.splitlines() if line.startswith(f"| {sheets.PUBLISHED}")]
