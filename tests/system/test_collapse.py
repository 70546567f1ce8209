"""experiments.collapse on a small clip: prompts and measures against plain loops, correlations against SciPy."""

import dataclasses
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from etils import epath

import gram_jax as gram
from experiments.collapse import run as collapse
from experiments.collapse import tables
from experiments.collapse.correlation import correlate
from experiments.collapse.measures import Meter
from gram_jax import evaluation, tuners
from gram_jax.clip import TextPrompt
from gram_jax.data import load_dataset
from gram_jax.evaluation import Row
from gram_jax.evaluation.protocols import base_to_new
from gram_jax.testing import tiny_clip

SEEDS, STEPS, PER_CLASS, TAU, LARGEST, WEIGHT = (1, 2), 2, 4, 0.25, 4, 0.5
RATES = (0.2, 0.4)
METHODS = [f"coop{added}@{rate}" for added in ("", "+npt:0.5") for rate in RATES]


def spread_clip():
    """A random clip whose image features have mean 0, or it would call all images by one name."""
    clip = tiny_clip(seed=1, text_layers=1, vision_layers=1, text_context_length=40)
    dataset = load_dataset("glyphs:chess")
    features = gram.encode_image(clip, clip.preprocess(dataset.images(dataset.select("val")[::4])), normalize=False)
    params = clip.params["vision"]
    params["post_norm"]["bias"] -= np.linalg.lstsq(np.asarray(params["projection"]).T, np.mean(features, axis=0))[0]
    return clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    gram.save_clip(spread_clip(), folder)
    return folder


@pytest.fixture(scope="module")
def config(folder):
    return collapse.Config(
        clip=str(folder),
        regularizers=("", f"npt:{WEIGHT}"),
        dataset=("glyphs:chess",),
        tau=(1.0, TAU),
        shots=(LARGEST,),
        seeds=SEEDS,
        learning_rate=RATES,
        steps=STEPS,
        report_steps=(0, 1),
        batch_size=13,  # all images of the long tail, so that the order does not matter
        max_test_images=PER_CLASS,
        resamples=50,
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("collapse"))
    return workdir, collapse.run(config, workdir)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def gram_matrix(one, other):
    products = (one - one.mean(0)) @ (other - other.mean(0)).T
    return products / np.linalg.norm(products)


def loops(images, texts, labels):
    """Some measures from their definitions."""
    count = len(texts)
    means = np.stack([images[labels == k].mean(0) for k in range(count)])
    between = np.cov(means.T, bias=True)
    within = sum(np.cov(images[labels == k].T, bias=True) for k in range(count)) / count
    frame = np.eye(count) - 1 / count
    nearest = np.argmin(((images[:, None] - means) ** 2).sum(-1), 1)
    chosen = np.argmax(images @ texts.T, 1)
    return {
        "accuracy": np.mean(chosen == labels),
        "nc1": np.trace(within @ np.linalg.pinv(between, rcond=1e-8)) / count,
        "nc3_cosine": np.mean(np.sum(unit(texts - texts.mean(0)) * unit(means - means.mean(0)), -1)),
        "nc4": np.mean(nearest == chosen),
        "simplex_text": np.linalg.norm(gram_matrix(texts, texts) - frame / np.linalg.norm(frame)),
        "simplex_both": np.linalg.norm(gram_matrix(texts, means) - frame / np.linalg.norm(frame)),
    }


def long_tail(dataset, seed):
    """The first n_k images of each base class's draw."""
    rng, items = random.Random(seed), {}
    for position in dataset.select("train"):
        items.setdefault(int(dataset.labels[position]), []).append(int(position))
    drawn = [rng.sample(members, LARGEST) for members in items.values()]
    return [at for k in range(6) for at in drawn[k][: max(1, round(LARGEST * TAU ** (k / 5)))]]


def tuned_directly(clip, dataset, seed, rate):
    """CoOp's context after plain gradient steps of cross-entropy and NPT, nothing padded."""
    positions = long_tail(dataset, seed)
    assert len(positions) == 13
    images = gram.encode_image(clip, clip.preprocess(dataset.images(positions)))
    labels = dataset.labels[positions]
    classes = clip.class_tokens(list(dataset.class_names[:6]))

    def loss(context):
        texts = gram.encode_classes(clip, classes, TextPrompt(context))
        scores = jax.nn.log_softmax(gram.logits(images, texts, clip.params["logit_scale"]))
        pairs = [(texts[i] @ texts[j] + 1 / 5) ** 2 for i in range(6) for j in range(6) if i != j]
        means = [images[labels == k].mean(0) for k in range(6)]
        apart = [jnp.sum((mean / jnp.linalg.norm(mean) - texts[k]) ** 2) for k, mean in enumerate(means)]
        return -scores[jnp.arange(13), labels].mean() + WEIGHT * (sum(pairs) / 30 + sum(apart) / 6)

    context = gram.embed_tokens(clip, clip.tokenize(["a photo of a"])[0, 1:-1])
    gradient = jax.jit(jax.grad(loss))
    for _ in range(STEPS):
        context = context - rate * gradient(context)
    return context


def test_rows_are_those_of_a_prompt_tuned_and_measured_directly(finished, folder):
    _, results = finished
    clip, dataset = gram.load_clip(str(folder)), load_dataset("glyphs:chess")
    seed, rate = SEEDS[1], RATES[0]
    context = tuned_directly(clip, dataset, seed, rate)
    accuracies = []
    for split, first in (("base", 0), ("new", 6)):
        members = range(first, first + 6)
        positions = [i for i in dataset.select("test") if dataset.labels[i] in members]
        positions = [i for i in positions if dataset.references[i][2] < PER_CLASS]
        images = np.asarray(gram.encode_image(clip, clip.preprocess(dataset.images(positions))), np.float64)
        classes = clip.class_tokens([dataset.class_names[label] for label in members])
        texts = np.asarray(gram.encode_classes(clip, classes, TextPrompt(context)), np.float64)
        found = {
            row.metric: row.value
            for row in results.rows
            if (row.method, row.protocol, row.split) == (f"coop+npt:0.5@{rate}", f"imbalanced:{TAU}", split)
            and (row.seed, row.step, row.shots) == (seed, STEPS, LARGEST)
        }
        assert found.keys() == {"accuracy", *tables.MEASURES}
        expected = loops(images, texts, dataset.labels[positions] - first)
        for name, value in expected.items():
            of_one_image = 1.01 / len(positions) if name in ("accuracy", "nc4") else 0
            assert found[name] == pytest.approx(value, rel=2e-3, abs=max(2e-4, of_one_image)), name
        accuracies.append(found["accuracy"])
    h = [
        row.value
        for row in results.rows
        if (row.method, row.protocol, row.metric) == (f"coop+npt:0.5@{rate}", f"imbalanced:{TAU}", "harmonic_mean")
        and (row.seed, row.step) == (seed, STEPS)
    ]
    assert h == [pytest.approx(scipy.stats.hmean(accuracies) if min(accuracies) else 0.0)]


def test_every_prompt_is_measured_once(finished):
    workdir, results = finished
    kinds = {(row.method, row.protocol, row.seed, row.step) for row in results.rows}
    assert {kind[0] for kind in kinds} == set(METHODS)
    assert len(kinds) == len(METHODS) * 2 * len(SEEDS) * 3
    assert len(results.rows) == len(kinds) * (2 * (1 + len(tables.MEASURES)) + 1)
    for name in ("collapse.png", "correlation_new.png", "correlation_h.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")
    table = (workdir / "table.md").read_text()
    assert "## After 2 steps, balanced, 4 shots" in table
    assert "CoOp + NPT (weight 0.5), rate 0.4" in table
    assert "## Accuracy on new classes, imbalanced: 16 prompts of 2 draws" in table
    stored = json.loads((workdir / "correlations.json").read_text())
    assert len(stored) == 2 * 11 * 2 * 2 * 3 * 2
    # Frozen image features: all prompts have the same image means.
    images = [each for each in stored if each["measure"] in ("nc1", "simplex_image") and each["level"] == "within"]
    assert {each["r"] for each in images} == {None}


def test_differences_are_those_of_regularizers_at_the_same_rate(finished):
    _, results = finished
    assert {(each.a, each.b) for each in results.comparisons} == {
        (f"coop+npt:0.5@{rate}", f"coop@{rate}") for rate in RATES
    }

    def value(method, seed):
        (found,) = (
            row.value
            for row in results.rows
            if (row.method, row.seed, row.step, row.protocol, row.split, row.metric)
            == (method, seed, STEPS, "base_to_new", "base", "simplex_text")
        )
        return found

    name = "simplex_text, base classes (balanced, 4 shots)"
    (found,) = (each for each in results.comparisons if each.metric == name and each.a.endswith("@0.4"))
    differences = [value("coop+npt:0.5@0.4", seed) - value("coop@0.4", seed) for seed in SEEDS]
    assert found.mean_difference == pytest.approx(np.mean(differences))
    assert found.n == 2


def test_resumes_where_it_was_stopped(finished, config, tmp_path, monkeypatch):
    workdir, results = finished
    lines = (workdir / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(lines[:-2]) + "\n")
    left = {tuple(stored["unit"]): stored["found"] for stored in map(json.loads, lines[-2:])}

    def unit(setup, method, task, config, parts):
        return left.pop((method.name, task.dataset.name, task.protocol.name, task.shots, *task.seeds))

    monkeypatch.setattr(collapse, "_unit", unit)
    assert collapse.run(config, tmp_path).rows == results.rows
    assert not left
    assert collapse.run(config, tmp_path).rows == results.rows  # nothing is left to tune
    monkeypatch.setattr(collapse, "_unit", None)
    rows = collapse.run(dataclasses.replace(config, seeds=(1,)), tmp_path).rows
    assert rows == tuple(row for row in results.rows if row.seed == 1)


@pytest.mark.parametrize("name", ["cocoop", "vpt"])
def test_text_of_each_image_and_prompted_images_are_measured_in_chunks(config, folder, name):
    clip = gram.load_clip(str(folder))
    tuner = tuners.make(name)
    encoder = evaluation.Encoder(clip, batch_size=5)
    part = base_to_new.parts(load_dataset("glyphs:chess"))[1]
    part = part._replace(dataset=part.dataset.take(range(12)))
    prompts = jax.vmap(lambda key: tuner.init(key, clip, None))(jax.random.split(jax.random.key(0), 2))
    prompts = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(1), leaf.shape), prompts)
    logits, images, texts = Meter(encoder, tuner).features(prompts, part)
    classes = clip.class_tokens(list(part.dataset.class_names))
    pixels = clip.preprocess(part.dataset.images(range(12)))
    for run in range(2):
        outputs = tuner.apply(jax.tree.map(lambda leaf, run=run: leaf[run], prompts), clip, classes, pixels)
        expected = np.asarray(outputs.text_features)
        expected = unit(expected.mean(0)) if expected.ndim == 3 else expected
        np.testing.assert_allclose(logits[run], outputs.logits, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(images[run], outputs.image_features, atol=1e-5)
        np.testing.assert_allclose(texts[run], expected, atol=1e-5)


def made_up(seed=0):
    """Rows in which text collapses where accuracy rises, in two datasets at different heights."""
    rng = np.random.default_rng(seed)
    rows = []
    for dataset, height in (("a", 0.0), ("b", 5.0)):
        for protocol in ("base_to_new", "imbalanced:0.25", "imbalanced:0.06"):
            for method in ("coop", "coop+npt"):
                for number, step in ((number, step) for number in range(4) for step in (0, 2, 7)):
                    fields = {"shots": 16, "seed": number, "step": step}
                    level = rng.normal()
                    for split in ("base", "new"):
                        for name in tables.MEASURES:
                            value = height + level + rng.normal()
                            rows.append(Row(method, protocol, dataset, name, value, split=split, **fields))
                        value = rng.normal() - level - height / 2
                        rows.append(Row(method, protocol, dataset, "accuracy", value, split=split, **fields))
                    value = rng.normal() + level * step
                    rows.append(Row(method, protocol, dataset, "harmonic_mean", value, split="all", **fields))
    return rows


def residuals(values, labels):
    """What is left of values behind a regression on indicators of the labels."""
    names = list(dict.fromkeys(labels))
    indicators = np.array([[label == name for name in names] for label in labels], float)
    return values - indicators @ np.linalg.lstsq(indicators, values)[0]


def test_correlations_of_rows_are_scipys():
    rows = made_up()
    found = tables.correlations(rows, samples=20)

    def pairs(protocols, metric, split, target):
        index = {}
        for row in rows:
            if row.protocol in protocols and row.step:
                key = (row.dataset, row.protocol, row.step, row.method, row.seed)
                index.setdefault(key, {})[row.split, row.metric] = row.value
        columns = np.array([(each[split, metric], each[target]) for each in index.values()]).T
        return list(index), *columns

    for regime, protocols in (("balanced", ("base_to_new",)), ("imbalanced", ("imbalanced:0.25", "imbalanced:0.06"))):
        for target, where in (("new", ("new", "accuracy")), ("h", ("all", "harmonic_mean"))):
            keys, x, y = pairs(protocols, "simplex_text", "base", where)
            fields = {"regime": regime, "measure": "simplex_text", "split": "base", "target": target}
            own = [each for each in found if fields.items() <= vars(each).items()]

            def look(level, ranks, own=own):
                return tables.lookup(own, level=level, ranks=ranks)

            assert look("pooled", False).r == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
            assert look("pooled", True).r == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
            within = [key[:2] for key in keys]
            expected = scipy.stats.pearsonr(residuals(x, within), residuals(y, within)).statistic
            assert look("within", False).r == pytest.approx(expected)
            paired = [key[:3] for key in keys]
            expected = scipy.stats.pearsonr(residuals(x, paired), residuals(y, paired)).statistic
            assert look("same step", False).r == pytest.approx(expected)
            assert (look("pooled", False).n, look("pooled", False).draws) == (len(x), 8)


def test_interval_is_fishers_where_every_draw_is_one_value():
    rng = np.random.default_rng(3)
    x = rng.normal(size=500)
    y = 0.6 * x + rng.normal(size=500)
    found = correlate(x, y, np.arange(500))
    expected = scipy.stats.pearsonr(x, y).confidence_interval(0.95)
    np.testing.assert_allclose(found.ci95, expected, atol=0.015)


def test_repeated_values_of_a_draw_are_no_additional_evidence():
    rng = np.random.default_rng(4)
    x, y, draws, strata = rng.normal(size=30), rng.normal(size=30), np.arange(30), np.arange(30) % 3
    once = correlate(x, y, draws, strata=strata, groups=strata)
    often = correlate(*(np.repeat(each, 7) for each in (x, y, draws)), strata=np.repeat(strata, 7),
                      groups=np.repeat(strata, 7))  # fmt: skip
    assert often.r == pytest.approx(once.r)
    np.testing.assert_allclose(often.ci95, once.ci95)
    assert (once.n, often.n, often.draws) == (30, 210, 30)
    shuffled = rng.permutation(30)
    again = correlate(x[shuffled], y[shuffled], draws[shuffled], strata=strata[shuffled], groups=strata[shuffled])
    assert again.r == pytest.approx(once.r)


def test_ranks_within_groups():
    rng = np.random.default_rng(5)
    group = np.repeat([0, 1, 2], 8)
    x, y = rng.integers(0, 4, 24) + 10.0 * group, rng.normal(size=24) - 7.0 * group
    parts = [[scipy.stats.rankdata(values[group == k]) for k in range(3)] for values in (x, y)]
    centered = [np.concatenate([ranks - ranks.mean() for ranks in part]) for part in parts]
    found = correlate(x, y, np.arange(24), groups=group, ranks=True)
    assert found.r == pytest.approx(scipy.stats.pearsonr(*centered).statistic)


def test_no_coefficient_or_interval_where_there_is_none():
    still = correlate([1.0, 1.0 + 1e-8, 2.0, 2.0], [1.0, 2.0, 3.0, 4.0], [0, 1, 2, 3], groups=[0, 0, 1, 1])
    assert np.isnan(still.r)
    assert still.ci95 is None
    alone = correlate([1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [0, 0, 0])
    assert alone.r == pytest.approx(0.5)
    assert alone.ci95 is None
    for arguments, message in (
        (([1.0, 2.0], [1.0], [0, 1]), "of one length"),
        (([1.0, np.nan], [1.0, 2.0], [0, 1]), "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            correlate(*arguments)
    with pytest.raises(ValueError, match="two strata"):
        correlate([1.0, 2.0], [1.0, 3.0], [0, 0], strata=["a", "b"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuner": "copo"}, "--tuner=copo: .*'coop'"),
        ({"tuner": ""}, "--tuner is empty"),
        ({"regularizers": ("npt", "npt:1.0")}, "coop.npt twice"),
        ({"regularizers": ("ntp",)}, "--regularizers=ntp: .*'npt'"),
        ({"tuner": "coop(num_token=3)"}, "--tuner=coop.*'num_token'"),
        ({"report_steps": (0, 51)}, "--steps=50 and --report_steps=0,51"),
        ({"tau": (1.0, 1.5)}, "--tau=1.5"),
        ({"seeds": (1, 1)}, "--seeds=1,1"),
        ({"learning_rate": (-1.0,)}, "--learning_rate=-1.0"),
        ({"resamples": 0}, "--resamples=0"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        collapse.Config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": ("glyphs:klingon",)}, "'klingon'"),
        ({"shots": (4, 64)}, "shots=64"),
        ({"tuner": "vpt", "regularizers": ("kgcoop",)}, "kgcoop .*'vpt'"),
        ({"tuner": "coop(class_specific=True)"}, "class-specific prompt of coop"),
    ],
)
def test_mistakes_are_found_before_anything_is_tuned(config, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(Meter, "measure", None)
    with pytest.raises(ValueError, match=message):
        collapse.run(dataclasses.replace(config, **changes), tmp_path)
    assert not (tmp_path / "rows.jsonl").exists()
