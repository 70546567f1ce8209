"""From photos in folders to a classifier, to three exports, to predictions in fresh processes that agree."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

import gram_jax as gram
from experiments import export, predict
from gram_jax.errors import InputError
from gram_jax.testing import tiny_clip
from tests.unit.test_classifier import photos

FORMATS = ("stablehlo", "onnx", "folder")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photos, a clip, a saved classifier, its exports, and what experiments.predict says."""
    place = tmp_path_factory.mktemp("house")
    gram.save_clip(tiny_clip(seed=2, text_layers=1, vision_layers=2, text_context_length=24), place / "clip")
    images, labels = photos(4)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (place / "photos" / label).mkdir(exist_ok=True, parents=True)
        Image.fromarray(image).save(place / "photos" / label / f"{number:02d}.png")
    model = gram.PromptClassifier(str(place / "clip"), learning_rate=1.0, steps=5, verbose=False)
    model.fit(place / "photos").save(place / "colors.safetensors")
    (place / "predict").mkdir()
    config = predict.Config(
        images=str(place / "photos"), prompt=str(place / "colors.safetensors"), clip=str(place / "clip")
    )
    predict.run(config, epath.Path(place / "predict"))
    return place


@pytest.fixture(scope="module")
def files(place):
    return sorted((place / "photos").rglob("*.png"))


@pytest.fixture(scope="module")
def expected(place, files):
    """The probabilities of experiments.predict, columns in the order of the classes."""
    with open(place / "predict" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [path.relative_to(place / "photos").as_posix() for path in files]
    names = ["dark red", "green", "light blue"]
    ranked = [{row[f"top_{k}"]: float(row[f"probability_{k}"]) for k in (1, 2, 3)} for row in rows]
    return np.array([[row[name] for name in names] for row in ranked])


@pytest.fixture(scope="module")
def exported(place):
    pytest.importorskip("onnx", reason="the ONNX export needs onnx")
    config = export.Config(prompt=str(place / "colors.safetensors"), format=FORMATS)  # clip and classes are in the file
    export.run(config, epath.Path(place / "exports"))
    return place / "exports"


def test_the_classifier_in_a_fresh_process(place, files, expected):
    code = (
        "import sys, json, gram_jax as gram; model = gram.PromptClassifier.load(sys.argv[1]); "
        "print(json.dumps(model.predict_proba(sys.argv[2:]).tolist()))"
    )
    command = [sys.executable, "-c", code, place / "colors.safetensors", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    np.testing.assert_allclose(json.loads(done.stdout), expected, atol=1e-4)


def test_stablehlo_needs_jax_only(exported, files, expected):
    loaded = gram.load_exported(exported / "stablehlo")
    np.testing.assert_allclose(loaded(loaded.preprocess(files)), expected, atol=1e-4)
    for wrong in (
        np.zeros((2, 13, 12, 3), np.float32),
        np.zeros((0, 12, 12, 3), np.float32),
        np.zeros((2, 12, 12, 3), int),
    ):
        with pytest.raises(InputError, match=re.escape(str(list(wrong.shape)))):
            loaded(wrong)
    # Without this package.
    np.save(exported / "pixels.npy", loaded.preprocess(files))
    code = (
        "import sys, json, numpy as np\n"
        "from jax import export\n"
        "program = export.deserialize(bytearray(open(sys.argv[1], 'rb').read()))\n"
        "print(json.dumps(np.asarray(program.call(np.load(sys.argv[2]))).tolist()))\n"
        "assert 'gram_jax' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, exported / "stablehlo" / "classifier.stablehlo", exported / "pixels.npy"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    np.testing.assert_allclose(json.loads(done.stdout), expected, atol=1e-4)


def test_onnx_with_the_image_processor_of_transformers(exported, files, expected):
    runtime = pytest.importorskip("onnxruntime", reason="runs the exported graph")
    pytest.importorskip("torch", reason="transformers imports it for its image processor")
    from transformers import CLIPImageProcessorPil

    card = json.loads((exported / "onnx" / "classifier.json").read_text())
    processor = CLIPImageProcessorPil(**card["preprocessing"])
    pixels = processor([Image.open(path) for path in files], return_tensors="np")["pixel_values"]
    session = runtime.InferenceSession(exported / "onnx" / "classifier.onnx")
    np.testing.assert_allclose(session.run(None, {"pixel_values": pixels})[0], expected, atol=1e-4)
    assert session.get_modelmeta().custom_metadata_map["gram_jax"] == json.dumps(card)
    with pytest.raises(Exception, match=r"(?i)invalid.*dimensions"):
        session.run(None, {"pixel_values": pixels[..., :11]})


def test_the_script_of_the_folder(exported, place, files, expected):
    pytest.importorskip("torch", reason="the script runs PyTorch")
    page = (exported / "folder" / "README.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(script.splitlines()) <= 16
    (exported / "folder" / "classify.py").write_text(script)
    command = [sys.executable, "classify.py", place / "clip", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=exported / "folder")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == list(map(str, files))
    np.testing.assert_allclose([list(map(float, row[2:])) for row in rows], expected, atol=1e-4)


def test_what_cannot_be_exported_is_named(place, tmp_path):
    prompt = str(place / "colors.safetensors")
    for settings, message in (
        ({"prompt": prompt, "format": ("onxx",)}, "did you mean 'onnx'"),
        ({"format": ("onnx",)}, "--classes"),
        ({"prompt": prompt, "classes": ("a", "b"), "classes_file": "x"}, "--classes and --classes_file"),
        ({"prompt": prompt, "format": ()}, "--format is empty"),
    ):
        with pytest.raises(InputError, match=message):
            export.Config(**settings)
    clip, tuner = gram.load_clip(place / "clip"), gram.tuners.vpt(num_tokens=2)
    gram.save_prompt(tmp_path / "vpt", tuner.init(jax.random.key(0), clip, None), tuner, clip)
    with pytest.raises(InputError, match="holds no class names"):
        export.run(export.Config(prompt=str(tmp_path / "vpt")), epath.Path(tmp_path))
    settings = {"prompt": str(tmp_path / "vpt"), "classes": ("cat", "dog"), "clip": str(place / "clip")}
    with pytest.raises(InputError, match="--format=folder: vpt"):
        export.run(export.Config(**settings, format=("folder", "stablehlo")), epath.Path(tmp_path))
    assert (tmp_path / "stablehlo" / "classifier.stablehlo").exists()
    with pytest.raises(FileNotFoundError, match=r"classifier\.stablehlo"):
        gram.load_exported(tmp_path)
    damaged = tmp_path / "stablehlo" / "classifier.stablehlo"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(InputError, match="not a complete program"):
        gram.load_exported(tmp_path / "stablehlo")
