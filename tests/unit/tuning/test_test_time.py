"""Test-time tuning against PyTorch's optimizer and a loss written from the formula; what it shares and refuses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax import regulators, tuners
from gram_jax.testing import tiny_clip
from gram_jax.tuning import make_test_time_tuning, pad_classes, predict_test_time

IMAGES, VIEWS, KEPT, RATE = 3, 12, 3, 0.02
SHARE = 0.25
NAMES = ["cat", "small_dog", "large green frog"]
TUNERS = {"coop": tuners.coop(init_text="a photo of a"), "vpt": tuners.vpt(num_tokens=2)}


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(text_layers=1, vision_layers=1)


@pytest.fixture(scope="module")
def classes(clip):
    return clip.class_tokens(NAMES)


def inputs(name, clip, seed=0):
    """A start and the views of some images, as the tuner takes them."""
    rng = np.random.default_rng(seed)
    size = clip.config.vision.image_size
    views = rng.normal(size=(IMAGES, VIEWS, *((16,) if name == "coop" else (size, size, 3))))
    if name == "coop":
        views /= np.linalg.norm(views, axis=-1, keepdims=True)
    return TUNERS[name].init(jax.random.key(3), clip, None), views.astype(np.float32)


def make_published(tuner, clip, classes):
    """One image by the formula: PyTorch takes entropies, their gradients and steps; JAX only runs the frozen clip."""
    torch = pytest.importorskip("torch")

    @jax.jit
    def run(prompt, views):
        return tuner.apply(prompt, clip, classes, views).logits

    @jax.jit
    def pull(prompt, views, by_logits):
        return jax.vjp(lambda prompt: run(prompt, views), prompt)[1](by_logits)[0]

    return lambda prompt, views, steps: _published(torch, run, pull, prompt, views, steps)


def _published(torch, run, pull, prompt, views, steps):
    leaves, structure = jax.tree.flatten(prompt)
    theta = [torch.tensor(np.asarray(leaf), requires_grad=True) for leaf in leaves]
    optimizer = torch.optim.AdamW(theta, lr=RATE)  # weight decay 0.01, eps 1e-8, betas (0.9, 0.999)

    def now():
        return structure.unflatten([jnp.asarray(leaf.detach().numpy()) for leaf in theta])

    p = torch.softmax(torch.tensor(np.array(run(prompt, views))), 1)
    kept = sorted(range(VIEWS), key=lambda v: -float((p[v] * p[v].log()).sum()))[:KEPT]
    losses = []
    for _ in range(steps):
        logits = torch.tensor(np.array(run(now(), views)), requires_grad=True)
        mean = torch.softmax(logits[kept], 1).mean(0)
        loss = -(mean * mean.log()).sum()
        loss.backward()
        for leaf, grad in zip(theta, jax.tree.leaves(pull(now(), views, logits.grad.numpy())), strict=True):
            leaf.grad = torch.tensor(np.array(grad))
        optimizer.step()
        losses.append(loss.item())
    start, end = (np.asarray(run(each, views))[0] for each in (prompt, now()))
    return start, end, np.array(losses), kept


@pytest.mark.parametrize(("name", "steps"), [("coop", 2), ("vpt", 1)])
def test_tpt_is_that_of_the_formula(name, steps, clip, classes):
    tuner, (prompt, views) = TUNERS[name], inputs(name, clip)
    tune = make_test_time_tuning(tuner, share=SHARE, steps=steps)
    found = tune(prompt, None, clip, {"views": views, "classes": classes}, RATE)
    published = make_published(tuner, clip, classes)
    for image in range(IMAGES):
        start, logits, losses, kept = published(prompt, views[image], steps)
        np.testing.assert_allclose(found.logits[image], logits, atol=1e-5 * math.exp(clip.params["logit_scale"]))
        np.testing.assert_allclose(found.losses[image], losses, rtol=1e-5)
        assert found.kept[image].tolist() == kept
        assert losses[-1] < losses[0] or steps == 1
        np.testing.assert_allclose(found.initial_logits[image], start, atol=1e-4)
        assert np.abs(logits - start).max() > 1e-2


@pytest.fixture(scope="module")
def coop(clip, classes):
    prompt, views = inputs("coop", clip, seed=1)
    tune = make_test_time_tuning(TUNERS["coop"], share=SHARE)
    return tune, prompt, views, tune(prompt, None, clip, {"views": views, "classes": classes}, RATE)


def assert_close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


def test_each_image_begins_anew(coop, clip, classes):
    """The order of the images does not matter."""
    tune, prompt, views, found = coop
    order = np.array([2, 0, 1])
    turned = tune(prompt, None, clip, {"views": views[order], "classes": classes}, RATE)
    assert_close(turned, jax.tree.map(lambda array: array[order], found))


def test_one_by_one_compiled_once_is_all_at_once(coop, clip, classes):
    """The class list is filled up, and another start, rate or list is no reason to compile again."""
    _, prompt, views, expected = coop
    traced = []

    def apply(*arguments):
        traced.append(arguments)
        return TUNERS["coop"].apply(*arguments)

    tune = make_test_time_tuning(TUNERS["coop"]._replace(apply=apply), share=SHARE)
    padded, valid = pad_classes(clip, classes, prompt)
    batch = {"classes": padded, "valid": valid, "views": views}
    found = predict_test_time(tune, prompt, None, clip, batch, RATE, batch_size=1)
    assert_close(found, expected)
    assert found.logits.shape == (IMAGES, len(NAMES))
    once = len(traced)
    other = jax.tree.map(lambda leaf: leaf + 0.1, prompt)
    again = predict_test_time(tune, other, None, clip, batch, 0.3, batch_size=1)
    assert np.abs(again.logits - found.logits).max() > 1e-2
    assert len(traced) == once


def test_every_image_may_have_a_start_of_its_own(coop, clip, classes):
    tune, prompt, views, shared = coop
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 0.2, leaf]), prompt)
    batch = {"classes": classes, "valid": [True] * 3, "views": views}
    found = predict_test_time(tune, starts, None, clip, batch, RATE, own=True, batch_size=2)
    moved = tune(jax.tree.map(lambda leaf: leaf[1], starts), None, clip, {"views": views, "classes": classes}, RATE)
    for image, expected in enumerate((shared, moved, shared)):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one[image], other[image], rtol=1e-4, atol=1e-4)


def test_a_regulator_that_has_learned_nothing_changes_nothing(coop, clip, classes):
    _, prompt, views, expected = coop
    regulator = regulators.mask(hidden=3, context_dim=5)
    phi = regulator.init(jax.random.key(0), prompt)
    batch = {"views": views, "classes": classes, "context": np.ones((IMAGES, 5), np.float32)}
    assert_close(
        make_test_time_tuning(TUNERS["coop"], regulator, share=SHARE)(prompt, phi, clip, batch, RATE), expected
    )


def test_the_regulated_step_is_that_of_the_formula(clip, classes):
    """theta - alpha R(g, c) under SGD, each image with a context of its own."""
    prompt, views = inputs("coop", clip, seed=2)
    regulator, rng = regulators.structured(prototypes=4, rank=2), np.random.default_rng(5)
    phi = jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32),
        regulator.init(jax.random.key(0), prompt),
    )
    contexts = rng.dirichlet(np.ones(4), IMAGES).astype(np.float32)
    tune = make_test_time_tuning(TUNERS["coop"], regulator, share=SHARE, optimizer="sgd", weight_decay=0.0)
    padded, valid = pad_classes(clip, classes, prompt)
    batch = {"classes": padded, "valid": valid, "views": views, "context": contexts}
    found = predict_test_time(tune, prompt, phi, clip, batch, 2.0, batch_size=2)
    apply = jax.jit(TUNERS["coop"].apply)

    @jax.jit
    def gradient(prompt, images):
        def loss(prompt):
            mean = jnp.mean(jax.nn.softmax(apply(prompt, clip, classes, images).logits), 0)
            return -jnp.sum(mean * jnp.log(mean))

        return jax.grad(loss)(prompt)

    ends = []
    for image in range(IMAGES):
        grads = gradient(prompt, views[image, found.kept[image]])
        regulated = regulator.apply(phi, grads, contexts[image])
        end = {"context": prompt["context"] - 2.0 * regulated["context"]}
        ends.append(apply(end, clip, classes, views[image, :1]).logits[0])
        plain = {"context": prompt["context"] - 2.0 * grads["context"]}
        assert np.abs(apply(plain, clip, classes, views[image, :1]).logits[0] - ends[-1]).max() > 1e-3
    np.testing.assert_allclose(found.logits, np.stack(ends), atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0}, "share=0"),
        ({"share": 1.5}, "share=1.5"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 1.0}, "steps=1.0"),
        ({"optimizer": "adam"}, "optimizer='adam'"),
        ({"weight_decay": -1}, "weight_decay=-1"),
        ({"regulator": regulators.prograd()}, "prograd .*'distillation'"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_test_time_tuning(TUNERS["coop"], **settings)


def test_impossible_inputs_are_named(clip, classes):
    prompt, views = inputs("coop", clip)
    tune = make_test_time_tuning(TUNERS["coop"], share=0.05)
    with pytest.raises(ValueError, match=r"share=0\.05 of 12 views"):
        tune(prompt, None, clip, {"views": views, "classes": classes}, RATE)
    with pytest.raises(ValueError, match="learning_rate"):
        make_test_time_tuning(TUNERS["coop"])(
            prompt, None, clip, {"views": views, "classes": classes}, {"contex": RATE}
        )
    batch = {"classes": classes, "valid": [True] * 3, "views": views[:0]}
    with pytest.raises(ValueError, match="0 images"):
        predict_test_time(tune, prompt, None, clip, batch, RATE)
