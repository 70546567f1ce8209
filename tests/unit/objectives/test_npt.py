"""Neural-collapse objectives against loops in NumPy, closed forms on exact frames, and their limit of existence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.objectives import Reference, class_clusters, cpt, npt, simplex_etf, simplex_floor
from gram_jax.tuners import Outputs

IMAGES, CLASSES, EMBED = 9, 5, 7
LABELS = np.array([0, 0, 1, 3, 3, 3, 4, 0, 1])  # no image of class 2
CLUSTERS = np.array([0, 1, 0, 2, 0])


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def draw(seed=0):
    rng = np.random.default_rng(seed)
    return tuple(unit(rng.normal(size=(count, EMBED))) for count in (IMAGES, CLASSES, CLASSES))


def outputs(images, texts):
    return Outputs(None, None if images is None else jnp.float32(images), jnp.float32(texts))


def value(regularizers, name, found, labels=LABELS, reference=None):
    return float(jax.jit(regularizers[name].function)({}, found, labels, reference or Reference()))


def collapse(texts):
    count = len(texts)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    return sum((texts[i] @ texts[j] + 1 / (count - 1)) ** 2 for i, j in pairs) / (count * (count - 1))


def test_npt_equals_a_loop():
    images, texts, _ = draw()
    means = {k: unit(np.mean([images[b] for b in range(IMAGES) if LABELS[b] == k], axis=0)) for k in set(LABELS)}
    apart = np.mean([np.sum((means[k] - texts[k]) ** 2) for k in means])
    assert value(npt(), "npt_text", outputs(images, texts)) == pytest.approx(collapse(texts), rel=1e-5)
    assert value(npt(), "npt_image", outputs(images, texts)) == pytest.approx(apart, rel=1e-5)


def test_centered_npt_equals_a_loop():
    images, texts, _ = draw(1)
    texts = unit(texts + 3 * texts[0])  # a narrow cone
    found = outputs(images, texts)
    around = unit(texts - texts.mean(axis=0))
    assert value(npt(centered=True), "npt_text", found) == pytest.approx(collapse(around), rel=1e-4)
    present = sorted(set(LABELS))
    means = np.stack([images[k == LABELS].mean(axis=0) for k in present])
    own = texts[present]
    apart = unit(means - means.mean(axis=0)) - unit(own - own.mean(axis=0))
    assert value(npt(centered=True), "npt_image", found) == pytest.approx(np.mean(np.sum(apart**2, axis=1)), rel=1e-4)


def test_text_features_of_an_image_equal_a_loop():
    rng = np.random.default_rng(2)
    images, texts = unit(rng.normal(size=(IMAGES, EMBED))), unit(rng.normal(size=(IMAGES, CLASSES, EMBED)))
    found = outputs(images, texts)
    expected = np.mean([collapse(own) for own in texts])
    assert value(npt(), "npt_text", found) == pytest.approx(expected, rel=1e-5)
    apart = []
    for k in sorted(set(LABELS)):
        own = [b for b in range(IMAGES) if LABELS[b] == k]
        mean, text = (unit(np.mean([part[b] for b in own], axis=0)) for part in (images, texts[:, k]))
        apart.append(np.sum((mean - text) ** 2))
    assert value(npt(), "npt_image", found) == pytest.approx(np.mean(apart), rel=1e-5)
    distance = [np.sum((images[b] - texts[b, LABELS[b]]) ** 2) for b in range(IMAGES)]
    expected = np.mean([np.mean([distance[b] for b in range(IMAGES) if LABELS[b] == k]) for k in set(LABELS)])
    assert value(cpt(), "cpt_convergence", found) == pytest.approx(expected, rel=1e-5)


def test_cpt_equals_its_formula():
    images, texts, frozen = draw(3)
    reference = Reference(text_features=jnp.float32(frozen), clusters=jnp.asarray(CLUSTERS))
    as_written, constant = 0.0, 0.0
    for cluster in range(3):
        own = texts[cluster == CLUSTERS]
        count = len(own)
        if count > 1:
            wanted = (np.ones((count, count)) - np.eye(count)) / (count - 1)
            as_written += np.linalg.norm(own @ own.T + wanted, "fro") ** 2 / 3
            constant += count / 3
    found = outputs(images, texts)
    assert value(cpt(), "cpt_simplex", found, None, reference) == pytest.approx(as_written - constant, rel=1e-5)
    near = np.mean([np.mean(np.sum((images[k == LABELS] - texts[k]) ** 2, axis=1)) for k in sorted(set(LABELS))])
    assert value(cpt(), "cpt_convergence", found) == pytest.approx(near, rel=1e-5)
    turned = np.mean([np.abs(texts[k] - frozen[k]).sum() for k in range(CLASSES)])
    assert value(cpt(), "cpt_rotation", found, None, reference) == pytest.approx(turned, rel=1e-5)


@pytest.mark.parametrize(("count", "dim"), [(2, 1), (3, 2), (5, 5), (5, 9), (8, 7)])
def test_the_frame_is_one_and_costs_nothing(count, dim):
    frame = simplex_etf(count, dim, seed=1)
    wanted = np.eye(count) * (1 + 1 / (count - 1)) - 1 / (count - 1)
    np.testing.assert_allclose(frame @ frame.T, wanted, atol=1e-12)
    np.testing.assert_allclose(frame.sum(axis=0), 0, atol=1e-12)
    labels = np.arange(count)
    found = outputs(2.5 * frame, frame)
    for name in ("npt_text", "npt_image"):
        assert abs(value(npt(), name, found, labels)) < 1e-6
        assert abs(value(npt(centered=True), name, found, labels)) < 1e-6


def test_frames_of_clusters_cost_nothing():
    texts = np.concatenate([simplex_etf(3, EMBED, seed=1), simplex_etf(2, EMBED, seed=2)])
    reference = Reference(clusters=jnp.array([0, 0, 0, 1, 1]))
    assert abs(value(cpt(), "cpt_simplex", outputs(None, texts), None, reference)) < 1e-6
    assert value(npt(), "npt_text", outputs(None, texts)) > 0.01


def test_beyond_the_limit_the_least_value_is_0():
    count, dim = 11, 4
    with pytest.raises(ValueError, match="11 classes in 4 dimensions"):
        simplex_etf(count, dim)
    # A centered tight frame of equal norm: turns of a circle in each of two planes.
    angles = 2 * np.pi * np.arange(count) / count
    tight = np.stack([np.cos(angles), np.sin(angles), np.cos(2 * angles), np.sin(2 * angles)], axis=1) / np.sqrt(2)
    assert float(simplex_floor(count, dim)) == pytest.approx(collapse(tight), rel=1e-5)
    assert abs(value(npt(), "npt_text", outputs(None, tight))) < 1e-6
    one_cluster = Reference(clusters=jnp.zeros(count, int))
    assert abs(value(cpt(), "cpt_simplex", outputs(None, tight), None, one_cluster)) < 1e-4
    rng = np.random.default_rng(5)
    for _ in range(20):
        assert value(npt(), "npt_text", outputs(None, unit(rng.normal(size=(count, dim))))) > 0


def test_the_floor_is_that_of_thousand_classes_and_0_up_to_the_limit():
    # At least K^2 / d - K for the squared cosines of different classes, and K / (K - 1) less for the loss.
    assert float(simplex_floor(1000, 512)) * 1000 * 999 == pytest.approx(1000**2 / 512 - 1000 - 1000 / 999, rel=1e-5)
    assert simplex_floor(np.array([0, 1, 2, 512, 513]), 512).tolist() == [0] * 5


@pytest.mark.parametrize("regularizers", [npt(), npt(centered=True), cpt()])
def test_one_class_has_no_frame_to_be_far_from(regularizers):
    found, reference = outputs(np.eye(3)[:2], np.eye(3)[:1]), Reference(clusters=jnp.zeros(1, int))
    name = "cpt_simplex" if "cpt_simplex" in regularizers else "npt_text"
    assert value(regularizers, name, found, np.array([0, 0]), reference) == 0


def test_clusters_are_those_of_the_features():
    rng = np.random.default_rng(6)
    group = np.repeat([0, 1, 2], [5, 3, 4])
    features = unit(np.eye(3, EMBED)[group] + 0.05 * rng.normal(size=(12, EMBED)))
    found = class_clusters(features)  # 12 classes: 3 clusters
    assert found.dtype == np.int32
    assert len({(a, b) for a, b in zip(group, found, strict=True)}) == 3 == len(set(found))
    np.testing.assert_array_equal(found, class_clusters(jnp.float32(features), 3))
    assert set(class_clusters(features[:2])) == {0}


@pytest.mark.parametrize("num_clusters", [0, 13, 2.0, True])
def test_an_impossible_number_of_clusters_is_refused(num_clusters):
    with pytest.raises(ValueError, match=f"num_clusters={num_clusters}"):
        class_clusters(np.ones((12, 3)), num_clusters)


def test_features_without_classes_are_refused():
    with pytest.raises(ValueError, match=r"\[3\]"):
        class_clusters(np.ones(3))
