"""The programs on a clip like SigLIP: CoOp and IVLP on a glyph dataset, and prediction with the saved prompts."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

import gram_jax as gram
from gram_jax.data import load_dataset
from gram_jax.testing import tiny_siglip
from tests.system.processes import finish, start

SHOTS = 2
FLAGS = ("--dataset=glyphs:chess", f"--shots={SHOTS}", "--seeds=1", "--steps=4", "--learning_rate=0.05")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random clip whose features have mean 0, or it would call all images by one name, and two images."""
    folder = tmp_path_factory.mktemp("siglip")
    clip = tiny_siglip(text_layers=2, vision_layers=2, text_context_length=32, vision_image_size=24)
    chess = load_dataset("glyphs:chess")
    texts = clip.tokenize([f"a photo of a {name}." for name in chess.class_names])
    images = clip.preprocess(chess.images(chess.select("val")))
    clip.params["text"]["projection_bias"] -= gram.encode_text(clip, texts, normalize=False).mean(0)
    clip.params["vision"]["pool"]["mlp"]["down"]["bias"] -= gram.encode_image(clip, images, normalize=False).mean(0)
    gram.save_clip(clip, folder / "clip")
    (folder / "images").mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
    return folder


@pytest.mark.parametrize("tuner", ["coop(num_tokens=4)", "ivlp(num_text=2,num_visual=2,depth=2,init_text=None)"])
def test_tuning_and_prediction(folder, tuner):
    name, clip = tuner.partition("(")[0], f"--clip={folder / 'clip'}"
    workdir = folder / name
    command = [*FLAGS, clip, f"--tuner={tuner}", "--protocol=few_shot", "--save_prompts"]
    finish(start("evaluate", workdir, *command))
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"zero_shot", "zero_shot:own", name}
    assert all(0 <= row["value"] <= 1 for row in rows)
    prompt = workdir / "prompts" / f"glyphs_chess-few_shot-{SHOTS}-{name}.safetensors"
    own = [f"--images={folder / 'images'}", "--classes_from=glyphs:chess", clip, f"--prompt={prompt}"]
    finish(start("predict", folder / f"predict_{name}", *own))
    with (folder / f"predict_{name}" / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["file"] for line in lines] == ["0.png", "1.png"]
    assert all(line["predicted"] in load_dataset("glyphs:chess").class_names for line in lines)
