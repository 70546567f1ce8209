"""The mini CLIP that ships with the package: size, format and accuracy."""

import os
from pathlib import Path

import numpy as np
import pytest

import gram_jax as gram
from gram_jax import data, evaluation

FOLDER = Path(gram.__file__).parent / "assets" / "mini"


@pytest.fixture(scope="module")
def mini():
    return gram.load_clip("mini")


def accuracy(clip, spec, template=None, images=4):
    dataset = data.load_dataset(spec)
    positions = [i for i in dataset.select("test") if dataset.references[i][2] < images]
    features = evaluation.image_features(clip, dataset.images(positions))
    classes = evaluation.class_features(clip, dataset.class_names, [template or dataset.template])
    return float(np.mean(np.argmax(features @ np.asarray(classes).T, axis=-1) == dataset.labels[positions]))


def test_ships_small_and_as_safetensors():
    assert sum(os.path.getsize(FOLDER / name) for name in os.listdir(FOLDER)) < 8e6
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= set(os.listdir(FOLDER))


def test_transformers_computes_the_same_features(mini):
    torch = pytest.importorskip("torch", reason="the parity of the shipped clip is checked against PyTorch")
    import transformers

    reference = transformers.CLIPModel.from_pretrained(FOLDER, dtype=torch.float32).eval()
    images = mini.preprocess([data.glyphs.pair(i).image for i in range(6)])
    with torch.no_grad():
        features = reference.get_image_features(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    features = getattr(features, "pooler_output", features).numpy()
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    np.testing.assert_allclose(gram.encode_image(mini, images), features, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "at_least"),
    [
        ("glyphs:latin_small", 0.8),
        ("glyphs:greek_small", 0.75),
        ("glyphs:hebrew", 0.75),
        ("glyphs:chess", 0.8),
        ("glyphs:digits", 0.7),
        ("glyphs:greek_small/negative", 0.6),
        ("glyphs:greek_small/noise", 0.5),
        ("glyphs:latin_small/modern", 0.6),
    ],
)
def test_classifies_scripts_renderings_and_unseen_typefaces(mini, spec, at_least):
    assert accuracy(mini, spec) >= at_least


def test_the_template_affects_accuracy(mini):
    specs = ["glyphs:greek_capital", "glyphs:cyrillic_small", "glyphs:armenian_small", "glyphs:digits"]
    fitting = np.mean([accuracy(mini, spec) for spec in specs])
    photo = np.mean([accuracy(mini, spec, "a photo of a {}.") for spec in specs])
    assert fitting > photo + 0.05


def test_captions_are_distinguished(mini):
    """Checks that images are closer to captions with the right colors and renderings than to wrong ones."""
    glyphs = data.glyphs
    draw = glyphs.catalog("latin_small")
    for domain, right, wrong in [
        ("negative", "{}, white on black", "{}, black on white"),
        ("noise", "a noisy scan of {}", "a faded print of {}"),
        ("blur", "a blurred photo of {}", "a noisy scan of {}"),
    ]:
        images = np.stack([glyphs.example(draw, domain, "test", label, 0) for label in range(26)])
        features = np.asarray(gram.encode_image(mini, mini.preprocess(list(images))))
        texts = [
            np.asarray(
                gram.encode_text(
                    mini, mini.tokenize([text.format(f"latin small letter {name}") for name in draw.class_names])
                )
            )
            for text in (right, wrong)
        ]
        nearer = [(features * text).sum(-1) for text in texts]
        assert np.mean(nearer[0] > nearer[1]) > 0.7, domain
