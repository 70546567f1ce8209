"""experiments.benchmark at tiny sizes: what it counts, what it compares, what it leaves out, what it keeps."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from experiments.benchmark import memory, sides, tables, torch_workloads
from experiments.benchmark import run as benchmark
from experiments.benchmark.inputs import make_setup
from experiments.benchmark.workloads import SHORTCUTS, WORKLOADS, builders
from gram_jax import evaluation, reporting

# Those that compile quickly; the others take minutes together.
QUICK = ("coop", "evaluation")
COMPARED = [name for name, workload in WORKLOADS.items() if workload.problem and name not in SHORTCUTS]


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return make_setup("mini", True, 500, tmp_path_factory.mktemp("files"))


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch", reason="the way of the public code is written in it")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in COMPARED])
def test_both_ways_take_the_same_step(name, setup, torch):
    built = builders(name, setup)
    assert list(built) == ["gram_jax", "pytorch"]
    assert built["pytorch"].estimate > 0
    ours, theirs = (builder.build() for builder in built.values())
    (_, values), (_, expected) = ours.run(), theirs.run()
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    assert np.all(np.abs(values) > 1e-3)  # zeros would agree trivially
    _, again = ours.run()
    assert again == values  # every run begins at the same prompt
    assert theirs.count() > ours.flops > 0
    assert ours.step_bytes > 0


@pytest.mark.slow
def test_a_benchmark(tmp_path, capsys, monkeypatch):
    """One workload of each kind, without PyTorch's part; the second run reads what is there."""
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
    assert flops[rules[0]] == flops[rules[1]]  # a loop does the same
    dropping = [flops[method] for method in rules[1:6]]
    assert dropping == sorted(dropping, reverse=True)  # every shortcut leaves something out
    assert len(set(dropping)) == 5
    assert flops[rules[8]] > flops[rules[7]] > flops[rules[6]] == flops[rules[5]]  # recomputation adds
    in_step, stored = (row.value for row in results.rows if (row.metric, row.dataset) == ("flops", "image_rules"))
    assert stored < in_step
    compiling = {row.method: row.value for row in results.rows if row.metric == "compile_seconds"}
    assert compiling[rules[6]] < compiling[rules[5]]  # read from the cache
    speedups = [row.value for row in results.rows if row.metric == "speedup_over_previous"]
    assert len(speedups) == 8 + 1
    assert set(results.config["ceilings"]) == set(names)
    shares = [row.value for row in results.rows if row.metric == "ceiling_share"]
    assert len(shares) == 9 + 2
    assert not [row for row in results.rows if row.metric == "speedup"]
    table = (tmp_path / "table.md").read_text()
    assert "| clustering of pairs |" in table
    assert "| shared prefix |" in table
    lines = (tmp_path / "benchmark.jsonl").read_text().splitlines()
    assert len(lines) == 1 + len(config.workloads)
    found = {entry["workload"]: entry["sides"] for entry in (json.loads(line)["found"] for line in lines[1:])}
    assert all(len(side["seconds"]) == 2 for sides in found.values() for side in sides.values())
    first, *others = (side["values"] for side in found["rules"].values())
    for values in others:  # loss and length of the gradient
        np.testing.assert_allclose(values, first, rtol=1e-5)

    def never(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(benchmark, "measure", never)
    capsys.readouterr()
    assert benchmark.run(config, epath.Path(tmp_path)).rows == results.rows
    assert "shared prefix" in capsys.readouterr().out
    with pytest.raises(ValueError, match="repeats was 2 and is 3"):
        benchmark.run(dataclasses.replace(config, repeats=3), epath.Path(tmp_path))


def entry(**sides):
    known = {
        name: {"seconds": [3.0, seconds, seconds], "values": [1.0], "compile_seconds": None, "step_bytes": None} | more
        for name, (seconds, more) in sides.items()
    }
    return {"workload": "coop", "title": "CoOp step", "sides": known, "ceiling": 1e11, "notes": ["something"]}


def test_table_and_rows_of_two_sides():
    ours = {"flops": 4e9, "compile_seconds": 1.25, "step_bytes": 3 << 20, "process_step_bytes": 5 << 20}
    found = entry(gram_jax=(0.1, ours), pytorch=(1.5, {"flops": 1.2e11, "process_step_bytes": 7 << 20}))
    (cells,) = tables.main_table([found]).rows
    assert cells == ("CoOp step", "100", "1,500", "15", "30", "1.25", "5", "3", "7", "40", "40 %")
    rows = {(row.method, row.metric): row.value for row in tables.result_rows([found], "benchmark:mini")}
    assert rows["gram_jax", "speedup"] == pytest.approx(15)
    assert rows["gram_jax", "ceiling_share"] == pytest.approx(0.4)
    assert rows["pytorch", "flops_per_second"] == pytest.approx(8e10)
    assert ("pytorch", "step_bytes") not in rows
    text = tables.report([found], ["sizes"], reporting.to_text)
    assert text.endswith("sizes\nCoOp step: something\n")


def test_table_without_pytorch():
    (cells,) = tables.main_table([entry(gram_jax=(0.25, {"flops": None}))]).rows
    assert cells == ("CoOp step", "250", *["-"] * 9)


def test_missing_pytorch_is_reported(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch_workloads.importlib.util, "find_spec", lambda name: None)
    config = benchmark.Config(small=True, memory=False, repeats=1, workloads=("clustering",), pairs=100)
    benchmark.run(config, epath.Path(tmp_path))
    assert "PyTorch is not installed" in capsys.readouterr().out


def test_what_is_too_large_is_left_out(setup):
    notes = {}
    for name in ("evaluation", "clustering"):
        found = benchmark.measure(benchmark.Config(small=True, max_gib=1e-6), name, setup, True, lambda: None)
        assert not found["sides"]
        notes[name] = found["notes"]
    sample = 2 * 20 * 8
    needed = 4 * 16 * (500 + sample) / 2**30
    (note,) = notes["clustering"]
    assert note.startswith("gram_jax: ")
    assert f"{needed:.3g} GiB" in note
    assert "--max_gib=1e-06" in note
    assert [note.partition(":")[0] for note in notes["evaluation"]] == ["gram_jax", "pytorch"]


def test_different_steps_end_the_benchmark():
    benchmark._check_agreement("coop", {"a": (1.0, 2.0), "b": (1.00005, 2.001)})
    for other in ((1.001, 2.0), (1.0, 2.1), (float("nan"), 2.0), (1.0,)):
        with pytest.raises(ArithmeticError, match=r"coop: a .*\(1.0, 2.0\) and b "):
            benchmark._check_agreement("coop", {"a": (1.0, 2.0), "b": other})


def test_operations_are_counted_as_often_as_they_run():
    def loss(w, x):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        jnp.sum(w[0] @ w[1])  # nobody reads it
        return jnp.sum(jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), x, w)[0])

    w, x = jnp.ones((5, 8, 8)), jnp.ones((3, 8))
    one = 2 * 3 * 8 * 8  # a product of x and a layer
    count = {
        name: sides.matmul_flops(jax.jit(function).trace(w, x).jaxpr.jaxpr)
        for name, function in {"forward": loss, "weights": jax.grad(loss), "inputs": jax.grad(loss, argnums=1)}.items()
    }
    assert count["forward"] == 5 * one
    assert count["inputs"] == 5 * 3 * one  # forward, recomputed, and one for the gradient
    assert count["weights"] == 5 * 4 * one


def test_sides_take_turns():
    order = []

    def side(name):
        return sides.Side(lambda: (order.append(name), (float(len(order)), (1.0,)))[1])

    seconds, _ = sides.run_in_turns({"a": side("a"), "b": side("b")}, repeats=2, steps=2, max_seconds=60)
    assert order == ["a", "a", "b", "b"] * 2
    assert seconds == {"a": [2, 6], "b": [4, 8]}  # without the first step of each turn
    seconds, _ = sides.run_in_turns({"a": side("a")}, repeats=2, steps=1, max_seconds=-1)
    assert seconds == {"a": [9]}  # no time for a second turn, and a single step counts


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="Linux says what memory a process had")
def test_memory_of_a_step(tmp_path, monkeypatch):
    side = sides.plain_side(lambda: (float(np.ones((64, 1 << 20), np.uint8).sum()),))
    found = memory.measure(side)
    assert 60 << 20 < found["step_bytes"] < 200 << 20
    assert found["peak_bytes"] > found["step_bytes"]
    settings = {"clip_size": "mini", "small": True, "pairs": 500, "folder": str(tmp_path)}
    found = memory.measure_in_child(workload="clustering", side="gram_jax", **settings)
    assert found["peak_bytes"] > 50 << 20
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert "status 1" in memory.measure_in_child(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workloads": ("coop", "cop")}, "--workloads='cop'.*'coop'"),
        ({"workloads": ()}, "--workloads="),
        ({"repeats": 0}, "--repeats=0: .* 1"),
        ({"max_gib": -1.0}, "--max_gib=-1.0"),
    ],
)
def test_flags_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        benchmark.Config(**settings)


def test_mistakes_end_in_one_line(tmp_path):
    command = [sys.executable, "-m", "experiments.benchmark", f"--workdir={tmp_path}", "--clip_size=vit_b8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "vit_b8" in done.stderr
    assert "Traceback" not in done.stderr
