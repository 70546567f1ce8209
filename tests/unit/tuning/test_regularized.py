"""Tuning under regularizers and against a reference gradient: the formulas in a plain loop, nothing filled up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gram_jax as gram
from gram_jax import objectives, regulators
from gram_jax.testing import tiny_clip
from gram_jax.tuners import Outputs, Tuner

RUNS, BATCH, DIM, CLASSES, VALID, STEPS, RATE = 3, 5, 4, 6, 4, 3, 0.05
SCALE = 10.0


@pytest.fixture(scope="module")
def clip():
    clip = tiny_clip(text_layers=1, vision_layers=1)
    return clip.replace(params=clip.params | {"logit_scale": jnp.log(SCALE)})


def unit(vectors):
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


def directions(traced=None):
    """A tuner whose prompt is the text features, but for their length."""

    def apply(prompt, clip, classes, images):
        if traced is not None:
            traced.append(1)
        texts = unit(prompt["texts"])
        return Outputs(SCALE * images @ texts.T, images, texts)

    return Tuner("directions", {}, lambda key, clip, classes: None, apply, False, False)


def drawn(seed, steps=STEPS):
    """Prompts and batches, of which the last two classes only fill up the shape."""
    rng = np.random.default_rng(seed)
    texts = {name: unit(rng.normal(size=(CLASSES, DIM))) for name in ("kgcoop", "distillation", "promptsrc")}
    batches = [
        {
            "classes": np.zeros((CLASSES, 2), np.float32),
            "valid": np.arange(CLASSES) < VALID,
            "images": np.asarray(unit(rng.normal(size=(RUNS, BATCH, DIM))), np.float32),
            "labels": rng.integers(0, VALID, (RUNS, BATCH)),
            "reference": {"text_features": texts},
        }
        for _ in range(steps)
    ]
    return {"texts": rng.normal(size=(RUNS, CLASSES, DIM)).astype(np.float32)}, batches


def cross_entropy(prompt, images, labels):
    scores = jax.nn.log_softmax(SCALE * images @ unit(prompt).T)
    return -jnp.mean(scores[jnp.arange(len(labels)), labels])


def kgcoop(prompt, batch):
    return 1 - jnp.mean(jnp.sum(unit(prompt) * batch["reference"]["text_features"]["kgcoop"][:VALID], axis=1))


def npt(prompt, images, labels):
    texts = unit(prompt)
    off = ~np.eye(VALID, dtype=bool)
    collapse = jnp.sum(jnp.where(off, (texts @ texts.T + 1 / (VALID - 1)) ** 2, 0)) / (VALID * (VALID - 1))
    near = [jnp.sum((unit(images[labels == k].mean(0)) - texts[k]) ** 2) for k in sorted(set(labels.tolist()))]
    return collapse + sum(near) / len(near)


def teacher(prompt, batch, images):
    frozen = jax.nn.softmax(SCALE * images @ batch["reference"]["text_features"]["distillation"][:VALID].T)
    return -jnp.mean(jnp.sum(frozen * jax.nn.log_softmax(SCALE * images @ unit(prompt).T), axis=1))


def tuned(clip, tuner, regulator, prompts, batches, **settings):
    phi = regulator.init(jax.random.key(0), {"texts": jnp.zeros((CLASSES, DIM))})
    tuning = gram.tuning.make_tuning(tuner, regulator, **settings)
    return gram.tuning.tune(tuning, prompts, phi, clip, batches, gram.tuning.Recipe(RATE, len(batches)))


def test_regularizers_are_the_formulas_added_by_weight(clip):
    prompts, batches = drawn(0)
    loss = objectives.batch_loss(directions(), "npt:0.5,kgcoop")
    assert dict(loss.weights) == {"kgcoop": 8.0, "npt": 0.5}
    found = tuned(clip, directions(), regulators.identity(), prompts, batches, loss=loss.loss)
    for run in range(RUNS):
        prompt = prompts["texts"][run, :VALID]
        for step, batch in enumerate(batches):
            images, labels = batch["images"][run], batch["labels"][run]

            def total(prompt, batch=batch, images=images, labels=labels):
                return cross_entropy(prompt, images, labels) + 8 * kgcoop(prompt, batch) + 0.5 * npt(
                    prompt, images, labels
                )  # fmt: skip

            value, gradient = jax.value_and_grad(total)(prompt)
            np.testing.assert_allclose(found.metrics["loss"][step, run], value, rtol=1e-5)
            prompt = prompt - RATE * gradient
        np.testing.assert_allclose(found.prompts[STEPS]["texts"][run, :VALID], prompt, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found.prompts[STEPS]["texts"][run, VALID:], prompts["texts"][run, VALID:])


@pytest.mark.parametrize("spec", ["", "kgcoop:2"])
def test_prograd_drops_what_conflicts_with_the_frozen_clip(clip, spec):
    prompts, batches = drawn(1)
    loss = objectives.batch_loss(directions(), spec, reference="distillation").loss if spec else None
    found = tuned(clip, directions(), regulators.prograd(0.8), prompts, batches, loss=loss)
    conflicts = []
    for run in range(RUNS):
        prompt = prompts["texts"][run, :VALID]
        for batch in batches:
            images, labels = batch["images"][run], batch["labels"][run]

            def task(prompt, batch=batch, images=images, labels=labels):
                return cross_entropy(prompt, images, labels) + (2 * kgcoop(prompt, batch) if spec else 0)

            own = np.asarray(jax.grad(task)(prompt), np.float64)
            general = np.asarray(jax.grad(teacher)(prompt, batch, images), np.float64)
            conflicts.append(np.sum(own * general) < 0)
            if conflicts[-1]:
                general /= np.linalg.norm(general)
                own = own - 0.8 * np.sum(own * general) * general
            prompt = prompt - RATE * own
        np.testing.assert_allclose(found.prompts[STEPS]["texts"][run, :VALID], prompt, rtol=1e-4, atol=1e-5)
    assert 0 < sum(conflicts) < len(conflicts)
    assert np.array_equal(found.metrics["gradient_cosine"].T.ravel() < 1 - 1e-5, conflicts)


def test_what_each_run_has_of_its_own_and_steps_that_compile_once(clip):
    """Logits of each run are adjusted by its own counts; other texts and counts run in the same program."""
    traced = []
    tuner = directions(traced)
    loss = objectives.batch_loss(tuner, "logit_adjustment:1.5,kgcoop:8")
    assert (loss.texts, loss.reads) == (("kgcoop",), {"counts", "text_features"})
    tuning = gram.tuning.make_tuning(tuner, regulators.identity(), loss=loss.loss)
    for seed in (2, 3):
        prompts, batches = drawn(seed, steps=2)
        counts = np.random.default_rng(seed).integers(1, 9, (RUNS, CLASSES)) * (np.arange(CLASSES) < VALID)
        batches = [batch | {"run_reference": {"counts": np.float32(counts)}} for batch in batches]
        found = gram.tuning.tune(tuning, prompts, {"texts": {}}, clip, batches, gram.tuning.Recipe(RATE, 2))
        for run in range(RUNS):
            prompt = prompts["texts"][run, :VALID]
            images, labels = batches[0]["images"][run], batches[0]["labels"][run]
            share = counts[run, :VALID] / counts[run].sum()
            scores = jax.nn.log_softmax(SCALE * images @ unit(prompt).T + 1.5 * np.log(share))
            expected = -np.mean(scores[np.arange(BATCH), labels]) + 8 * kgcoop(prompt, batches[0])
            np.testing.assert_allclose(found.metrics["loss"][0, run], expected, rtol=1e-5)
    assert len(traced) == 1


def test_every_regularizer_has_a_text_of_its_own(clip):
    prompts, (batch, *_) = drawn(4)
    one = batch | {"images": batch["images"][0], "labels": batch["labels"][0]}
    loss = objectives.batch_loss(directions(), "promptsrc:2,kgcoop:3")
    texts, frozen = unit(prompts["texts"][0, :VALID]), batch["reference"]["text_features"]["promptsrc"][:VALID]
    before, after = (jax.nn.log_softmax(SCALE * one["images"] @ each.T) for each in (frozen, texts))
    consistency = 25 * jnp.mean(jnp.abs(texts - frozen)) + jnp.sum(jnp.exp(before) * (before - after)) / (BATCH * VALID)
    expected = cross_entropy(texts, one["images"], one["labels"]) + 2 * consistency + 3 * kgcoop(texts, batch)
    found = loss.loss({"texts": prompts["texts"][0]}, clip, one)
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # image features are the frozen ones: that term is 0


def test_prompts_of_all_epochs_are_averaged(clip):
    prompts, batches = drawn(5, steps=6)
    tuning = gram.tuning.make_tuning(directions(), regulators.identity())
    given = (tuning, prompts, {"texts": {}}, clip, batches)
    recipe = gram.tuning.Recipe(RATE, 6, epoch_steps=2)
    last = gram.tuning.tune(*given, recipe, report=(2, 4))
    weights = np.array([0.2, 0.5, 0.3])
    found = gram.tuning.tune(*given, recipe._replace(epoch_weights=weights), report=(2, 4))
    expected = sum(weight * last.prompts[step]["texts"] for weight, step in zip(weights, (2, 4, 6), strict=True))
    np.testing.assert_allclose(found.prompts[6]["texts"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.prompts[4]["texts"], last.prompts[4]["texts"])  # on the way, as they are
    with pytest.raises(ValueError, match=r"2 epoch_weights .* total_steps=6 .* epoch_steps=2"):
        gram.tuning.tune(*given, recipe._replace(epoch_weights=weights[:2]))


def test_staged_losses_read_what_the_batch_holds(clip):
    """Any function may be the loss; what it reads beside images and labels is shared by the runs."""
    prompts, batches = drawn(6, steps=2)

    def staged(prompt, clip, batch):
        return jnp.where(batch["guided"], 2.0, 1.0) * jnp.sum(prompt["texts"])

    batches = [batch | {"guided": jnp.array(step == 0)} for step, batch in enumerate(batches)]
    found = tuned(clip, directions(), regulators.identity(), prompts, batches, loss=staged)
    np.testing.assert_allclose(found.prompts[2]["texts"], prompts["texts"] - 3 * RATE, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("kgcoop:0", "kgcoop: weight=0.0"),
        ("npt:nan", "npt: weight=nan"),
        ("nptt", "'nptt'.*'npt'"),
    ],
)
def test_what_cannot_be_is_named(spec, message):
    with pytest.raises(ValueError, match=message):
        objectives.batch_loss(directions(), spec)


def test_what_a_batch_lacks_is_named(clip):
    prompts, (batch, *_) = drawn(7)
    one = batch | {"images": batch["images"][0], "labels": batch["labels"][0], "reference": {}}
    with pytest.raises(ValueError, match=r"kgcoop reads reference.text_features, which is None"):
        objectives.batch_loss(directions(), "kgcoop").loss({"texts": prompts["texts"][0]}, clip, one)
