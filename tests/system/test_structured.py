"""A structured initialization in experiments.evaluate and predict: each draw has the prompt of its own context."""

import random

import jax
import numpy as np
import pytest
from etils import epath

import gram_jax as gram
from experiments import predict
from experiments.evaluate import run as evaluate
from gram_jax import meta, regulators, tuners
from gram_jax.clip import TextPrompt
from gram_jax.data import load_dataset

SEEDS = (1, 2)
TAU = 0.3


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The mini clip, and a meta checkpoint whose prototypes lie around the contexts of arabic."""
    folder, clip = tmp_path_factory.mktemp("structured"), gram.load_clip("mini")
    tuner, regulator = tuners.coop(num_tokens=2), regulators.affine()
    prompt = tuner.init(jax.random.key(0), clip, None)
    dataset, rng = load_dataset("glyphs:arabic"), np.random.default_rng(0)
    middle = np.mean([context(clip, dataset, seed) for seed in SEEDS], axis=0)
    learned = meta.init_meta(prompt, regulator.init(jax.random.key(1), prompt), learning_rate=0.1)
    prototypes = middle + 0.01 * rng.normal(size=(4, len(middle)))
    learned = meta.with_structure(learned, prototypes, TAU)
    learned = learned.replace(offsets={"context": np.float32(1.5 * rng.normal(size=(4, *prompt["context"].shape)))})
    gram.save_meta(folder / "meta.safetensors", learned, tuner, regulator, clip)
    return folder, clip, dataset, learned


def draw(clip, dataset, seed):
    """The image features and the labels of CoOp's draw of one image a class."""
    rng, items = random.Random(seed), {}
    for position in dataset.select("train").tolist():
        items.setdefault(int(dataset.labels[position]), []).append(position)
    support = [rng.sample(members, 1)[0] for members in items.values()]
    return gram.encode_image(clip, clip.preprocess(dataset.images(support))), dataset.labels[support]


def context(clip, dataset, seed):
    """The mean image feature of the draw, and the mean text feature of the class names."""
    images, _ = draw(clip, dataset, seed)
    texts = clip.tokenize([f"a photo of a {name}." for name in dataset.class_names])
    return np.concatenate([np.mean(images, axis=0), np.mean(gram.encode_text(clip, texts), axis=0)])


def begin(learned, vector):
    """theta + sum_p w_p Delta_p, in NumPy."""
    prototypes = np.asarray(learned.structure.prototypes, np.float64)
    center = prototypes.mean(0)
    scores = np.exp(unit(prototypes - center) @ unit(vector - center) / TAU)
    weights = scores / scores.sum()
    return np.asarray(learned.prompt["context"]) + np.tensordot(weights, np.asarray(learned.offsets["context"]), 1)


def gated(clip, dataset, learned, seed, gates):
    """The prompt theta + g (theta_0(c) - theta) with the smallest cross-entropy on the draw."""
    images, labels = draw(clip, dataset, seed)
    theta = np.asarray(learned.prompt["context"])
    prompts, losses = [], []
    for gate in gates:
        prompts.append(theta + gate * (begin(learned, context(clip, dataset, seed)) - theta))
        texts = gram.encode_classes(clip, clip.class_tokens(dataset.class_names), TextPrompt(np.float32(prompts[-1])))
        logits = np.float64(np.exp(clip.params["logit_scale"]) * images @ texts.T)
        losses.append(np.mean(np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels]))
    return prompts[int(np.argmin(losses))], losses


@pytest.mark.parametrize("gates", [(1.0,), (0.0, 0.25, 1.0)])
def test_every_draw_begins_at_its_own_prompt(made, gates, tmp_path):
    folder, clip, dataset, learned = made
    config = evaluate.Config(
        meta=str(folder / "meta.safetensors"),
        methods=("gram",),
        dataset=("glyphs:arabic",),
        protocol=("few_shot",),
        shots=(1,),
        seeds=SEEDS,
        steps=(1,),
        learning_rate=(0.1,),
        gates=gates,
        report_steps=(0,),
        max_test_images=8,
    )
    results = evaluate.run(config, epath.Path(tmp_path))
    found = [
        row.value
        for row in results.rows
        if (row.method, row.step, row.metric, row.split, row.domain) == ("coop+gram", 0, "accuracy", "all", None)
    ]
    test = np.concatenate(
        [[p for p in dataset.select("test") if dataset.labels[p] == label][:8] for label in range(29)]
    )
    images = gram.encode_image(clip, clip.preprocess(dataset.images(test)))
    expected, initial = [], []
    for seed in SEEDS:
        prompt, losses = gated(clip, dataset, learned, seed, gates)
        assert len(gates) == 1 or np.argmin(losses) < len(gates) - 1  # these offsets mislead
        initial.append(prompt)
        prompt = TextPrompt(np.float32(initial[-1]))
        texts = gram.encode_classes(clip, clip.class_tokens(dataset.class_names), prompt)
        expected.append(float(np.mean(np.argmax(images @ texts.T, -1) == dataset.labels[test])))
    assert np.abs(initial[0] - initial[1]).max() > 0.01
    assert expected[0] != expected[1]
    assert found == pytest.approx(expected, abs=1e-6)


def test_predict_uses_the_class_names_as_context(made):
    folder, clip, dataset, learned = made
    _, prompt = predict.load_prompt(str(folder / "meta.safetensors"), clip, dataset.class_names)
    width = clip.config.embed_dim
    center = np.asarray(learned.structure.prototypes).mean(0)
    vector = np.concatenate([center[:width], context(clip, dataset, 1)[width:]])
    np.testing.assert_allclose(prompt["context"], begin(learned, vector), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gate", [1.0, 0.5])
def test_prompts_follow_class_names_to_another_dataset(made, gate, tmp_path):
    folder, clip, dataset, learned = made
    config = evaluate.Config(
        meta=str(folder / "meta.safetensors"),
        methods=("gram",),
        dataset=("glyphs:arabic",),
        targets=("glyphs:syllabics",),
        protocol=("cross_dataset",),
        follow_classes=True,
        shots=(1,),
        seeds=SEEDS,
        steps=(1,),
        gates=(gate,),
        gram_learning_rate=(1e-12,),  # the tuned prompt is the initial one
        report_steps=(),
        max_test_images=8,
    )
    results = evaluate.run(config, epath.Path(tmp_path))

    def found(method, domain):
        rows = [row for row in results.rows if row.metric == "accuracy"]
        return [row.value for row in rows if (row.method, row.domain, row.step) == (method, domain, 1)]

    other = load_dataset("glyphs:syllabics")
    members = [np.flatnonzero((other.splits == "test") & (other.labels == label)) for label in range(43)]
    test = np.concatenate([positions[:8] for positions in members])
    images = gram.encode_image(clip, clip.preprocess(other.images(test)))
    names = np.mean(
        gram.encode_text(clip, clip.tokenize([f"a photo of a {name}." for name in other.class_names])), axis=0
    )

    def accuracy(prompt):
        texts = gram.encode_classes(clip, clip.class_tokens(other.class_names), TextPrompt(np.float32(prompt)))
        return float(np.mean(np.argmax(images @ texts.T, -1) == other.labels[test]))

    theta, expected = np.asarray(learned.prompt["context"]), []
    for seed in SEEDS:
        here = context(clip, dataset, seed)
        there = np.concatenate([here[: len(names)], names])  # the images of the source, the class names of the target
        expected.append(accuracy(theta + gate * (begin(learned, there) - theta)))
    assert found("coop+gram:following", "glyphs:syllabics") == pytest.approx(expected, abs=1e-6)
    # Without the names, the offset of the source's theme is removed, and the shared prompt remains.
    shared = accuracy(theta)
    assert found("coop+gram", "glyphs:syllabics") == pytest.approx([shared] * len(SEEDS), abs=1e-6)
    assert accuracy(begin(learned, context(clip, dataset, SEEDS[0]))) != pytest.approx(shared, abs=1e-6)
    assert found("coop+gram", None) == found("coop+gram:following", None)
    with pytest.raises(ValueError, match="--follow_classes"):
        evaluate.Config(follow_classes=True)
