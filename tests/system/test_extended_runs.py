"""A finished evaluation that is extended, moved, or run with other settings of memory and output."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest
from etils import epath

import gram_jax as gram
from experiments.evaluate import run as evaluate
from gram_jax import meta, regulators, tuners
from gram_jax.testing import tiny_clip
from tests.system.watching import watch


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    clip = tiny_clip(text_layers=1, vision_layers=1, text_context_length=40)
    gram.save_clip(clip, folder / "clip")
    tuner, regulator = tuners.coop(init_text="a photo of a"), regulators.identity()
    prompt = tuner.init(jax.random.key(0), clip, None)
    learned = meta.init_meta(prompt, regulator.init(jax.random.key(1), prompt), 0.5)
    gram.save_meta(folder / "meta.safetensors", learned, tuner, regulator, clip)
    gram.save_meta(folder / "again.safetensors", learned, tuner, regulator, clip, notes={"written": "later"})
    other = dataclasses.replace(learned, prompt=jax.tree.map(lambda leaf: leaf + 0.1, prompt))
    gram.save_meta(folder / "other.safetensors", other, tuner, regulator, clip)
    return folder


@pytest.fixture(scope="module")
def config(inputs):
    return evaluate.Config(
        clip=str(inputs / "clip"),
        meta=str(inputs / "meta.safetensors"),
        methods=("tuner", "gram"),
        dataset=("glyphs:chess",),
        protocol=("few_shot",),
        shots=(1,),
        seeds=(1, 2),
        steps=(2,),
        learning_rate=(0.5,),
        gram_learning_rate=(0.5,),
        report_steps=(0,),
        max_test_images=2,
        feature_store="",
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "run"
    return workdir, evaluate.run(config, epath.Path(workdir))


@pytest.fixture
def copied(finished, tmp_path):
    return epath.Path(shutil.copytree(finished[0], tmp_path / "elsewhere" / "copied"))


def tuned(calls):
    return [(each.method.name, each.task.dataset.name, each.task.shots, each.task.seeds) for each in calls]


CHESS = "glyphs:chess"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"seeds": (1, 2, 3)}, [(m, CHESS, 1, (3,)) for m in ("coop", "coop+gram")]),
        ({"seeds": (3, 2)}, [(m, CHESS, 1, (3,)) for m in ("coop", "coop+gram")]),
        ({"seeds": (2,)}, []),
        ({"shots": (1, 2)}, [(m, CHESS, 2, (1, 2)) for m in ("coop", "coop+gram")]),
        ({"dataset": (CHESS, "glyphs:digits")}, [(m, "glyphs:digits", 1, (1, 2)) for m in ("coop", "coop+gram")]),
        ({"methods": ("gram",)}, []),
        ({"save_prompts": True}, [(m, CHESS, 1, (1,)) for m in ("coop", "coop+gram")]),
        ({"save_predictions": True}, []),
        ({"save_confusion": True, "methods": ("gram",)}, [("coop+gram", CHESS, 1, (1, 2))]),
        ({"image_batch": 7, "class_chunk": 5}, []),
        ({"meta": "again.safetensors"}, []),  # equal parameters, other notes
        ({"meta": "other.safetensors"}, [("coop+gram", CHESS, 1, (1, 2))]),
        ({"meta": "", "gram_learning_rate": None, "methods": ("tuner",)}, []),
        ({"gram_learning_rate": (0.25,)}, [("coop+gram", CHESS, 1, (1, 2))]),
        ({"report_steps": (0, 1)}, [(m, CHESS, 1, (1, 2)) for m in ("coop", "coop+gram")]),
        ({"momentum": 0.9, "methods": ("tuner",)}, [("coop", CHESS, 1, (1, 2))]),
        ({"tuner": "coop(init_text='a photo of a')"}, []),  # another spelling
        ({"init_text": ("a drawing of a",), "methods": ("tuner",)}, [("coop", CHESS, 1, (1, 2))]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_is_there_is_kept_and_what_is_missing_is_measured(
    config, finished, inputs, copied, changes, expected, monkeypatch
):
    calls = watch(monkeypatch)
    if changes.get("meta"):
        changes = changes | {"meta": str(inputs / changes["meta"])}
    results = evaluate.run(dataclasses.replace(config, **changes), copied)
    assert tuned(calls) == expected
    before = {dataclasses.replace(row, value=0.0): row.value for row in finished[1].rows}
    fresh = {(name, dataset, shots, seed) for name, dataset, shots, seeds in expected for seed in seeds}
    for row in results.rows:
        draw = dataclasses.replace(row, value=0.0)
        if (row.method, row.dataset, row.shots, row.seed) not in fresh:
            assert before[draw] == row.value
    written = json.loads((copied / "results.json").read_text())["rows"]
    assert [row["value"] for row in written] == [row.value for row in results.rows]
    # Numbers that are not among the new ones are kept, too.
    shown = {dataclasses.replace(row, value=0.0): row.value for row in results.rows}
    lost = any(shown.get(draw) != value for draw, value in before.items())
    assert (copied / "results-1.json").exists() == lost


def test_predictions_are_a_by_product_and_measured_again_only_if_asked_for(config, copied, monkeypatch):
    calls = watch(monkeypatch)
    files = {path: path.read_bytes() for path in (copied / "predictions").iterdir()}
    assert len(files) == 2
    shutil.rmtree(copied / "predictions")
    evaluate.run(config, copied)
    assert not calls
    assert not (copied / "predictions").exists()
    assert "run experiments.evaluate with --save_predictions" in (copied / "report.html").read_text()
    evaluate.run(dataclasses.replace(config, save_predictions=True), copied)
    assert tuned(calls) == [(method, CHESS, 1, (1,)) for method in ("coop", "coop+gram")]
    assert {path: path.read_bytes() for path in (copied / "predictions").iterdir()} == files
    assert "Wrong images" in (copied / "report.html").read_text()


def test_a_moved_folder_and_another_spelling_of_its_paths_continue(config, finished, copied, inputs, monkeypatch):
    moved = copied.parent / "inputs"
    shutil.copytree(inputs, moved)
    monkeypatch.chdir(copied.parent)
    calls = watch(monkeypatch)
    changes = {"clip": "inputs/clip", "meta": os.path.join(".", "inputs", "meta.safetensors")}
    assert evaluate.run(dataclasses.replace(config, **changes), epath.Path("copied")).rows == finished[1].rows
    assert calls == []


def test_added_seeds_are_those_of_one_run_with_all(config, copied, tmp_path):
    every = dataclasses.replace(config, seeds=(5, 1, 2, 7), save_prompts=True)
    assert evaluate.run(every, copied).rows == evaluate.run(every, epath.Path(tmp_path / "new")).rows
    for path in copied.glob("prompts/*"):
        assert path.read_bytes() == (tmp_path / "new" / "prompts" / path.name).read_bytes()


def test_a_checkpoint_that_is_added_later_keeps_the_rows_of_the_tuner_alone(config, inputs, tmp_path, monkeypatch):
    """With a learned regulator, the tuner alone runs in another compiled step: the numbers must be equal."""
    clip = gram.load_clip(str(inputs / "clip"))
    tuner, regulator = tuners.coop(init_text="a photo of a"), regulators.gated_low_rank(rank=2)
    prompt = tuner.init(jax.random.key(0), clip, None)
    learned = meta.init_meta(prompt, regulator.init(jax.random.key(1), prompt), 0.5)
    gram.save_meta(tmp_path / "learned.safetensors", learned, tuner, regulator, clip)
    every = dataclasses.replace(
        config,
        meta=str(tmp_path / "learned.safetensors"),
        methods=None,
        metrics=("expected_calibration_error",),
        report_steps=(0, 1, 2),
    )
    alone = dataclasses.replace(every, meta="", gram_learning_rate=None, methods=("tuner",))
    first = evaluate.run(alone, epath.Path(tmp_path / "later"))
    calls = watch(monkeypatch)
    extended = evaluate.run(every, epath.Path(tmp_path / "later"))
    assert [name for name, *_ in tuned(calls)] == ["coop+gram", "coop+gram:init_only", "coop+gram:regulator_only"]
    assert tuple(row for row in extended.rows if row.method == "coop") == first.rows
    at_once = evaluate.run(every, epath.Path(tmp_path / "at_once"))
    assert [row for row in extended.rows if row.metric == "accuracy"] == [
        row for row in at_once.rows if row.metric == "accuracy"
    ]
    for one, other in zip(extended.rows, at_once.rows, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-6)


def test_a_prompt_of_another_seed_is_kept_beside(config, copied):
    tuner = dataclasses.replace(config, methods=("tuner",), save_prompts=True)
    name = "prompts/glyphs_chess-few_shot-1-coop"
    contents = []
    for seeds in ((1, 2), (2, 1), (2, 1)):
        evaluate.run(dataclasses.replace(tuner, seeds=seeds), copied)
        contents.append((copied / f"{name}.safetensors").read_bytes())
    assert contents[0] != contents[1] == contents[2]
    assert (copied / f"{name}-1.safetensors").read_bytes() == contents[0]
    assert not (copied / f"{name}-2.safetensors").exists()


def test_a_class_specific_prompt_is_of_the_classes_that_it_was_tuned_on(config, copied, inputs):
    changes = {"meta": "", "gram_learning_rate": None, "methods": ("tuner",), "save_prompts": True}
    specific = dataclasses.replace(config, tuner="coop(class_specific=True)", **changes)
    results = evaluate.run(specific, copied)
    (path,) = copied.glob("prompts/*-coop.safetensors")
    dataset, clip = gram.data.load_dataset(CHESS), gram.load_clip(str(inputs / "clip"))
    assert gram.artifacts.describe(path).classes == dataset.class_names
    prompt, tuner = gram.load_prompt(path, clip)
    assert prompt["context"].shape[0] == len(dataset.class_names)
    test = dataset.take([p for p in dataset.select("test") if dataset.references[p][2] < config.max_test_images])
    images = clip.preprocess(test.images(range(len(test))))
    logits = tuner.apply(prompt, clip, clip.class_tokens(list(dataset.class_names)), images).logits
    (value,) = [row.value for row in results.rows if (row.method, row.seed, row.step) == ("coop", 1, 2)]
    assert np.mean(np.argmax(logits, -1) == test.labels) == pytest.approx(value, abs=1e-6)


def test_other_code_is_named_in_a_warning_and_in_the_results(config, copied, caplog, monkeypatch):
    rows = copied / "rows.jsonl"
    lines = [line for line in rows.read_text().splitlines() if '"coop+gram"' not in line]
    rows.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr("gram_jax.evaluation.results._code_hash", lambda: "c" * 64)
    monkeypatch.setattr("gram_jax.evaluation.results._git_revision", lambda: "d" * 40)
    results = evaluate.run(config, copied)
    assert "2 finished units were measured by other code or versions" in caplog.text
    first, second = results.environment["measured_by"]
    assert (first["units"], second["units"], second["git"]) == (2, 2, "d" * 40)
    assert first["code"] != second["code"] == "c" * 64
    assert f"code {str(first['git'])[:12]}" in (copied / "table.md").read_text()
    assert f"and {'d' * 12}." in (copied / "table.md").read_text()
