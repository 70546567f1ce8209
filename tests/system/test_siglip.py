"""The programs on a clip like SigLIP: zero-shot, CoOp and IVLP, prediction with a saved prompt."""

from __future__ import annotations

import json

import pytest

import gram_jax as gram
from gram_jax.testing import tiny_siglip
from tests.system.processes import finish, start

FLAGS = ("--dataset=glyphs:chess", "--shots=1", "--seeds=1", "--steps=3", "--learning_rate=0.05", "--save_prompts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip")
    clip = tiny_siglip(text_layers=2, vision_layers=2, text_context_length=32, vision_image_size=24)
    gram.save_clip(clip, folder / "clip")
    return folder


@pytest.mark.parametrize("tuner", ["coop(num_tokens=4)", "ivlp(num_text=2,num_visual=2,depth=2,init_text=None)"])
def test_evaluate(folder, tuner):
    workdir = folder / tuner.partition("(")[0]
    finish(start("evaluate", workdir, *FLAGS, f"--clip={folder / 'clip'}", f"--tuner={tuner}"))
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    values = {row["method"] for row in rows}
    assert len(values) >= 2  # the zero-shot classifier, and the tuner
    assert all(0 <= row["value"] <= 100 for row in rows if row["metric"] in ("accuracy", "base", "new", "H"))


def test_zero_shot_and_predict(folder):
    finish(start("zero_shot", folder / "zero", "--dataset=glyphs:chess", f"--clip={folder / 'clip'}"))
    assert (folder / "zero" / "results.json").exists()
