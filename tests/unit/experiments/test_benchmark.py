"""The parts of experiments.benchmark: tables, counts of operations, turns, flags, and the all-reduces of a program."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import inputs, names, scaling, sides, tables
from experiments.benchmark import run as benchmark
from gram_jax import reporting
from gram_jax.clip import TextConfig


def entry(**sides):
    known = {
        name: {"seconds": [3.0, seconds, seconds], "values": [1.0], "compile_seconds": None, "step_bytes": None} | more
        for name, (seconds, more) in sides.items()
    }
    return {"workload": "coop", "title": "CoOp step", "sides": known, "ceiling": 1e11, "notes": ["something"]}


def test_table_and_rows_of_two_sides():
    ours = {"flops": 4e9, "compile_seconds": 1.25, "step_bytes": 3 << 20, "process_step_bytes": 5 << 20}
    theirs = {"pytorch": (1.5, {"flops": 1.2e11, "process_step_bytes": 7 << 20})}
    measured = entry(gram_jax=(0.1, ours), **theirs, **{tables.FRUGAL: (0.3, {"flops": 8e9})})
    (cells,) = tables.main_table([measured]).rows
    assert cells == ("CoOp step", "100", "1,500", "15", "30", "300", "3", "2", "1.25", "5", "3", "7", "40", "40 %")
    rows = {(row.method, row.metric): row.value for row in tables.result_rows([measured], "benchmark:mini")}
    assert rows["gram_jax", "speedup"] == pytest.approx(15)
    assert rows["gram_jax", "speedup_over_frugal"] == pytest.approx(3)
    assert rows["gram_jax", "ceiling_share"] == pytest.approx(0.4)
    assert rows["pytorch", "flops_per_second"] == pytest.approx(8e10)
    assert ("pytorch", "step_bytes") not in rows
    text = tables.report([measured], ["sizes"], reporting.to_text)
    assert text.endswith("sizes\nCoOp step: something\n")


def test_table_without_pytorch():
    (cells,) = tables.main_table([entry(gram_jax=(0.25, {"flops": None}))]).rows
    assert cells == ("CoOp step", "250", *["-"] * 12)


def test_different_steps_end_the_benchmark():
    benchmark._check_agreement("coop", {"a": (1.0, 2.0), "b": (1.00005, 2.001)})
    for other in ((1.001, 2.0), (1.0, 2.1), (float("nan"), 2.0), (1.0,)):
        with pytest.raises(ArithmeticError, match=r"coop: a .*\(1.0, 2.0\) and b "):
            benchmark._check_agreement("coop", {"a": (1.0, 2.0), "b": other})


def test_operations_count_once_per_iteration():
    def loss(w, x):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        jnp.sum(w[0] @ w[1])  # unused
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


@pytest.mark.parametrize(
    ("program", "size"),
    [
        ("%x = f32[3,5]{1,0} all-reduce(f32[3,5]{1,0} %y), channel_id=1", 60),
        (
            "%x = (f32[8]{0}, bf16[4,2]{1,0}, f32[]) all-reduce(%a, %b, %c)\n%z = f32[2]{0} all-reduce(%x)",
            32 + 16 + 4 + 8,
        ),
        ("%x = f32[8]{0} all-gather(%y), dimensions={0}\n%z = f32[8]{0} add(%x, %x)", 0),
    ],
)
def test_bytes_of_all_reduces_are_read_from_the_program(program, size):
    assert scaling.all_reduce_bytes(program) == size


@pytest.mark.parametrize("change", [{"devices": (0,)}, {"tasks": 0}, {"steps": 0}])
def test_impossible_settings_of_scaling_are_refused(change):
    with pytest.raises(ValueError, match=f"--{next(iter(change))}="):
        scaling.Config(**change)


def test_shipped_tokens_of_names_have_the_counts_of_the_published_table():
    with (Path(__file__).parents[3] / "docs" / "results" / "tokens.csv").open(encoding="utf-8", newline="") as file:
        published = {line["dataset"]: line for line in csv.DictReader(file)}
    for name in names.LISTS:
        tails, line = names.read_tails(name), published[name]
        prefixes = {tail[:length] for tail in tails for length in range(1, len(tail) + 1)}
        counts = len(tails), max(map(len, tails)), sum(map(len, tails)), len(prefixes)
        columns = ("classes", "longest tail", "tokens", "distinct prefixes")
        assert counts == tuple(int(line[column]) for column in columns)
    assert len(set(names.read_tails("food101", 300))) == 300


def test_steps_beside_pytorch_have_the_names_of_published_datasets():
    rng, config = np.random.default_rng(0), TextConfig()  # CLIP's own vocabulary
    classes = inputs.listed_classes(rng, config, "imagenet", 1000)
    rows = zip(classes.tail_ids, classes.tail_eot, classes.name_length, names.read_tails("imagenet"), strict=True)
    for ids, end, length, tail in rows:
        assert tuple(ids[: end + 1].tolist()) == tail  # name, full stop, end token
        assert length == end - 1
    assert classes.tree.ids.size < 1.1 * 4003  # the distinct prefixes
    small = inputs.listed_classes(rng, dataclasses.replace(config, vocab_size=64, eos_token_id=63), "food101", 9)
    assert 0 <= small.tail_ids.min() <= small.tail_ids.max() < 64
    assert [row[end] for row, end in zip(small.tail_ids, small.tail_eot, strict=True)] == [63] * 9


def test_padded_names_have_a_row_each_and_the_tree_fewer_tokens():
    tails = names.read_tails("stanford_cars")
    padded, tree = (names.make_classes([tails], side) for side in (True, False))
    assert padded.tree.ids.shape == (196, 18)
    assert tree.tree.ids.size < 196 * 18 / 2
    ends = np.take_along_axis(padded.tree.ids, padded.tree.ends, axis=1)
    assert np.all(ends == names.END)
    lists = [tails[:5], tails[5:10]]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(names.make_classes(lists, False))} == {2}
    line = names.cells("food101", "coop", {"padded flops": 4e9, "tree flops": 2e9})
    assert (line["GFLOP, padded"], line["GFLOP, tree"], line["GFLOP, ratio"]) == ("4", "2", "2.00")


@pytest.mark.parametrize("change", [{"lists": ("food",)}, {"methods": ()}, {"ways": 1}])
def test_impossible_settings_of_names_are_refused(change):
    with pytest.raises(ValueError, match=f"--{next(iter(change))}="):
        names.Config(**change)
