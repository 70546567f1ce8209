"""experiments.zero_shot on a clip in a folder, against direct computation."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

import gram_jax as gram
from experiments import zero_shot
from gram_jax import data
from gram_jax.testing import tiny_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    gram.save_clip(tiny_clip(text_context_length=40), folder)
    return str(folder)


def test_accuracy_is_that_of_the_nearest_class(folder, tmp_path):
    template = "a drawing of a {}."
    config = zero_shot.Config(clip=folder, dataset=("glyphs:chess/noise",), template=("own", template), batch_size=50)
    results = zero_shot.run(config, epath.Path(tmp_path))
    clip, dataset = gram.load_clip(folder), data.load_dataset("glyphs:chess/noise")
    test = dataset.select("test")
    images = np.asarray(gram.encode_image(clip, clip.preprocess(dataset.images(test))))
    for row, text in zip(results.rows, (dataset.template, template), strict=True):
        prompts = [text.replace("{}", name) for name in dataset.class_names]
        texts = [np.asarray(gram.encode_text(clip, clip.tokenize([prompt])))[0] for prompt in prompts]
        hits = sum(
            max(range(12), key=lambda k, image=image: float(image @ texts[k])) == dataset.labels[position]
            for image, position in zip(images, test, strict=True)
        )
        assert row.value == pytest.approx(hits / len(test))
        assert (row.dataset, row.domain) == ("glyphs:chess", "noise")
    assert results.environment["weights"] == gram.weights_hash(clip.params)
    assert results.environment["splits"] == {"glyphs:chess/noise": dataset.content_hash}
    assert results.config == dataclasses.asdict(config) | {"datasets": {"glyphs:chess/noise": {}}}


def test_ensemble_is_one_classifier(folder, tmp_path):
    config = zero_shot.Config(clip=folder, dataset=("glyphs:chess",), template=("a {}", "the {}"), ensemble=True)
    (row,) = zero_shot.run(config, epath.Path(tmp_path)).rows
    assert row.method == "zero_shot:ensemble of 2"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset=glyphs:klingon"], "'klingon'"),
        (["--datasett=glyphs:chess"], "dataset"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_line(folder, tmp_path, flags, message):
    command = [sys.executable, "-m", "experiments.zero_shot", f"--workdir={tmp_path}", f"--clip={folder}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"template": ("a photo",)}, ValueError, "--template='a photo'"),
        ({"clip": "/nowhere/at/all"}, FileNotFoundError, "/nowhere/at/all"),
    ],
)
def test_mistakes_are_found_before_any_work(tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        zero_shot.run(zero_shot.Config(**settings), epath.Path(tmp_path))
