"""experiments.report as a program and as a function."""

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
    with pytest.raises(ValueError, match=r"--results names a\.json twice"):
        report.Config(results=("a.json", "a.json"))
