"""experiments.build_tasks from pairs to files, on a tiny clip in a folder."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from PIL import Image

import gram_jax as gram
from experiments import build_tasks
from gram_jax.data import glyphs, load_corpus
from gram_jax.tasks import load_hierarchy
from gram_jax.tasks.phrases import words
from gram_jax.testing import tiny_clip

PAIRS = 700


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    gram.save_clip(tiny_clip(text_layers=1, vision_layers=1), folder)
    return str(folder)


@pytest.fixture(scope="module")
def config(folder):
    return build_tasks.Config(clip=folder, pairs=PAIRS, themes=3, classes=30, domains=2, min_members=4, batch_size=128)


@pytest.fixture(scope="module")
def inputs(folder):
    clip, corpus = gram.load_clip(folder), load_corpus(pairs=PAIRS)
    return clip, corpus, build_tasks.embed(clip, corpus, 128)


@pytest.fixture(scope="module")
def workdir(config, inputs, tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("tasks"))
    build_tasks.build(config, workdir, *inputs)
    return workdir


def test_features_are_those_of_the_clip(inputs):
    clip, corpus, (images, texts) = inputs
    for i in (0, 127, 128, PAIRS - 1):
        alone = gram.encode_image(clip, clip.preprocess(corpus.images([i])))[0]
        np.testing.assert_allclose(images[i], alone, atol=1e-5)
        tokens = clip.tokenizer.encode([corpus.captions[i]], truncate=True)
        np.testing.assert_allclose(texts[i], gram.encode_text(clip, tokens)[0], atol=1e-5)
    assert images.shape == texts.shape == (PAIRS, clip.config.embed_dim)


def test_writes_a_hierarchy_a_text_and_a_picture(config, inputs, workdir):
    clip, corpus, (images, _) = inputs
    h = load_hierarchy(workdir / "hierarchy.safetensors", clip=clip)
    assert h.about == build_tasks.describe(config, clip, corpus)
    np.testing.assert_allclose(h.image_features, images[h.members], atol=1e-3)
    for member, number in zip(h.members, h.classes, strict=True):
        assert set(h.texts[number].split()) <= set(words(corpus.captions[member]))
    assert f"{len(h.texts)} classes, {len(h.members)} pairs" in (workdir / "hierarchy.txt").read_text()
    with (workdir / "hierarchy.png").open("rb") as file:
        picture = np.asarray(Image.open(file).convert("RGB"))
    assert picture.shape[1] > 1000
    assert picture.std() > 10


def test_the_same_command_reuses_what_is_there(config, workdir, tmp_path, capsys, monkeypatch):
    before = (workdir / "hierarchy.safetensors").read_bytes()
    monkeypatch.setattr(build_tasks, "embed", lambda *_: pytest.fail("features were computed again"))
    build_tasks.run(config, workdir)
    printed = capsys.readouterr().out
    assert "hierarchy.safetensors exists" in printed
    assert f"of {PAIRS} pairs kept" in printed
    assert (workdir / "hierarchy.safetensors").read_bytes() == before


@pytest.mark.parametrize(("change", "named"), [({"classes": 25}, "settings"), ({"method": "random"}, "method")])
def test_other_settings_are_built_again(config, inputs, workdir, tmp_path, capsys, change, named):
    here = epath.Path(tmp_path)
    here.joinpath("hierarchy.safetensors").write_bytes((workdir / "hierarchy.safetensors").read_bytes())
    h = build_tasks.build(dataclasses.replace(config, **change), here, *inputs)
    assert f"has another {named}" in capsys.readouterr().out
    assert h.about["method"] == change.get("method", "clusters")
    assert load_hierarchy(here / "hierarchy.safetensors").about == h.about


def test_a_damaged_file_is_built_again(config, inputs, workdir, tmp_path, capsys):
    here = epath.Path(tmp_path)
    whole = (workdir / "hierarchy.safetensors").read_bytes()
    here.joinpath("hierarchy.safetensors").write_bytes(whole[:-9])
    build_tasks.build(config, here, *inputs)
    assert "building again: " in capsys.readouterr().out
    assert here.joinpath("hierarchy.safetensors").read_bytes() == whole  # and to the same bytes


def test_true_groups_are_an_upper_bound(config, inputs, tmp_path):
    groups = dataclasses.replace(config, method="true_groups", min_members=2)
    h = build_tasks.build(groups, epath.Path(tmp_path), *inputs)
    assert h.about["method"] == "groups"
    for member, number in zip(h.members, h.classes, strict=True):
        character = glyphs.pair(int(member)).character
        assert (h.texts[number], h.theme_texts[h.themes[number]]) == (character.short, character.family)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 700, "pairs": 600}, "--classes=700 of --pairs=600"),
        ({"method": "true_groups", "class_text": "medoid"}, "--class_text=medoid"),
        ({"method": "true_groups", "corpus": "laion"}, "--method=true_groups.*'laion'"),
        ({"domains": 0}, "domains=0"),
        ({"sample": 0}, "sample=0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        build_tasks.Config(**settings)


def test_an_error_is_one_line(folder, tmp_path):
    flags = [f"--workdir={tmp_path}", f"--clip={folder}", "--corpus=laion"]
    command = [sys.executable, "-m", "experiments.build_tasks", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "laion" in done.stderr
    assert "Traceback" not in done.stderr
