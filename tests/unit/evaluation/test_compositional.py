"""The bias sweep against a direct NumPy loop over every score, and closed forms."""

import itertools

import numpy as np
import pytest

from gram_jax.errors import InputError
from gram_jax.evaluation import compositional


def brute_force(scores, labels, seen, candidates, pairs, bins):
    """The algorithm as it is described: whole score matrices, an argmax for every bias."""
    masked = np.where(candidates, np.float64(scores), -1e10)

    def predict(bias):
        return np.array([int(np.argmax(row + bias * ~seen)) for row in masked])

    is_seen = np.array([seen[label] for label in labels])
    top = predict(1e3)
    lost = []
    for row, label, found in zip(np.float64(scores), labels, top, strict=True):
        if not seen[label] and found == label:
            lost.append(max(row[p] for p in range(len(seen)) if seen[p]) - row[label] - 1e-4)
    lost.sort()
    biases = [*(lost if bins is None else lost[:: max(len(lost) // bins, 1)]), 1e3]
    curve = []
    for bias in biases:
        right = predict(bias) == labels
        curve.append((right[is_seen].mean(), right[~is_seen].mean()))
    area = sum((a[0] + b[0]) / 2 * (b[1] - a[1]) for a, b in itertools.pairwise(curve))
    harmonic = max(2 * s * u / (s + u) if s + u else 0.0 for s, u in curve)
    plain = predict(0.0)
    parts = [np.mean([pairs[p][side] == pairs[y][side] for p, y in zip(plain, labels, strict=True)]) for side in (0, 1)]
    return [max(s for s, _ in curve), max(u for _, u in curve), harmonic, area, *parts], biases


def drawn(seed, images=150, attributes=5, objects=4):
    rng = np.random.default_rng(seed)
    pairs = np.array([(a, o) for a in range(attributes) for o in range(objects)])
    seen, candidates = rng.random(len(pairs)) < 0.5, rng.random(len(pairs)) < 0.8
    seen[:2] = True, False
    candidates |= seen
    candidates[1] = True
    labels = rng.choice(np.flatnonzero(candidates), images)
    scores = rng.normal(size=(images, len(pairs))).astype(np.float32)
    scores[np.arange(images), labels] += 1.5
    scores[:, seen] += 0.7
    return scores, labels, seen, candidates, pairs


def reduce(scores, labels, seen, candidates):
    halves = np.array_split(np.arange(len(labels)), 2)
    return compositional.join_scores(
        [compositional.image_scores(scores[at], labels[at], seen, candidates) for at in halves]
    )


@pytest.mark.parametrize("bins", [20, 3, None])
@pytest.mark.parametrize("seed", range(3))
def test_the_sweep_equals_a_loop_over_all_scores(seed, bins):
    scores, labels, seen, candidates, pairs = drawn(seed)
    found, curve = compositional.measure(reduce(scores, labels, seen, candidates), pairs, bins)
    expected, biases = brute_force(scores, labels, seen, candidates, pairs, bins)
    np.testing.assert_allclose(curve.bias, biases, atol=1e-6)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert len(curve.bias) > 3


def test_perfect_scores_lose_one_unseen_image_at_each_bias():
    count = 8
    seen, pairs = np.arange(2 * count) < count, np.stack([np.arange(2 * count)] * 2, axis=1)
    labels, every = np.arange(2 * count), np.ones(2 * count, bool)
    scores = np.diag(np.where(seen, 1.0, 2.0 + labels)).astype(np.float32)
    found, curve = compositional.measure(reduce(scores, labels, seen, every), pairs, None)
    kept = np.arange(count) / count
    np.testing.assert_allclose(curve.unseen, [*kept, 1.0])
    np.testing.assert_allclose(curve.seen, [1.0] * count + [0.0])
    most = (count - 1) / count
    np.testing.assert_allclose(found, [1.0, 1.0, 2 * most / (1 + most), most + 0.5 / count, 1.0, 1.0])


def test_scores_without_a_right_answer_have_no_area():
    seen, pairs = np.array([True, True, False, False]), np.array([[0, 0], [1, 1], [0, 1], [1, 0]])
    swapped = np.eye(4, dtype=np.float32)[[1, 0, 3, 2]]
    worst, curve = compositional.measure(reduce(swapped, np.arange(4), seen, np.ones(4, bool)), pairs)
    assert worst == (0.0,) * 6
    assert curve.bias.tolist() == [1e3]


def test_an_infeasible_pair_is_never_answered_and_the_best_threshold_wins():
    scores, labels, seen, _, pairs = drawn(0)
    feasible = np.where(seen, 1.0, np.linspace(-1, 0.9, len(seen)))
    tried = compositional.thresholds(feasible, seen)
    assert (len(tried), tried[0], tried[-1]) == (50, feasible[~seen].min(), feasible[~seen].max())
    reduced = [reduce(scores, labels, seen, seen | (feasible >= each)) for each in tried]
    areas = [brute_force(scores, labels, seen, seen | (feasible >= each), pairs, 20)[0][3] for each in tried]
    assert compositional.calibrate(tried, reduced, pairs) == tried[int(np.argmax(areas))]
    last = compositional.predicted_pairs(reduced[-1], 1e3)
    assert set(last) == set(np.flatnonzero(~seen & (feasible >= tried[-1])))


def test_a_curve_needs_both_kinds_of_images():
    scores, labels, seen, candidates, _ = drawn(1)
    for kept, kind in ((seen[labels], "unseen"), (~seen[labels], "seen")):
        with pytest.raises(InputError, match=f"no image has {kind}"):
            compositional.bias_curve(reduce(scores[kept], labels[kept], seen, candidates))
