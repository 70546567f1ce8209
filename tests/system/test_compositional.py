"""The program of compositional zero-shot learning: tables, selection, resuming, refusals."""

import dataclasses
import json
import subprocess
import sys

import jax
import pytest
from etils import epath

import gram_jax as gram
from experiments.compositional import run
from experiments.compositional.config import Config
from gram_jax import regulators, tuners
from gram_jax.errors import InputError
from gram_jax.meta import init_meta

CONFIG = Config(dataset=("glyphs:hebrew:faces",), steps=4, seeds=(1, 2), select_seeds=(7,))


def program(workdir, **settings):
    return run.run(dataclasses.replace(CONFIG, **settings), epath.Path(workdir))


def test_it_measures_selects_compares_and_resumes(tmp_path, capsys):
    methods = "hand_crafted,csp,drpt(rounds=1)"
    settings = {"methods": methods, "learning_rate": (0.01, 0.001), "worlds": ("closed", "open")}
    program(tmp_path, **settings)
    results = json.loads((tmp_path / "results.json").read_text())
    rows = results["rows"]
    assert {row["method"] for row in rows} == {"hand_crafted", "csp", "drpt(rounds=1)"}
    assert {(row["split"], row["metric"]) for row in rows} == {
        (world, metric)
        for world in ("closed", "open")
        for metric in ("best_seen", "best_unseen", "best_harmonic", "auc", "attribute", "object")
    }
    selected = results["config"]["selected"]["glyphs:hebrew:faces"]["csp"]
    best = max(selected["validation_auc"], key=selected["validation_auc"].get)
    assert float(best) == selected["learning_rate"]
    assert {(each["a"], each["b"], each["n"]) for each in results["comparisons"]} == {
        ("hand_crafted", "csp", 2), ("drpt(rounds=1)", "csp", 2)
    }  # fmt: skip
    table = (tmp_path / "table.md").read_text()
    note = "chosen on the test images with their labels"
    assert note in table
    assert note in capsys.readouterr().out
    assert (tmp_path / "curve_hebrew_faces_open.svg").stat().st_size > 1000
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    # A run that was killed before its last three units repeats these, and nothing else.
    (tmp_path / "rows.jsonl").write_text("\n".join(lines[:-3]) + "\n" + lines[-3][:40])
    program(tmp_path, **settings)
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == rows
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == len(lines)


def test_gram_stands_on_context_tuners(tmp_path):
    clip, tuner, regulator = gram.load_clip("mini"), tuners.coop(init_text="a photo of"), regulators.affine()
    prompt = tuner.init(jax.random.key(0), clip, None)
    prompt = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(2), leaf.shape), prompt)
    meta = init_meta(prompt, regulator.init(jax.random.key(1), prompt), 0.1)
    gram.save_meta(tmp_path / "meta.safetensors", meta, tuner, regulator, clip)
    settings = {"meta": str(tmp_path / "meta.safetensors"), "seeds": (1,), "steps": 2}
    methods = "coop,coop+gram,csp,csp(learn_context=True),csp+gram"
    program(tmp_path, methods=methods, **settings)
    results = json.loads((tmp_path / "results.json").read_text())
    found = {row["method"]: row["value"] for row in results["rows"] if row["metric"] == "auc"}
    assert [*found] == ["coop", "coop+gram", "csp", "csp(learn_context=True)", "csp+gram"]
    assert found["coop"] != found["coop+gram"]
    assert found["csp(learn_context=True)"] != found["csp+gram"]
    compared = {(each["a"], each["b"]) for each in results["comparisons"]}
    assert compared >= {("coop+gram", "coop"), ("csp+gram", "csp(learn_context=True)"), ("csp+gram", "csp")}


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"methods": "csb"}, "'csb'.*'csp'"),
        ({"methods": "drpt(round=2)"}, "'round'"),
        ({"methods": "vpt"}, "vpt"),
        ({"methods": "csp+gram"}, "csp.gram.*--meta"),
        ({"methods": "troika+gram", "meta": "x"}, "troika"),
        ({"methods": "csp,csp"}, "csp,csp"),
        ({"worlds": ("half",)}, "'half'"),
        ({"learning_rate": (0.1, 0.2), "select_seeds": (1,)}, "select_seeds"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(settings, found):
    with pytest.raises(InputError, match=found):
        run.parse_methods(dataclasses.replace(CONFIG, **settings))


def test_a_wrong_dataset_is_one_line(tmp_path):
    flags = [f"--workdir={tmp_path}", "--dataset=folder:x"]
    command = [sys.executable, "-m", "experiments.compositional", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "'folder:x'" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
