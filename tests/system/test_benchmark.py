"""experiments.benchmark at tiny sizes, compared with PyTorch, and its child processes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from experiments.benchmark import memory, sides, torch_workloads
from experiments.benchmark import run as benchmark
from experiments.benchmark.inputs import make_setup
from experiments.benchmark.workloads import SHORTCUTS, WORKLOADS, builders
from gram_jax import evaluation

# These compile quickly; the others take minutes together.
QUICK = ("coop", "evaluation")
COMPARED = [name for name, workload in WORKLOADS.items() if workload.problem and name not in SHORTCUTS]


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return make_setup("mini", True, 500, tmp_path_factory.mktemp("files"))


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in COMPARED])
def test_both_sides_compute_the_same_step(name, setup, torch):
    built = builders(name, setup)
    assert list(built) == ["gram_jax", "pytorch", "pytorch, features kept and texts cut"]
    assert built["pytorch"].estimate >= built["pytorch, features kept and texts cut"].estimate > 0
    ours, theirs, frugal = (builder.build() for builder in built.values())
    (_, values), (_, expected) = ours.run(), theirs.run()
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    np.testing.assert_allclose(frugal.run()[1], expected, rtol=1e-4)
    assert np.all(np.abs(values) > 1e-3)  # zeros would agree trivially
    _, again = ours.run()
    assert again == values  # every run begins at the same prompt
    assert theirs.count() > max(frugal.count(), ours.flops) > 0
    assert ours.step_bytes > 0


@pytest.mark.slow
def test_a_benchmark(tmp_path, capsys, monkeypatch):
    """Runs workloads without PyTorch; the second run measures nothing again."""
    names = ("rules", "image_rules", "clustering", "episodes")
    config = benchmark.Config(small=True, torch=False, memory=False, repeats=2, steps=2, pairs=500, workloads=names)
    results = benchmark.run(config, epath.Path(tmp_path))
    assert evaluation.validate(json.loads(json.dumps(dataclasses.asdict(results)))).rows == results.rows
    seconds = {(row.method, row.dataset): row.value for row in results.rows if row.metric == "seconds"}
    assert {name for _, name in seconds} == set(config.workloads)
    rules = [method for method, name in seconds if name == "rules"]
    assert len(rules) == 9
    assert min(seconds.values()) > 0
    flops = {row.method: row.value for row in results.rows if row.metric == "flops" and row.dataset == "rules"}
    assert flops[rules[0]] == flops[rules[1]]  # a loop has the same operations
    dropping = [flops[method] for method in rules[1:6]]
    assert dropping == sorted(dropping, reverse=True)  # every shortcut removes operations
    assert len(set(dropping)) == 5
    assert flops[rules[8]] > flops[rules[7]] > flops[rules[6]] == flops[rules[5]]  # recomputation adds operations
    in_step, stored = (row.value for row in results.rows if (row.metric, row.dataset) == ("flops", "image_rules"))
    assert stored < in_step
    assert list((tmp_path / "compilation_cache").iterdir())
    speedups = [row.value for row in results.rows if row.metric == "speedup_over_previous"]
    assert len(speedups) == 8 + 1
    assert set(results.config["ceilings"]) == set(names)
    shares = [row.value for row in results.rows if row.metric == "ceiling_share"]
    assert len(shares) == 9 + 2
    assert not [row for row in results.rows if row.metric == "speedup"]
    table = (tmp_path / "table.md").read_text()
    assert "| clustering of pairs " in table
    assert "| shared prefix, names as a tree " in table
    lines = (tmp_path / "benchmark.jsonl").read_text().splitlines()
    assert len(lines) == 1 + len(config.workloads)
    measured = {entry["workload"]: entry["sides"] for entry in (json.loads(line)["found"] for line in lines[1:])}
    assert all(len(side["seconds"]) == 2 for sides in measured.values() for side in sides.values())
    first, *others = (side["values"] for side in measured["rules"].values())
    for values in others:  # the loss and the norm of the gradient
        np.testing.assert_allclose(values, first, rtol=1e-5)

    def never(*_):
        raise AssertionError("nothing must be measured again")

    monkeypatch.setattr(benchmark, "measure", never)
    capsys.readouterr()
    assert benchmark.run(config, epath.Path(tmp_path)).rows == results.rows
    assert "shared prefix" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="measured again"):
        benchmark.run(dataclasses.replace(config, repeats=3), epath.Path(tmp_path))


def test_missing_pytorch_is_reported(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch_workloads.importlib.util, "find_spec", lambda name: None)
    config = benchmark.Config(small=True, memory=False, repeats=1, workloads=("clustering",), pairs=100)
    benchmark.run(config, epath.Path(tmp_path))
    assert "PyTorch is not installed" in capsys.readouterr().out


def test_workloads_beyond_the_memory_limit_are_left_out(setup):
    notes = {}
    for name in ("evaluation", "clustering"):
        measured = benchmark.measure(benchmark.Config(small=True, max_gib=1e-6), name, setup, True, lambda: None)
        assert not measured["sides"]
        notes[name] = measured["notes"]
    sample = 2 * 20 * 8
    needed = 4 * 16 * (500 + sample) / 2**30
    (note,) = notes["clustering"]
    assert note.startswith("gram_jax: ")
    assert f"{needed:.3g} GiB" in note
    assert "--max_gib=1e-06" in note
    assert [note.partition(":")[0] for note in notes["evaluation"]] == [
        "gram_jax",
        "pytorch",
        "pytorch, features kept and texts cut",
    ]


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="only Linux reports the memory of a process")
def test_memory_of_a_step(tmp_path, monkeypatch):
    side = sides.plain_side(lambda: (float(np.ones((64, 1 << 20), np.uint8).sum()),))
    measured = memory.measure(side)
    assert 60 << 20 < measured["step_bytes"] < 200 << 20
    assert measured["peak_bytes"] > measured["step_bytes"]
    settings = {"clip_size": "mini", "small": True, "pairs": 500, "many_classes": 10, "folder": str(tmp_path)}
    measured = memory.measure_in_child(workload="clustering", side="gram_jax", **settings)
    assert measured["peak_bytes"] > 50 << 20
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert "status 1" in memory.measure_in_child(**settings)


def test_a_wrong_flag_is_one_line(tmp_path):
    command = [sys.executable, "-m", "experiments.benchmark", f"--workdir={tmp_path}", "--clip_size=vit_b8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "vit_b8" in done.stderr
    assert "Traceback" not in done.stderr
