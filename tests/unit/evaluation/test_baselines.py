"""Points of comparison that learn no prompt, against NumPy, scikit-learn and PyTorch."""

from __future__ import annotations

import inspect
import json

import jax
import numpy as np
import pytest

from gram_jax.clip import encode_text
from gram_jax.data import coop
from gram_jax.data.readers.coop_datasets import TipSettings
from gram_jax.data.templates import ensemble as published
from gram_jax.evaluation import baselines

NAMES = ["cat", "small dog", "fish"]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def draw(count, seed, noise=0.6):
    """Labeled features around three directions."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    return np.float32(unit(np.eye(3, 16)[labels] + noise * rng.normal(size=(count, 16)))), labels


def texts(clip, templates):
    """The mean over templates, one class and template at a time."""
    rows = []
    for name in NAMES:
        ids = [clip.tokenize([template.format(name)]) for template in templates]
        rows.append(unit(np.mean([unit(np.float64(encode_text(clip, row)[0])) for row in ids], axis=0)))
    return np.stack(rows)


@pytest.fixture(scope="module")
def scale(clip):
    return np.exp(np.float64(clip.params["logit_scale"]))


@pytest.mark.parametrize("name", baselines.NAMES)
def test_every_baseline_keeps_the_contract(name, clip):
    given = {"linear_probe": {"strength": 1.0}, "tip_adapter": {"alpha": 1.0, "beta": 5.5}}.get(name, {})
    baseline = baselines.make(name, **given)
    settings = json.loads(json.dumps(dict(baseline.settings)))
    assert list(settings) == list(inspect.signature(getattr(baselines, name)).parameters)
    again = baselines.make(name, **settings)
    support, labels = draw(9, 0)
    states = [one.fit(clip, NAMES, support, labels) for one in (baseline, again)]
    queries = draw(5, 1)[0]
    found = [np.asarray(baseline.apply(state, clip, queries)) for state in states]
    assert (found[0].shape, found[0].dtype) == ((5, 3), np.float32)
    np.testing.assert_array_equal(*found)
    np.testing.assert_allclose(jax.jit(baseline.apply)(states[0], clip, queries), found[0], atol=1e-4)
    if baseline.needs_labels:
        with pytest.raises(ValueError, match="labeled image features"):
            baseline.fit(clip, NAMES, None, None)
    else:
        baseline.fit(clip, NAMES, None, None)


def test_texts_alone_equal_numpy(clip, scale):
    queries = draw(5, 1)[0]
    for baseline, templates in (
        (baselines.hand_crafted("a drawing of a {}."), ["a drawing of a {}."]),
        (baselines.ensemble(["a photo of a {}.", "{}"]), ["a photo of a {}.", "{}"]),
        (baselines.ensemble(), published("clip_7")),
    ):
        found = baseline.apply(baseline.fit(clip, NAMES, None, None), clip, queries)
        np.testing.assert_allclose(found, scale * queries @ texts(clip, templates).T, atol=2e-4)


def test_the_linear_probe_is_at_the_minimum_of_its_objective(clip):
    support, labels = draw(12, 0)
    for names, features, answers in ((NAMES, support, labels), (NAMES[:2], support[labels < 2], labels[labels < 2])):
        baseline = baselines.linear_probe(strength=2.0)
        state = baseline.fit(clip, names, features, answers)
        logits = np.float64(baseline.apply(state, clip, features))
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        slope = 2.0 * features.T @ (probabilities - np.eye(len(names))[answers])  # C sum_i of the cross-entropy's
        kernel = np.float64(state["kernel"])
        # Of two classes scikit-learn learns the difference of the columns, and shrinks that.
        slope, kernel = (slope, kernel) if len(names) > 2 else (slope[:, 1:], kernel[:, 1:] - kernel[:, :1])
        np.testing.assert_allclose(slope, -kernel, atol=1e-2)  # scikit-learn stops near it


def test_the_published_search_chooses_the_probe_on_validation_features(clip):
    from sklearn.linear_model import LogisticRegression

    support, labels = draw(15, 2, noise=1.0)
    queries, answers = draw(30, 3, noise=1.0)
    baseline = baselines.linear_probe()
    state = baseline.fit(clip, NAMES, support, labels, validation=(queries, answers))

    def accuracy(strength):
        return np.mean(LogisticRegression(C=strength, max_iter=1000).fit(support, labels).predict(queries) == answers)

    grid = [1e6, 1e4, 1e2, 1, 1e-2, 1e-4, 1e-6]
    peak = grid[int(np.argmax([accuracy(strength) for strength in grid]))]
    low, high = 0.1 * peak, 10 * peak
    for _ in range(8):
        left, right, middle = accuracy(low), accuracy(high), np.sqrt(low * high)
        chosen, low, high = (high, middle, high) if left < right else (low, low, middle)
    expected = LogisticRegression(C=chosen, max_iter=1000).fit(support, labels)
    np.testing.assert_allclose(
        baseline.apply(state, clip, queries), expected.decision_function(queries), rtol=1e-2, atol=1e-3
    )
    with pytest.raises(ValueError, match=r"linear_probe: strength: .*validation"):
        baseline.fit(clip, NAMES, support, labels)


def tip(queries, keys, labels, rows, scale, alpha, beta):
    found = scale * queries @ rows.T
    for b, query in enumerate(queries):
        for key, label in zip(keys, labels, strict=True):
            found[b, label] += alpha * np.exp(-beta * (1 - query @ key))
    return found


def test_the_cache_equals_numpy(clip, scale):
    (support, labels), (queries, _) = draw(9, 0), draw(5, 1)
    baseline = baselines.tip_adapter(alpha=3.0, beta=5.5, templates=["a {}.", "{}"])
    state = baseline.fit(clip, NAMES, support, labels)
    expected = tip(queries, support, labels, texts(clip, ["a {}.", "{}"]), scale, 3.0, 5.5)
    np.testing.assert_allclose(baseline.apply(state, clip, queries), expected, atol=2e-4)


def test_the_cache_is_searched_on_the_published_grid(clip, scale):
    (support, labels), (queries, answers) = draw(9, 0), draw(40, 1, noise=1.0)
    rows = texts(clip, ["a photo of a {}."])
    best = (-1,)
    for beta in [i * (7 - 0.1) / 200 + 0.1 for i in range(200)]:
        cache = np.exp(-beta * (1 - queries @ support.T)) @ np.eye(3)[labels]
        for alpha in [i * (3 - 0.1) / 20 + 0.1 for i in range(20)]:
            right = np.mean(np.argmax(scale * queries @ rows.T + alpha * cache, axis=1) == answers)
            best = max(best, (right, alpha, beta), key=lambda found: found[0])
    state = baselines.tip_adapter().fit(clip, NAMES, support, labels, validation=(queries, answers))
    assert (float(state["alpha"]), float(state["beta"])) == pytest.approx(best[1:], rel=1e-6)
    with pytest.raises(ValueError, match=r"tip_adapter: alpha and beta: .*validation"):
        baselines.tip_adapter(alpha=1.0).fit(clip, NAMES, support, labels)


def test_tuning_the_keys_equals_pytorch(clip, scale):
    torch = pytest.importorskip("torch")
    support, labels = draw(5, 0)
    baseline = baselines.tip_adapter(alpha=2.0, beta=3.0, epochs=3, learning_rate=0.05, batch_size=2, seed=4)
    state = baseline.fit(clip, NAMES, support, labels)
    keys = torch.nn.Parameter(torch.tensor(np.float64(support)))
    optimizer = torch.optim.AdamW([keys], lr=0.05, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
    rows = torch.tensor(texts(clip, ["a photo of a {}."]))
    one_hot, rng = torch.eye(3, dtype=torch.float64)[labels], np.random.default_rng(4)
    for _ in range(3):
        order = rng.permutation(5)
        for chosen in (order[:2], order[2:4], order[4:]):
            images = torch.tensor(np.float64(support[chosen]))
            cache = torch.exp(-3.0 * (1 - images @ keys.T)) @ one_hot
            loss = torch.nn.functional.cross_entropy(
                float(scale) * images @ rows.T + 2.0 * cache, torch.tensor(labels[chosen])
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    assert np.abs(state["keys"] - support).max() > 0.1
    np.testing.assert_allclose(state["keys"], keys.detach().numpy(), atol=1e-4)


def test_misfits_are_refused(clip):
    support, labels = draw(6, 0)
    for make, message in (
        (lambda: baselines.make("probe"), "baseline 'probe'"),
        (lambda: baselines.hand_crafted("a photo"), "template 'a photo'"),
        (lambda: baselines.ensemble([]), "templates"),
        (lambda: baselines.ensemble("clip_8"), "clip_8"),
        (lambda: baselines.linear_probe(strength=0), "strength=0"),
        (lambda: baselines.tip_adapter(epochs=-1), "epochs=-1"),
        (lambda: baselines.tip_adapter(beta=True), "beta=True"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    probe = baselines.linear_probe(strength=1.0)
    with pytest.raises(ValueError, match="'fish'"):
        probe.fit(clip, NAMES, support, labels % 2)
    with pytest.raises(ValueError, match=r"\[6, 16\] features and \[5\] labels"):
        probe.fit(clip, NAMES, support, labels[1:])
    with pytest.raises(ValueError, match="int64 and run from 0 to 3"):
        probe.fit(clip, NAMES, support, np.array([0, 1, 2, 3, 0, 1]))


def test_the_recipe_follows_the_public_code(clip, scale):
    """Keys of ten views, a fresh view in every epoch, the first epoch that is best on validation features."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    support, labels = draw(6, 0)
    views = np.float32(support[:, None] + 0.3 * rng.normal(size=(6, 12, 16))) * 3  # not normalized
    queries, answers = draw(30, 1, noise=1.0)
    settings = {"alpha": 2.0, "beta": 3.0, "epochs": 7, "learning_rate": 0.3, "batch_size": 4}
    baseline = baselines.tip_adapter(**settings, recipe=True)
    resolved = baselines._tip_adapter(baseline.settings, ["a photo of a {}."], TipSettings(epochs=2))
    assert (resolved.views, resolved.needs_validation) == (12, True)
    state = resolved.fit(clip, NAMES, support, labels, validation=(queries, answers), views=views)
    first = unit(np.float64(views[:, :10]).mean(axis=1))
    keys = torch.nn.Parameter(torch.tensor(first))
    optimizer = torch.optim.AdamW([keys], lr=0.3, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    rows = torch.tensor(texts(clip, ["a photo of a {}."]))
    one_hot, order, best = torch.eye(3, dtype=torch.float64)[labels], np.random.default_rng(0), (-1.0, None)

    def scores(images):
        images = torch.tensor(np.float64(images))
        return float(scale) * images @ rows.T + 2.0 * torch.exp(-3.0 * (1 - images @ keys.T)) @ one_hot

    for epoch in range(2):
        chosen = order.permutation(6)
        for batch in (chosen[:4], chosen[4:]):
            loss = torch.nn.functional.cross_entropy(
                scores(unit(views[batch, 10 + epoch])), torch.tensor(labels[batch])
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        right = float((scores(queries).argmax(1).numpy() == answers).mean())
        best = max(best, (right, keys.detach().clone().numpy()), key=lambda each: each[0])
    np.testing.assert_allclose(state["keys"], best[1], atol=1e-3)


@pytest.mark.parametrize(
    ("dataset", "template", "tops", "alpha", "epochs"),
    [
        ("coop:oxford_flowers", "a photo of a {}, a type of flower.", (50, 50), 10, 20),
        ("coop:fgvc_aircraft", "a photo of a {}, a type of aircraft.", (30, 30), 5, 20),
        ("coop:eurosat", "a centered satellite photo of {}.", (12, 10), 2, 100),
        ("coop:dtd", "{} texture.", (13, 13), 2, 20),
        ("coop:oxford_pets", "a photo of a {}, a type of pet.", (7, 3), 1.17, 20),
        ("folder:photos", "a photo of a {}.", (7, 3), 1.17, 20),
    ],
)
def test_the_recipe_knows_published_datasets(clip, scale, dataset, template, tops, alpha, epochs):
    recipe = baselines.tip_adapter(epochs=1, recipe=True).of_dataset(dataset)
    assert recipe.views == 10 + epochs
    plain = baselines.tip_adapter(recipe=True).of_dataset(dataset)
    assert plain.views == 10
    (support, labels), (queries, answers) = draw(9, 0), draw(40, 1, noise=1.0)
    views = np.repeat(support[:, None], 10, axis=1)
    state = plain.fit(clip, NAMES, support, labels, validation=(queries, answers), views=views)
    rows, best = texts(clip, [template]), (-1,)
    for beta in [i * (tops[0] - 0.1) / 200 + 0.1 for i in range(200)]:
        cache = np.exp(-beta * (1 - queries @ support.T)) @ np.eye(3)[labels]
        for weight in [i * (tops[1] - 0.1) / 20 + 0.1 for i in range(20)]:
            right = np.mean(np.argmax(scale * queries @ rows.T + weight * cache, axis=1) == answers)
            best = max(best, (right, weight, beta), key=lambda found: found[0])
    assert (float(state["alpha"]), float(state["beta"])) == pytest.approx(best[1:], rel=1e-5)
    facts = coop.facts(dataset)
    assert (facts.tip if facts else TipSettings()).first_alpha == alpha
