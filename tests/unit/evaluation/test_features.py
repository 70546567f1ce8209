"""Features of classes and of images, and a linear probe on features, against direct computation and SciPy."""

import numpy as np
import pytest
import scipy.optimize

from gram_jax import encode_classes, encode_image, encode_text, evaluation
from gram_jax.testing import tiny_clip


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


def test_ensemble_is_the_normalized_mean(clip):
    templates = ["a photo of a {}.", "a drawing of the {}"]
    names = ["cat", "small_dog", "fish"]
    each = [np.asarray(encode_classes(clip, clip.class_tokens(names, template))) for template in templates]
    mean = np.mean(each, axis=0)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(evaluation.class_features(clip, names, templates), expected, atol=1e-6)
    with pytest.raises(ValueError, match="templates"):
        evaluation.class_features(clip, names, [])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_batches_do_not_matter(clip, batch_size):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (12, 12, 3), dtype=np.uint8) for _ in range(7)]
    expected = encode_image(clip, clip.preprocess(images))
    np.testing.assert_allclose(evaluation.image_features(clip, images, batch_size), expected, atol=1e-6)
    with pytest.raises(ValueError, match="images"):
        evaluation.image_features(clip, [])


def test_linear_probe_finds_the_minimum_that_scipy_finds():
    rng = np.random.default_rng(1)
    centers = rng.normal(size=(3, 4))
    labels = np.repeat(np.arange(3), 20)
    features = centers[labels] + rng.normal(size=(60, 4))
    queries = centers.repeat(30, axis=0) + rng.normal(size=(90, 4))

    def loss(flat):
        kernel, bias = flat[:12].reshape(4, 3), flat[12:]
        logits = features @ kernel + bias
        fit = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(60), labels])
        return fit + 0.5 * 1e-2 * np.sum(kernel**2)

    best = scipy.optimize.minimize(loss, np.zeros(15), method="BFGS").x
    expected = np.argmax(queries @ best[:12].reshape(4, 3) + best[12:], axis=1)
    probe = evaluation.baselines.linear_probe(strength=1 / (1e-2 * 60))
    state = probe.fit(None, ["a", "b", "c"], features, labels)
    found = np.argmax(np.asarray(probe.apply(state, None, queries)), axis=1)
    assert np.mean(found == expected) > 0.98


def test_two_classes_may_have_one_name(clip):
    found = evaluation.class_features(clip, ["sunglasses", "tench", "sunglasses"], ["a photo of a {}."])
    np.testing.assert_array_equal(found[0], found[2])
    assert not np.allclose(found[0], found[1])


def test_averaged_features_are_normalized_last(clip):
    templates, names = ["a photo of a {}.", "a drawing of the {}"], ["cat", "small_dog", "fish"]
    each = [
        np.asarray(
            encode_text(clip, clip.tokenize([t.replace("{}", n.replace("_", " ")) for n in names]), normalize=False)
        )
        for t in templates
    ]
    mean = np.mean(each, axis=0)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(evaluation.averaged_class_features(clip, names, templates), expected, atol=1e-6)
