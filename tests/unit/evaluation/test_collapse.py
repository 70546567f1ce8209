"""Neural-collapse measures: closed forms on exact simplex frames, and loops in NumPy."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.evaluation import collapse
from gram_jax.objectives import simplex_etf

N, K, D = 14, 5, 8
LABELS = np.array([0, 0, 0, 1, 1, 3, 3, 3, 3, 4, 4, 4, 0, 1])  # no image of class 2
PRESENT = [0, 1, 3, 4]


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def draw(seed=0):
    """Features in two cones, as CLIP's: logits, images, texts."""
    rng = np.random.default_rng(seed)
    images, texts = unit(rng.normal(size=(N, D)) + 2.0), unit(rng.normal(size=(K, D)) - 1.0)
    return images @ texts.T, images, texts


def loops(logits, images, texts, centered):
    """Every measure from its definition, one class, pair or image at a time."""
    means = {k: np.mean([images[i] for i in range(N) if LABELS[i] == k], axis=0) for k in PRESENT}
    middle = sum(means.values()) / len(means)
    within, between = np.zeros((D, D)), np.zeros((D, D))
    for k, mean in means.items():
        own = [images[i] - mean for i in range(N) if LABELS[i] == k]
        within += sum(np.outer(row, row) for row in own) / len(own) / len(means)
        between += np.outer(mean - middle, mean - middle) / len(means)
    found = {"nc1": np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / len(means)}

    def moved(vectors):
        vectors = np.stack(list(vectors))
        return vectors - vectors.mean(axis=0) if centered else vectors

    def excess(vectors):
        pairs = itertools.permutations(range(len(vectors)), 2)
        return [unit(vectors[i]) @ unit(vectors[j]) + 1 / (len(vectors) - 1) for i, j in pairs]

    def distance(one, other):
        count, gram = len(one), one @ other.T
        frame = np.eye(count) - np.ones((count, count)) / count
        return np.linalg.norm(gram / np.linalg.norm(gram) - frame / np.linalg.norm(frame))

    all_texts, some_texts, image = moved(texts), moved(texts[PRESENT]), moved(means.values())
    for name, vectors in (("text", all_texts), ("image", image)):
        found[f"nc2_{name}_mean"], found[f"nc2_{name}_std"] = np.mean(excess(vectors)), np.std(excess(vectors))
        found[f"simplex_{name}"] = distance(vectors, vectors)
    found["simplex_both"] = distance(some_texts, image)
    grams = [part @ part.T / np.linalg.norm(part @ part.T) for part in (some_texts, image)]
    found["nc3_gram"] = np.linalg.norm(grams[0] - grams[1])
    found["nc3_cosine"] = np.mean([unit(a) @ unit(b) for a, b in zip(some_texts, image, strict=True)])
    nearest = [min(PRESENT, key=lambda k, row=row: np.linalg.norm(row - means[k])) for row in images]
    found["nc4"] = np.mean([a == b for a, b in zip(nearest, np.argmax(logits, axis=1), strict=True)])
    return found


def measure(logits, images, texts, labels=LABELS, mask=None, centered=True):
    arrays = (jnp.asarray(part, jnp.float32) for part in (logits, images, texts))
    found = jax.jit(collapse.neural_collapse, static_argnames="centered")(*arrays, labels, mask, centered=centered)
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize("centered", [True, False])
def test_equals_loops_also_with_images_left_out(centered):
    logits, images, texts = draw()
    expected = loops(logits, images, texts, centered)
    assert measure(logits, images, texts, centered=centered) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    rng = np.random.default_rng(1)
    filled = [np.concatenate([part, rng.normal(size=(3, part.shape[1]))]) for part in (logits, images)]
    labels, mask = np.concatenate([LABELS, [2, 0, -1]]), np.arange(N + 3) < N
    assert measure(*filled, texts, labels, mask, centered) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_text_features_of_an_image_count_by_their_mean():
    logits, images, _ = draw()
    texts = unit(np.random.default_rng(2).normal(size=(N, K, D)))
    mean = unit(texts.mean(axis=0))
    assert measure(logits, images, texts) == pytest.approx(measure(logits, images, mean), rel=1e-4, abs=1e-5)
    filled = [np.concatenate([part, part[:2]]) for part in (logits, images, texts)]
    labels, mask = np.concatenate([LABELS, [2, 2]]), np.arange(N + 2) < N
    found = measure(*filled, labels, mask)
    assert found == pytest.approx(measure(logits, images, mean), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("count", "dim"), [(2, 3), (5, 4), (6, 9)])
def test_exact_frames_have_closed_forms(count, dim):
    # Images at +-s from the vertices, along a direction u of the frame's span. S_B is the projection onto the span
    # over K - 1, so that NC1 = s^2 (K - 1) / K.
    frame, spread = simplex_etf(count, dim, seed=3), 0.1
    labels = np.repeat(np.arange(count), 2)
    images = frame[labels] + spread * np.tile([1.0, -1.0], count)[:, None] * unit(frame[0] - frame[1])
    found = measure(images @ frame.T, images, frame, labels)
    assert found.pop("nc1") == pytest.approx(spread**2 * (count - 1) / count, rel=1e-4)
    assert (found.pop("nc4"), found.pop("nc3_cosine")) == (1.0, pytest.approx(1.0, abs=1e-5))
    assert found == pytest.approx(dict.fromkeys(found, 0.0), abs=1e-5)  # every other measure vanishes


def test_a_cone_around_a_frame_is_one_only_when_centered():
    frame = simplex_etf(4, 3, seed=4)
    cone = np.concatenate([frame, np.full((4, 1), 3.0)], axis=1)  # cosines (9 - 1/3) / 10
    mean, std = collapse.equiangularity(jnp.float32(cone), centered=False)
    assert float(mean) == pytest.approx((9 - 1 / 3) / 10 + 1 / 3, rel=1e-5)
    assert float(std) == pytest.approx(0, abs=1e-5)
    assert float(collapse.simplex_distance(jnp.float32(cone), centered=False)) > 0.5
    assert float(collapse.simplex_distance(jnp.float32(cone))) == pytest.approx(0, abs=1e-5)


def test_a_rotated_frame_is_dual_by_its_gram_matrix_alone():
    one, other = (simplex_etf(5, 7, seed=seed) for seed in (5, 6))
    gram, cosine = collapse.duality(jnp.float32(one), jnp.float32(other))
    assert float(gram) == pytest.approx(0, abs=1e-5)
    assert float(cosine) == pytest.approx(np.mean(np.sum(one * other, axis=1)), abs=1e-5)
    assert float(collapse.simplex_distance(jnp.float32(one), jnp.float32(other))) > 0.5


def test_beyond_the_limit_the_distance_has_the_stated_bound():
    count, dim = 11, 4
    angles = 2 * np.pi * np.arange(count) / count
    tight = np.stack([np.cos(angles), np.sin(angles), np.cos(2 * angles), np.sin(2 * angles)], axis=1)
    bound = np.sqrt(2 - 2 * np.sqrt(dim / (count - 1)))
    assert float(collapse.simplex_distance(jnp.float32(tight))) == pytest.approx(bound, rel=1e-4)
    other = jnp.float32(np.random.default_rng(7).normal(size=(count, dim)))
    assert float(collapse.simplex_distance(other)) > bound


def test_collapsed_images_scatter_nowhere_and_one_class_says_nothing():
    _, images, _ = draw()
    means = np.stack([images[k == LABELS].mean(axis=0) for k in LABELS])
    found = collapse.within_class_variability(jnp.float32(means), LABELS, K)
    assert float(found) == pytest.approx(0, abs=1e-9)
    ones = measure(*(part[:3] for part in draw()[:2]), draw()[2], LABELS[:3])
    undefined = {"nc1", "nc2_image_mean", "nc2_image_std", "simplex_image", "simplex_both"}
    assert {name for name, value in ones.items() if np.isnan(value)} == undefined


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: collapse.class_means(jnp.ones((3, 2)), np.zeros(4, int), 2), r"found \(3, 2\), \(4,\) and None"),
        (lambda: collapse.equiangularity(jnp.ones((3, 2)), np.ones(4, bool)), r"found \(3, 2\) and \(4,\)"),
        (lambda: collapse.simplex_distance(jnp.ones((3, 2)), jnp.ones((3, 4))), r"found \(3, 2\) and \(3, 4\)"),
        (lambda: collapse.duality(jnp.ones((3, 2)), jnp.ones((2, 2))), r"found \(3, 2\) and \(2, 2\)"),
        (
            lambda: collapse.nearest_mean_agreement(jnp.ones((4, 3)), jnp.ones((4, 2)), jnp.ones((5, 2))),
            r"logits \[N, K\], features \[N, D\] and means \[K, D\]",
        ),
    ],
)
def test_misfits_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
