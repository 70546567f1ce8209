"""The forms that each tuner can be exported in, and their agreement with the scorer; a new tuner adds a row."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from gram_jax import encode_image, export, tuners
from gram_jax.errors import InputError
from gram_jax.evaluation import make_scorer
from gram_jax.io import read_json
from gram_jax.testing import tiny_clip
from tests.contract.test_tuners import ROWS as TUNERS

NAMES = ["cat", "small_dog", "large green frog"]
ALL = ("stablehlo", "onnx", "folder")
ROWS = {
    "coop": ALL,
    "coop-per-class": ALL,
    "text-deep": ALL,
    "vpt": ("stablehlo", "onnx"),
    "vpt-deep": ("stablehlo", "onnx"),
    "vpt-kv": ("stablehlo", "onnx"),
    "vpt-kv-last": ("stablehlo", "onnx"),
    "ivlp": ("stablehlo", "onnx"),
    "maple": ("stablehlo", "onnx"),
    "upt": ("stablehlo", "onnx"),
    "adaptive": ("stablehlo", "onnx"),
    "dpt": ("stablehlo", "onnx"),
    "cocoop": ("stablehlo",),  # the text transformer runs for each image
}
WRITERS = {"stablehlo": export.save_stablehlo, "onnx": export.save_onnx, "folder": export.save_folder}


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(text_layers=2, vision_layers=2, vision_width=24, vision_mlp_width=24, text_mlp_width=24)


@pytest.fixture(scope="module", params=ROWS)
def case(request, clip, images):
    name, settings = TUNERS[request.param]
    tuner = tuners.make(name, **settings)
    prompt = tuner.init(jax.random.key(0), clip, clip.class_tokens(NAMES))
    # Away from the initialization, which may be zero-shot.
    moved = jax.tree.map(lambda leaf: 2 * leaf + 0.1 * np.cos(np.arange(leaf.size)).reshape(leaf.shape), prompt)
    scorer = make_scorer(tuner, moved, clip, NAMES)
    return request.param, scorer, np.asarray(scorer(images))


@pytest.fixture(scope="module")
def images(clip):
    size = clip.config.vision.image_size
    return np.random.default_rng(0).normal(size=(3, size, size, 3)).astype(np.float32)


def test_stablehlo_is_the_scorer(case, images, tmp_path):
    row, scorer, expected = case
    assert "stablehlo" in ROWS[row]
    export.save_stablehlo(tmp_path, scorer)
    exported = export.load_exported(tmp_path)
    assert exported.class_names == tuple(NAMES)
    np.testing.assert_allclose(exported(images), expected, atol=1e-5)
    assert "batch" in str(exported.program.in_avals[0])


def test_onnx_runtime_is_the_scorer(case, images, tmp_path):
    pytest.importorskip("onnx", reason="the ONNX export needs onnx")
    runtime = pytest.importorskip("onnxruntime", reason="runs the exported graph")
    row, scorer, expected = case
    if "onnx" not in ROWS[row]:
        with pytest.raises(InputError, match=f"{scorer.tuner.name}.*ONNX.*stablehlo"):
            export.save_onnx(tmp_path, scorer)
        assert not list(tmp_path.iterdir())
        return
    export.save_onnx(tmp_path, scorer)
    session = runtime.InferenceSession(tmp_path / "classifier.onnx")
    for count in (1, 3):
        (found,) = session.run(None, {"pixel_values": images[:count].transpose(0, 3, 1, 2)})
        np.testing.assert_allclose(found, expected[:count], atol=1e-5)


def test_text_features_are_the_scorer(case, images, tmp_path):
    row, scorer, expected = case
    if "folder" not in ROWS[row]:
        with pytest.raises(InputError, match=f"{scorer.tuner.name}.*stablehlo"):
            export.save_folder(tmp_path, scorer)
        assert not list(tmp_path.iterdir())
        return
    export.save_folder(tmp_path, scorer)
    texts = np.float64(load_file(tmp_path / "text_features.safetensors")["text_features"])
    scale = read_json(tmp_path / "classifier.json")["logit_scale"]
    scores = np.exp(scale * np.float64(encode_image(scorer.clip, images)) @ texts.T)
    np.testing.assert_allclose(scores / scores.sum(1, keepdims=True), expected, atol=1e-5)


def test_every_tuner_has_a_row():
    assert ROWS.keys() == TUNERS.keys()
