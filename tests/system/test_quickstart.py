"""experiments.quickstart at toy size: every stage and control runs, and a second run reuses the files."""

import json
import shutil

import pytest
from etils import epath

from experiments import quickstart
from gram_jax import evaluation


@pytest.fixture(scope="module")
def config():
    return quickstart.Config(
        seeds=(1, 2),
        shots=(1,),
        dataset=("glyphs:chess",),
        domains=("small",),
        steps=2,
        report_steps=(0, 1),
        pairs=1500,
        themes=4,
        ways=3,
        meta_steps=1,
        inner_steps=2,
        long_meta_steps=1,
        controls=("random",),
    )


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("quickstart"))
    return workdir, quickstart.run(config, workdir)


def test_measures_every_method_and_control(done):
    _, results = done
    methods = dict.fromkeys(row.method for row in results.rows)
    parts = ("init_only", "regulator_only", "random_tasks")
    assert set(methods) == {"zero_shot", "zero_shot:own", "coop", "coop+gram", *(f"coop+gram:{p}" for p in parts)}
    tuned = [row for row in results.rows if row.method == "coop+gram" and row.metric == "accuracy"]
    assert {(row.protocol, row.split, row.domain) for row in tuned} == {
        ("few_shot", "all", None),
        ("few_shot", "all", "small"),
        ("base_to_new", "base", None),
        ("base_to_new", "new", None),
    }
    assert {row.seed for row in tuned} == {1, 2}
    assert any(comparison.a == "coop+gram" and comparison.b == "coop" for comparison in results.comparisons)


def test_coop_is_tuned_before_tasks_are_built_and_not_again(done):
    workdir, _ = done
    methods = [json.loads(line)["unit"][0] for line in (workdir / "rows.jsonl").read_text().splitlines()]
    alone = methods.count("coop")
    assert methods[:alone] == ["coop"] * alone
    assert alone == methods.count("coop+gram") > 0
    assert not (workdir / "results-1.json").exists()  # the rows of CoOp are among those of all methods


def test_writes_a_table_and_plots(done):
    workdir, results = done
    text = (workdir / "table.md").read_text()
    assert "CoOp + GRAM" in text
    assert "±" in text
    for name in ("hierarchy.png", "base_new_h.png", "adaptation.png", "base_new_along_tuning.png", "regulation.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")
    assert evaluation.validate(json.loads(json.dumps(results, default=lambda part: part.__dict__)))


def test_a_second_run_reads_what_is_there_also_elsewhere(config, done, monkeypatch, tmp_path):
    def never(*_, **__):
        raise AssertionError("computed again")

    workdir, results = done
    monkeypatch.setattr("experiments.evaluate.comparison.method_rows", never)
    monkeypatch.setattr("gram_jax.tasks.build_hierarchy", never)
    assert quickstart.run(config, workdir).rows == results.rows
    moved = epath.Path(shutil.copytree(workdir, tmp_path / "elsewhere"))
    assert quickstart.run(config, moved).rows == results.rows
    assert not (workdir / "results-1.json").exists()


def test_bad_flags_are_refused_before_anything_runs():
    with pytest.raises(ValueError, match="--shots"):
        quickstart.Config(shots=(0,))
    with pytest.raises(ValueError, match="--steps=0"):
        quickstart.Config(long_meta_steps=0)
    with pytest.raises(ValueError, match="--controls='groups'"):
        quickstart.Config(controls=("groups",))
