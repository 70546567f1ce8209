"""The program of continual learning as a user runs it: its tables, a kill inside a task, and the presets."""

from __future__ import annotations

import json
import signal
import time

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

import gram_jax as gram
from experiments.continual.presets import PRESETS
from experiments.continual.run import Config, run
from gram_jax import evaluation, regulators, tuners
from gram_jax.evaluation.continual import stream_metrics
from gram_jax.meta import init_meta, with_structure
from gram_jax.testing import tiny_clip
from tests.system.processes import finish, start

STEPS = 120  # of a task, so many that a checkpoint inside one is seen
FLAGS = (
    *("--stream=glyphs:chess", "--tasks=3", f"--steps={STEPS}", "--seeds=1", "--methods=null_space", "--batch_size=4"),
    *("--train_images=2", "--max_test_images=2", "--augmentation=fresh"),
)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    gram.save_clip(tiny_clip(vision_layers=2, text_layers=1, text_context_length=40), folder)
    return folder


def test_a_run_killed_inside_a_task_ends_with_the_same_bytes(clip_folder, tmp_path):
    flags = (*FLAGS, f"--clip={clip_folder}")
    cache = tmp_path / "cache"
    (plain,) = start("continual", tmp_path / "plain", *flags, cache=cache)
    finish([plain])
    (killed,) = start("continual", tmp_path / "killed", *flags, "--checkpoint_seconds=0", cache=cache)
    folder, until = tmp_path / "killed" / "checkpoints" / "null_space-1", time.monotonic() + 600
    while not any(int(each.name) % (STEPS + 1) for each in folder.glob("*") if each.name.isdigit()):
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "rows.jsonl").exists()
    finish(start("continual", tmp_path / "killed", *flags, cache=cache))
    name = "prompts/null_space-1.safetensors"
    assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    plain, killed = (evaluation.read_results(tmp_path / each / "results.json").rows for each in ("plain", "killed"))
    assert plain == killed


def test_every_method_and_both_heads(clip_folder, tmp_path):
    methods = ("zero_shot", "nearest_mean", "sequential", "l2", "replay", "null_space", "joint")
    shared = {
        "clip": str(clip_folder), "stream": ("glyphs:chess",), "tasks": 3, "seeds": (1, 2), "steps": 4,
        "batch_size": 6, "train_images": 3, "max_test_images": 2, "learning_rate": 0.05, "methods": methods,
    }  # fmt: skip
    workdir = epath.Path(tmp_path / "text")
    results = run(Config(**shared), workdir)
    for name in ("results.json", "table.md", "matrices.png", "along.svg", "prompts/joint-2.safetensors"):
        assert (workdir / name).exists(), name
    for method in methods:
        for seed in (1, 2):
            rows = [row for row in results.rows if (row.method, row.seed) == (method, seed)]
            matrix = np.full((3, 3), np.nan)
            for row in rows:
                if row.metric == "accuracy":
                    matrix[row.step - 1, int(row.split.removeprefix("task ")) - 1] = row.value
            assert np.isnan(matrix[0, 0]) == (method == "joint")
            found = {row.metric: row.value for row in rows if row.metric != "accuracy"}
            assert found == pytest.approx(stream_metrics(matrix, [8, 8, 8]))
    prompts = {
        m: gram.load_prompt(
            workdir / f"prompts/{m}-1.safetensors", tiny_clip(vision_layers=2, text_layers=1, text_context_length=40)
        )
        for m in methods[2:]
    }
    values = [np.asarray(each.prompt["prompts"]) for each in prompts.values()]
    for i, one in enumerate(values):
        assert all(np.abs(one - other).max() > 1e-4 for other in values[i + 1 :])
    assert {(each.a, each.b) for each in results.comparisons} >= {("null_space", "sequential")}

    linear = run(Config(**shared | {"methods": ("sequential",), "heads": "linear"}), epath.Path(tmp_path / "linear"))
    assert all(0 <= row.value <= 1 for row in linear.rows if row.metric == "accuracy")


def test_gram_begins_every_task_and_regulates(clip_folder, tmp_path):
    clip, regulator = gram.load_clip(clip_folder), regulators.affine()
    tuner = tuners.vpt_kv(num_tokens=4)
    prompt = tuner.init(jax.random.key(7), clip, None)
    rows = np.random.default_rng(0).normal(size=(3, 2 * clip.config.embed_dim))
    meta = with_structure(init_meta(prompt, regulator.init(jax.random.key(1), prompt), 0.1), rows)
    meta = meta.replace(offsets=jax.tree.map(lambda leaf: leaf + 0.1 * np.arange(3)[:, None, None, None], meta.offsets))
    gram.save_meta(tmp_path / "meta.safetensors", meta, tuner, regulator, clip)
    shared = {
        "clip": str(clip_folder), "stream": ("glyphs:chess",), "tasks": 3, "seeds": (1,), "steps": 1, "batch_size": 6,
        "train_images": 3, "max_test_images": 2, "learning_rate": 1e-6, "meta": str(tmp_path / "meta.safetensors"),
    }  # fmt: skip
    run(Config(**shared, methods=("gram", "gram+null_space", "sequential")), epath.Path(tmp_path))
    last = {
        name: gram.load_prompt(tmp_path / f"prompts/{name}-1.safetensors", clip).prompt["prompts"]
        for name in ("gram", "gram+null_space", "sequential")
    }
    # With hardly any rate, the prompt is the initialization of the last task: theta plus a mixture of 0, 0.1 and 0.2.
    offset = last["gram"] - prompt["prompts"]
    assert 0 < offset.mean() < 0.2
    assert np.ptp(offset) < 1e-4
    assert np.abs(last["gram+null_space"] - last["gram"]).max() > 1e-5
    assert np.abs(last["sequential"] - prompt["prompts"]).max() > 0.1


def test_datasets_one_after_the_other(clip_folder, tmp_path):
    stream = ("glyphs:chess/noise", "glyphs:digits", "glyphs:chess/rotated")
    config = Config(
        clip=str(clip_folder), stream=stream, seeds=(1,), steps=2, batch_size=4, train_images=2, max_test_images=1,
        methods=("nearest_mean", "null_space"),
    )  # fmt: skip
    results = run(config, epath.Path(tmp_path))
    assert {row.step for row in results.rows if row.metric == "accuracy"} == {1, 2, 3}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_runs_on_a_small_copy_of_its_layout(preset, clip_folder, tmp_path):
    tasks = PRESETS[preset]["tasks"]
    rng = np.random.default_rng(0)
    for split in ("train", "val"):  # the layout of the public code: val is tested
        for number in range(tasks):
            folder = tmp_path / "data" / split / f"thing {number:02}"
            folder.mkdir(parents=True)
            for index in range(2):
                pixels = rng.integers(0, 256, size=(12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    config = Config(
        preset=preset, clip=str(clip_folder), stream=(f"folder:{tmp_path / 'data'}",), epochs=1, seeds=(2024,), depth=2,
        methods=("null_space",),
    )  # fmt: skip
    assert config.recipe["eta"] == 0.98
    assert config.recipe["learning_rate"] == 0.001
    results = run(config, epath.Path(tmp_path / "runs"))
    assert max(row.step for row in results.rows if row.metric == "accuracy") == tasks
    told = json.loads((tmp_path / "runs" / "results.json").read_text())["config"]
    assert told["refine_head"] is True


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"methods": ("null_spce",)}, "null_spce.*null_space"),
        ({"methods": ("gram",)}, "--meta"),
        ({"templates": "clip_9"}, "clip_9"),
        ({"refine_head": True, "heads": "linear"}, "--heads=text"),
        ({"num_tokens": 2}, "num_tokens"),
        ({"stream": ()}, "--stream"),
    ],
)
def test_settings_that_do_not_fit_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        Config(**flags)
