"""Runs on pairs: what is trained on, and scores against the logits of whole class lists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax import evaluation, tuners
from gram_jax.artifacts import LoadedMeta
from gram_jax.data import PairDataset, feasibility, load_compositions
from gram_jax.errors import InputError
from gram_jax.evaluation import compositional
from gram_jax.evaluation.pair_runs import PairPlan, classes_of, measure_pairs, tune_pairs
from gram_jax.meta import init_meta, with_structure
from gram_jax.regulators import Regulator
from gram_jax.testing import tiny_clip
from gram_jax.tuning.recurrent import recurrent


@pytest.fixture(scope="module")
def encoder():
    return evaluation.Encoder(tiny_clip(text_layers=1, vision_layers=1, text_context_length=64), 64)


@pytest.fixture(scope="module")
def data():
    dataset, pairs = load_compositions("glyphs:hebrew:faces")
    kept = np.concatenate([dataset.select("train")[::4], dataset.select("val")[::3], dataset.select("test")[::6]])
    return PairDataset(dataset.take(kept), pairs)


def test_training_reads_no_image_of_another_split(encoder, data):
    train = set(data.dataset.select("train").tolist())
    read = []

    class Watched(evaluation.Encoder):
        def inputs(self, tuner, dataset):
            read.append(dataset)
            return encoder.inputs(tuner, dataset)

    plan = PairPlan(0.01, 3, 8, schedule=recurrent(rounds=1, balance=1.0))
    tuner = tuners.csp()
    found = tune_pairs(Watched(encoder.clip), tuner, plan.compile(tuner), plan, data, 0)
    assert [each.references for each in read] == [tuple(data.dataset.references[at] for at in sorted(train))]
    assert found["attributes"].shape == (len(data.compositions.attributes), encoder.clip.config.text.width)
    again = tune_pairs(encoder, tuner, plan.compile(tuner), plan, data, 0)
    other = tune_pairs(encoder, tuner, plan.compile(tuner), plan, data, 1)
    np.testing.assert_array_equal(found["objects"], again["objects"])
    assert np.abs(found["objects"] - other["objects"]).max() > 1e-4


def test_gram_begins_with_its_context_and_regulates_it_alone(encoder, data):
    clip, tuner = encoder.clip, tuners.coop(init_text="a photo of")
    prompt = tuner.init(jax.random.key(0), clip, None)
    zero = Regulator(
        "zero", {}, lambda key, prompt: {}, lambda phi, grads, context: jax.tree.map(jnp.zeros_like, grads)
    )
    rows = np.random.default_rng(0).normal(size=(2, 2 * clip.config.embed_dim))
    learned = with_structure(init_meta(prompt, {}, 0.1), rows)
    learned = learned.replace(offsets=jax.tree.map(lambda leaf: leaf.at[1].set(1.0), learned.offsets))
    train = data.dataset.take(data.dataset.select("train"))
    names = [name for name, seen in zip(data.compositions.names, data.compositions.seen, strict=True) if seen]
    mean = np.concatenate([encoder.features(train).mean(0), encoder.texts(names).mean(0)])
    unit = [row / np.linalg.norm(row) for row in (*(rows - rows.mean(0)), mean - rows.mean(0))]
    shares = np.exp([unit[0] @ unit[2] / 0.05, unit[1] @ unit[2] / 0.05])
    first = prompt["context"] + shares[1] / shares.sum()  # theta + w_0 * 0 + w_1 * 1

    still = LoadedMeta(learned, tuner, zero, {})
    plan = PairPlan(0.1, 2, 8, weight_decay=0.0)
    for own in (tuner, tuners.csp(learn_context=True)):
        found = tune_pairs(encoder, own, plan.compile(own, still), plan, data, 0, still)
        np.testing.assert_allclose(found["context"], first, atol=1e-5)  # gradients of zero hold it
    start = own.init(jax.random.key(0), clip, classes_of(clip, data.compositions, data.dataset))
    assert np.abs(found["objects"] - start["objects"]).max() == pytest.approx(0.2, abs=0.02)  # two steps of Adam
    other = still._replace(meta=init_meta({"context": jnp.zeros((4, 16))}, {}, 0.1))
    with pytest.raises(InputError, match=r"\(4, 16\).*\(3, 24\)"):
        tune_pairs(encoder, tuner, plan.compile(tuner, other), plan, data, 0, other)


def test_a_loss_that_is_not_finite_is_named(encoder, data):
    class Broken(evaluation.Encoder):
        def inputs(self, tuner, dataset):
            return np.full((len(dataset), 16), np.nan, np.float32)

    plan, tuner = PairPlan(0.01, 2, 8), tuners.csp()
    with pytest.raises(InputError, match="csp is not finite at step 0, seed 5"):
        tune_pairs(Broken(encoder.clip), tuner, plan.compile(tuner), plan, data, 5)


def logits_of(encoder, tuner, prompt, data, pairs, split):
    """Logits of every image on a list of pairs, one image at a time."""
    clip, (dataset, compositions) = encoder.clip, data
    classes = tuners.pair_classes(clip, compositions.attributes, compositions.objects, pairs)
    part = dataset.take(dataset.select(split))
    if tuner is None:
        apply = jax.jit(lambda image: tuners.frozen_outputs(clip, classes.names, image).logits[0])
    else:
        own = classes if tuner.needs_pairs else classes.names
        apply = jax.jit(lambda image: tuner.apply(prompt, clip, own, image).logits[0])
    images = encoder.inputs(tuner, part) if tuner is not None and tuner.needs_pixels else encoder.features(part)
    return np.stack([apply(images[i : i + 1]) for i in range(len(part))])


@pytest.mark.parametrize("name", ["hand_crafted", "coop", "csp", "troika"])
def test_the_closed_world_is_measured_on_the_pairs_of_both_lists(encoder, data, name):
    settings = {"coop": {"init_text": "a photo of"}, "troika": {"heads": 2, "layers": 1, "adapter": 2}}.get(name, {})
    tuner = None if name == "hand_crafted" else tuners.make(name, **settings)
    pairs = data.compositions
    whole = tuners.pair_classes(encoder.clip, pairs.attributes, pairs.objects, pairs.pairs)
    prompt = None
    if tuner is not None:
        prompt = tuner.init(jax.random.key(0), encoder.clip, whole if tuner.needs_pairs else whole.names)
        prompt = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), prompt)
    found = measure_pairs(encoder, tuner, prompt, data, "val")
    kept = np.flatnonzero(pairs.candidates("val"))
    logits = logits_of(encoder, tuner, prompt, data, pairs.pairs[kept], "val")
    labels = np.searchsorted(kept, data.dataset.labels[data.dataset.select("val")])
    scores = compositional.image_scores(logits, labels, pairs.seen[kept], np.ones(len(kept), bool))
    expected, _ = compositional.measure(compositional.join_scores([scores]), pairs.pairs[kept])
    np.testing.assert_allclose(found.measures, expected, atol=0.02)
    assert found.threshold is None


def test_the_open_world_leaves_out_what_is_not_feasible(encoder, data):
    found = measure_pairs(encoder, None, None, data, "test", "open")
    every, places = data.compositions.open_world()
    sizes = len(every.attributes), len(every.objects)
    vectors = [encoder.texts(names, "a photo of {}") for names in (every.attributes, every.objects)]
    feasible = feasibility(*vectors, every.seen.reshape(sizes)).ravel()
    assert feasible[~every.seen].min() <= found.threshold <= feasible[~every.seen].max()
    logits = logits_of(encoder, None, None, data, every.pairs, "test")
    labels = places[data.dataset.labels[data.dataset.select("test")]]
    kept = every.seen | (feasible >= found.threshold)
    scores = compositional.join_scores([compositional.image_scores(logits, labels, every.seen, kept)])
    expected, _ = compositional.measure(scores, every.pairs)
    np.testing.assert_allclose(found.measures, expected, atol=0.02)
