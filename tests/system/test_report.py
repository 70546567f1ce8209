"""experiments.report as a program and as a function."""

import dataclasses
import subprocess
import sys

import pytest
from scipy import stats

from experiments import report
from gram_jax import evaluation, reporting
from tests.unit.reporting.test_report import cell, per_seed, results, spread, tuned, zero_shot


def test_a_subset_of_methods(tmp_path, capsys):
    file = tmp_path / "results.json"
    few = tuned("coop+gram:random_tasks", "few_shot", seeds=(1,))
    evaluation.write_results(file, results(tuned("coop", "few_shot") + few))
    report.run(report.Config(results=(str(file),), methods=("coop",)), tmp_path)
    assert "random" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--methods='cop' .*'coop'"):
        report.run(report.Config(results=(str(file),), methods=("cop",)), tmp_path)


def test_every_method_against_one(tmp_path):
    file = tmp_path / "results.json"
    rows = tuned("coop", "few_shot") + tuned("maple", "few_shot") + tuned("coop+gram", "few_shot")
    rows += zero_shot("few_shot") + zero_shot("few_shot", method="zero_shot:own", value=0.75)
    evaluation.write_results(file, results(rows))
    report.run(report.Config(results=(str(file),), against="zero_shot"), tmp_path)
    title, metric = "Paired differences over seeds", "accuracy (few-shot, 4 shots)"
    text = (tmp_path / "table.md").read_text()
    values = per_seed("maple", "all").mean(axis=1) - 0.5
    mean, half = spread(values)
    row = f"MaPLe against zero-shot: {metric}"
    assert cell(text, title, row, "points, 95 % interval") == f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"
    assert cell(text, title, row, "p (paired t-test)") == f"{stats.ttest_1samp(values, 0).pvalue:.3f}"
    row = f"zero-shot, own template against zero-shot: {metric}"  # neither has seeds: one number, no test
    assert [cell(text, title, row, column) for column in ("points, 95 % interval", "seeds")] == ["+25.0", "1"]
    pairs = [(each.a, each.b) for each in reporting.comparisons(rows, "coop")]
    assert pairs == [("coop+gram", "coop"), ("zero_shot", "coop"), ("zero_shot:own", "coop"), ("maple", "coop")]
    for settings, message in (
        ({"against": "cop"}, "--against='cop' .*'coop'"),
        ({"against": "coop", "methods": ("maple",)}, "--against='coop' .*maple"),
    ):
        with pytest.raises(ValueError, match=message):
            report.run(report.Config(results=(str(file),), **settings), tmp_path)


def test_as_a_program(tmp_path):
    file = tmp_path / "results.json"
    evaluation.write_results(file, results(tuned("coop", "base_to_new", steps=(5,))))
    command = [sys.executable, "-m", "experiments.report", f"--workdir={tmp_path / 'report'}", f"--results={file}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Base-to-new, 4 shots\n\nmethod " in done.stdout
    assert "| method" in (tmp_path / "report" / "table.md").read_text()


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="--results is empty"):
        report.Config()


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two finished runs and one that is under way, in the current folder."""
    for name, seeds in (("a", (1, 2)), ("b", (3,))):
        evaluation.write_results(
            tmp_path / "runs" / name / "results.json", results(tuned("coop", "few_shot", seeds=seeds))
        )
    (tmp_path / "runs" / "c").mkdir()
    (tmp_path / "runs" / "c" / "rows.jsonl").write_text("{}\n" * 12)
    (tmp_path / "runs" / "note.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["runs/a"], "a"),
        (["runs/a/"], "a"),
        (["runs/a/results.json"], "a"),
        (["runs/a/rows.jsonl/../rows.jsonl", "runs/a"], "a"),
        (["runs/a", "./runs/a/results.json", "runs/../runs/a"], "a"),
        (["runs/a", "HERE/runs/a", "~/runs/a"], "a"),
        (["runs/a", "runs/link"], "a"),
        (["runs/[ab]"], "ab"),
        (["runs/?"], "ab"),
        (["runs/*/results.json"], "ab"),
        (["**/results.json"], "ab"),
        (["runs/b", "runs/*"], "ba"),
    ],
)
def test_folders_and_patterns_stand_for_result_files(runs, given, found):
    (runs / "link").symlink_to(runs / "a")
    (runs / "a" / "rows.jsonl").write_text("{}\n")
    files = report.files_of([each.replace("HERE", str(runs.parent)) for each in given])
    assert "".join(file.resolve().parent.name for file in files) == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("runs/c", r"runs/c: no results\.json in it yet, rows\.jsonl has 12 units; run"),
        ("runs/c/rows.jsonl", r"no results\.json in it yet, .*12 units"),
        ("runs/empty", r"runs/empty: no results\.json in it yet, nor finished units"),
        ("runs/d", r"--results=runs/d: there is no such file; name a work directory"),
        ("runs/*.json", r"--results=runs/\*\.json: there is no such file"),
    ],
)
def test_a_folder_without_results_is_named_with_a_remedy(runs, given, message):
    (runs / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        report.files_of([given])


def test_a_folder_of_work_directories_stands_for_them(runs):
    assert report.files_of(["runs"]) == report.files_of(["runs/*"])


def test_labels_of_files(runs, tmp_path):
    other = results(tuned("coop", "few_shot", seeds=(3,)), {"learning_rate": 0.1})
    evaluation.write_results(runs / "b" / "results.json", other)
    evaluation.write_results(runs / "a" / "results.json", dataclasses.replace(other, config={"learning_rate": 1.0}))
    report.run(report.Config(results=("runs/a", "runs/b"), names=("high", "low")), tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "| CoOp (high) |" in text
    assert "| CoOp (low)  |" in text
    with pytest.raises(ValueError, match=r"--against='coop' .*coop @ high, coop @ low"):
        report.run(report.Config(results=("runs/a", "runs/b"), names=("high", "low"), against="coop"), tmp_path)
    with pytest.raises(ValueError, match="--names=high: give one for each of the 2 files"):
        report.run(report.Config(results=("runs/*",), names=("high",)), tmp_path)
