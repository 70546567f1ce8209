"""Zero-shot features and the linear probe, against direct computation and SciPy."""

import numpy as np
import pytest
import scipy.optimize

from gram_jax import encode_classes, encode_image, evaluation
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
    with pytest.raises(ValueError, match="no template was given"):
        evaluation.class_features(clip, names, [])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_batches_do_not_matter(clip, batch_size):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (12, 12, 3), dtype=np.uint8) for _ in range(7)]
    expected = encode_image(clip, clip.preprocess(images))
    np.testing.assert_allclose(evaluation.image_features(clip, images, batch_size), expected, atol=1e-6)
    with pytest.raises(ValueError, match="0 images in batches"):
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
    found = evaluation.linear_probe(features, labels, queries, 3, decay=1e-2)
    assert np.mean(found == expected) > 0.98


def test_linear_probe_refuses():
    with pytest.raises(ValueError, match="2 features and 1 labels"):
        evaluation.linear_probe(np.eye(2), np.array([0]), np.eye(2), 2)
    with pytest.raises(ValueError, match="labels run from 0 to 4"):
        evaluation.linear_probe(np.eye(2), np.array([0, 4]), np.eye(2), 2)


def test_two_classes_may_have_one_name(clip):
    found = evaluation.class_features(clip, ["sunglasses", "tench", "sunglasses"], ["a photo of a {}."])
    np.testing.assert_array_equal(found[0], found[2])
    assert not np.allclose(found[0], found[1])
