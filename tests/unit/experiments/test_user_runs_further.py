"""Users' runs: further inputs for the principles 7 to 10, found by thinking about the kind."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from experiments import check_data, classify, predict, report, zero_shot
from experiments._launch import require_ranges
from experiments.evaluate import run as evaluate
from gram_jax import evaluation, runtime
from gram_jax.errors import InputError, nearest
from gram_jax.io import read_json

ROOT = Path(__file__).parents[3]

# 7. A run is known by what it depends on: work directories.


@pytest.mark.parametrize("name", ["", "  "])
def test_7_an_empty_work_directory_is_refused(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is empty; give a folder"), runtime.claim(name):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a file", "a file/below"])
def test_7_a_file_is_no_work_directory(name, tmp_path):
    (tmp_path / "a file").write_text("x")
    with pytest.raises(InputError, match=r"a file.* is not writable"), runtime.claim(tmp_path / name):
        pass
    assert (tmp_path / "a file").read_text() == "x"


@pytest.mark.parametrize("name", ["é ☃", "with space", "%41", "a'b", "x" * 200, "-dash"])
def test_7_odd_names_of_work_directories(name, tmp_path):
    with runtime.claim(tmp_path / name) as folder:
        assert folder.is_dir()


# 9. Reports: what results may look like.


def results(folder, value=0.5, method="coop", dataset="glyphs:chess"):
    rows = tuple(
        evaluation.Row(method, "few_shot", dataset, "accuracy", value + seed / 100, shots=4, seed=seed, step=50)
        for seed in (1, 2, 3)
    )
    environment = {"python": "3", "packages": {}, "device": {"kind": "cpu"}, "git": None, "code": "x", "weights": "w"}
    folder.mkdir(parents=True)
    evaluation.save_results(epath.Path(folder), evaluation.Results({"steps": 50}, environment, rows))
    return folder


def rewritten(folder, change):
    path = folder / "results.json"
    path.write_bytes(change(path.read_bytes()))
    return folder


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (lambda r: str(r), ["a", "b"]), (lambda r: f"{r}/", ["a", "b"]), (lambda r: f"{r}/*", ["a", "b"]),
        (lambda r: f"{r}/a", ["a"]), (lambda r: f"{r}/a/results.json", ["a"]), (lambda r: f"{r}/link", ["link"]),
        (lambda r: f"{r}/[ab]/results.json", ["a", "b"]), (lambda r: f"{r}/**/results.json", ["a", "b"]),
        (lambda r: os.path.relpath(r / "b"), ["b"]), (lambda r: f"{r}/a/../b", ["b"]),
    ],
)  # fmt: skip
def test_9_results_are_found_where_people_point(tmp_path, given, found):
    root = tmp_path / "runs"
    results(root / "a"), results(root / "b", 0.6)
    (root / "empty").mkdir()
    (root / "notes.json").write_text("[]")
    text = given(root)
    if "link" in text:
        os.symlink(root / "a", root / "link")
    if text.endswith("/*"):
        (root / "notes.json").unlink()
    assert [file.parent.name for file in report.files_of((text, text))] == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: b"", "is not valid JSON"), (lambda content: content[:300], "is not valid JSON"),
        (lambda content: b"[]", "should be an object"),
        (lambda content: content.replace(b'"schema": 1', b'"schema": 7'), "reads 1, found 7"),
        (lambda content: content.replace(b"0.51", b"NaN"), "found nan"),
        (lambda content: content.replace(b'"schema": 1', b'"schema": 1, "later": 2'), "later"),
        (lambda content: content.decode().encode("utf-16"), "is not valid JSON"),
    ],
)  # fmt: skip
def test_9_other_results_are_refused_by_name(tmp_path, change, message):
    folder = rewritten(results(tmp_path / "a"), change)
    with pytest.raises(InputError, match=f"(?s)a/results.json.*{message}"):
        report.run(report.Config(results=(str(folder),)), epath.Path(tmp_path))


@pytest.mark.parametrize(
    "change", [lambda content: b"\xef\xbb\xbf" + content, lambda content: content.replace(b"\n", b"\r\n")]
)
def test_9_editors_do_not_harm_results(tmp_path, change):
    before = read_json(results(tmp_path / "a") / "results.json")
    assert read_json(rewritten(tmp_path / "a", change) / "results.json") == before


def test_9_an_empty_folder_of_runs_is_named(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path.name}: no results.json in it yet"):
        report.files_of((str(tmp_path),))


# 10. Good manners.


@pytest.mark.parametrize(
    ("program", "setting", "message"),
    [
        (evaluate, {"momentum": 1.0}, "--momentum=1.0"), (evaluate, {"weight_decay": -0.1}, "--weight_decay=-0.1"),
        (evaluate, {"gray_range": 0.0}, "--gray_range=0.0"), (zero_shot, {"gray_range": -1.0}, "--gray_range=-1.0"),
        (check_data, {"gray_range": 0.0}, "--gray_range"), (predict, {"gray_range": float("nan")}, "--gray_range=nan"),
        (classify, {"learning_rate": (0.0,)}, "--learning_rate=0.0"), (classify, {"seed": 2**32}, "--seed=4294967296"),
        (classify, {"learning_rate": ()}, "--learning_rate is empty"), (classify, {"images": ""}, "--images is empty"),
        (evaluate, {"tuner": "CoOp"}, "did you mean 'coop'"), (evaluate, {"protocol": ("Few_Shot",)}, "'few_shot'"),
    ],
)  # fmt: skip
def test_10_values_out_of_range_are_refused_before_any_work(program, setting, message):
    needed = {predict: {"images": "x", "classes": ("a", "b")}, classify: {"images": "x"}}.get(program, {})
    with pytest.raises(InputError, match=message):
        require_ranges(program.Config, vars(program.Config(**(needed | setting))))


def test_10_the_nearest_word_is_found_in_any_case():
    assert nearest("KGCOOP", ["kgcoop", "npt"]) == " (did you mean 'kgcoop'?)"
    assert nearest("FOLDER", ["folder", "csv"]) == " (did you mean 'folder'?)"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-", "> /dev/full"])
def test_10_closed_streams_do_not_end_a_program(closed, tmp_path):
    (tmp_path / "program.py").write_text(
        "import sys\nfrom experiments import _terminal\n_terminal.prepare()\nprint('x' * 9999)\n"
        "print(1, file=sys.stderr)\nsys.stdout.flush()\nopen('done', 'w').close()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = f"{sys.executable} program.py {closed}"
    assert subprocess.run(command, shell=True, env=environment, cwd=tmp_path, timeout=60).returncode == 0
    assert (tmp_path / "done").exists()


def test_10_configs_are_pickled_and_compared():
    config = classify.Config(images="photos")
    assert pickle.loads(pickle.dumps(config)) == config == dataclasses.replace(config)
