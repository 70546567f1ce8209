"""The result file: what a reader finds in it, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import subprocess

import jax
import numpy as np
import pytest
from scipy import stats

from gram_jax.errors import InputError
from gram_jax.evaluation import (
    Comparison,
    Results,
    Row,
    compare,
    environment,
    read_results,
    results,
    validate,
    write_results,
)

RESULTS = Results(
    config={"clip": "mini", "seeds": [0, 1], "nested": {"a": None}},
    environment={"git": None},
    rows=(
        Row("zero_shot", "zero_shot", "toy", "accuracy", 0.5),
        Row("coop", "base_to_new", "toy", "accuracy", 0.625, "serif", 16, 1, "new", 50),
    ),
    comparisons=(
        Comparison("coop", "zero_shot", "accuracy", "seed", 0.125, (0.1, 0.15), 3, 0.002),
        Comparison("coop", "zero_shot", "accuracy", "", 0.125, None, 1),
    ),
)


def test_the_file_is_plain_json_in_long_form(tmp_path):
    path = tmp_path / "run" / "results.json"
    write_results(path, RESULTS)
    document = json.loads(path.read_text())
    assert list(document) == ["schema", "config", "environment", "rows", "comparisons"]
    assert document["schema"] == 1
    assert document["rows"][1] == {
        "method": "coop", "protocol": "base_to_new", "dataset": "toy", "metric": "accuracy", "value": 0.625,
        "domain": "serif", "shots": 16, "seed": 1, "split": "new", "step": 50,
    }  # fmt: skip
    assert document["comparisons"][0]["ci95"] == [0.1, 0.15]
    assert [comparison["p_value"] for comparison in document["comparisons"]] == [0.002, None]
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_reads_back(tmp_path):
    write_results(tmp_path / "results.json", RESULTS)
    assert read_results(tmp_path / "results.json") == RESULTS


def test_fields_with_defaults_may_be_left_out():
    row = {"method": "a", "protocol": "b", "dataset": "c", "metric": "accuracy", "value": 1}
    assert validate({"schema": 1, "config": {}, "environment": {}, "rows": [row]}).rows == (
        Row("a", "b", "c", "accuracy", 1.0),
    )


def test_files_from_before_there_were_p_values_are_read(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, RESULTS)
    document = json.loads(path.read_text())
    for comparison in document["comparisons"]:
        del comparison["p_value"]
    path.write_text(json.dumps(document))
    results = read_results(path)
    assert results.rows == RESULTS.rows
    assert results.comparisons == tuple(dataclasses.replace(each, p_value=None) for each in RESULTS.comparisons)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, RESULTS)
    before = path.read_bytes()
    bad = Results({}, {}, (Row("a", "b", "c", "accuracy", float("nan")),))
    with pytest.raises(InputError, match=r"rows\[0\]\.value: .*found nan"):
        write_results(path, bad)
    with pytest.raises(InputError, match="not JSON"):
        write_results(path, Results({"key": jax.random.key(0)}, {}, ()))
    assert path.read_bytes() == before


def test_values_must_be_python_numbers(tmp_path):
    with pytest.raises(InputError, match=r"rows\[0\]\.value: .*float32"):
        write_results(tmp_path / "r.json", Results({}, {}, (Row("a", "b", "c", "accuracy", np.float32(0.5)),)))


def change(**fields):
    document = json.loads(json.dumps({"schema": 1, "config": {}, "environment": {}, "rows": [], "comparisons": []}))
    return document | fields


GOOD_ROW = {"method": "a", "protocol": "b", "dataset": "c", "metric": "accuracy", "value": 0.5}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], r"the document: .*found \[\]"),
        (change(schema=2), "schema: .*1, found 2"),
        ({"config": {}, "environment": {}, "rows": []}, "schema: .*1, found None"),
        (change(rows={}), "rows: .*found {}"),
        (change(rows=[3]), r"rows\[0\]: .*found 3"),
        (change(rows=[GOOD_ROW, GOOD_ROW | {"value": "0.5"}]), r"rows\[1\]\.value: .*found '0.5'"),
        (change(rows=[GOOD_ROW | {"value": True}]), r"rows\[0\]\.value: .*found True"),
        (change(rows=[GOOD_ROW | {"seed": 1.5}]), r"rows\[0\]\.seed: .*found 1.5"),
        (change(rows=[GOOD_ROW | {"sede": 1}]), r"rows\[0\]\.sede: .*'seed'"),
        (change(rows=[{k: v for k, v in GOOD_ROW.items() if k != "metric"}]), r"rows\[0\]\.metric: .*required"),
        (change(config=3), "config: .*found 3"),
        (
            change(comparisons=[dataclasses.asdict(RESULTS.comparisons[0]) | {"ci95": [1]}]),
            r"comparisons\[0\]\.ci95\[1\]: .*required",
        ),
        (
            change(comparisons=[dataclasses.asdict(RESULTS.comparisons[0]) | {"p_value": "0.01"}]),
            r"comparisons\[0\]\.p_value: .*found '0.01'",
        ),
    ],
)  # fmt: skip
def test_what_breaks_the_schema_is_named(document, message, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=rf"results\.json: {message}"):
        read_results(path)


def test_not_json(tmp_path):
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(InputError, match=r"results\.json is not valid JSON"):
        read_results(tmp_path / "results.json")


def few_shot(method, values):
    return [Row(method, "few_shot", d, "accuracy", v, shots=4, seed=s) for (d, s), v in values.items()]


def test_comparison_pairs_by_draw():
    draws = [(dataset, seed) for dataset in ("x", "y") for seed in (0, 1, 2)]
    a = dict(zip(draws, [0.5, 0.6, 0.55, 0.8, 0.9, 0.85], strict=True))
    b = dict(zip(draws, [0.45, 0.56, 0.52, 0.79, 0.86, 0.8], strict=True))
    shuffled = dict(reversed(b.items()))
    other = [Row("a", "few_shot", "x", "macro_f1", 0.1, shots=4, seed=0)]
    comparison = compare(few_shot("a", a) + few_shot("b", shuffled) + other, "a", "b")
    test = stats.ttest_rel(list(a.values()), list(b.values()))
    expected = test.confidence_interval(0.95)
    assert comparison.mean_difference == pytest.approx(np.mean([a[d] - b[d] for d in draws]))
    assert comparison.ci95 == pytest.approx((expected.low, expected.high))
    assert comparison.p_value == pytest.approx(test.pvalue)
    assert (comparison.n, comparison.over) == (6, "dataset, seed")


def test_one_pair_has_no_interval():
    comparison = compare(few_shot("a", {("x", 0): 0.5}) + few_shot("b", {("x", 0): 0.25}), "a", "b")
    assert comparison == Comparison("a", "b", "accuracy", "", 0.25, None, 1)


def test_pairs_that_differ_by_the_same_have_no_p_value():
    draws = [("x", 0), ("x", 1)]
    comparison = compare(few_shot("a", dict.fromkeys(draws, 0.5)) + few_shot("b", dict.fromkeys(draws, 0.25)), "a", "b")
    assert comparison == Comparison("a", "b", "accuracy", "seed", 0.25, (0.25, 0.25), 2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (few_shot("a", {("x", 0): 0.5}), "no rows of 'accuracy' for method 'b'"),
        (
            few_shot("a", {("x", 0): 0.5, ("x", 1): 0.5}) + few_shot("b", {("x", 0): 0.5}),
            "'b' was not measured on .*dataset='x', .*seed=1",
        ),
        (few_shot("a", {("x", 0): 0.5}) * 2 + few_shot("b", {("x", 0): 0.5}), "two rows"),
        (
            [Row(m, "base_to_new", "x", "accuracy", 0.5, split=split) for m in "ab" for split in ("base", "new")],
            "also vary in split",
        ),
    ],
)
def test_unequal_draws_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        compare(rows, "a", "b")


def test_environment_names_what_ran():
    found = environment(weights="w", splits={"toy": "s"})
    assert json.loads(json.dumps(found)) == found
    assert found["packages"]["jax"] == jax.__version__
    assert found["device"]["platform"] == jax.default_backend()
    assert (found["weights"], found["splits"]) == ("w", {"toy": "s"})


def test_git_revision_is_that_of_the_code(tmp_path, monkeypatch):
    def git(*arguments):
        settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *settings, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)

    module = tmp_path / "results.py"
    module.write_text("a = 1\n")
    monkeypatch.setattr("gram_jax.evaluation.results.__file__", str(module))
    found = results._git_revision.__wrapped__  # of a new process
    assert found() is None
    git("init")
    assert found() is None  # a package installed within another project's checkout
    git("add", ".")
    git("commit", "-m", "a")
    revision = git("rev-parse", "HEAD").stdout.strip()
    assert found() == revision
    module.write_text("a = 2\n")
    assert found() == f"{revision}-dirty"
