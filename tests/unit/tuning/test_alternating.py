"""ProMetaR's step against real splits and gradients by hand; its draws; one compiled program."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gram_jax as gram
from gram_jax import encode_classes, encode_image, regulators, tuners
from gram_jax.clip import TextPrompt, VisualPrompt
from gram_jax.testing import tiny_clip
from gram_jax.tuners import Outputs, Tuner
from gram_jax.tuning.alternating import draw_query, make_alternating

RUNS, BATCH, STEPS, EPOCH = 2, 4, 4, 2
NAMES = ["cat", "small dog", "green frog"]
RATE, DECAY, MOMENTUM, ADAPT, QUERY, OF_PHI = 0.02, 0.3, 0.9, 0.2, 0.7, 0.5
# Of each run batches of two or three classes, and one of a single class, which has no second step.
LABELS = np.array([[[0, 1, 1, 0], [2, 0, 2, 0]], [[1, 2, 0, 1], [1, 1, 2, 2]],
                   [[1, 1, 1, 1], [0, 1, 2, 2]], [[0, 2, 2, 0], [1, 1, 1, 1]]])  # fmt: skip


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(text_layers=1, vision_layers=1)


def unit(vectors):
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def setting(clip):
    """A clip's classes and batches, of which the frozen features are those of the same images."""
    rng, classes = np.random.default_rng(0), clip.class_tokens(NAMES)
    filled, valid = gram.tuning.pad_classes(clip, classes)
    texts = np.asarray(unit(rng.normal(size=(len(NAMES), clip.config.embed_dim))), np.float32)
    padded, _ = gram.tuning.pad_classes(clip, texts)
    batches = []
    for labels in LABELS:
        images = rng.normal(size=(RUNS, BATCH, 12, 12, 3)).astype(np.float32)
        frozen = np.stack([encode_image(clip, own) for own in images])
        batches.append({
            "classes": filled, "valid": valid, "images": images, "labels": labels, "seed": np.array([7, 8], np.uint32),
            "reference": {"text_features": {"prometar": padded}}, "run_reference": {"image_features": frozen},
        })  # fmt: skip
    return classes, texts, batches


def prompted(clip, classes, prompt, images):
    """Text features, and features of images before they are normalized."""
    texts = encode_classes(clip, classes, TextPrompt(prompt["text"]["context"]))
    return texts, encode_image(clip, images, VisualPrompt(prompt["visual"]["tokens"]), normalize=False)


def cross_entropies(clip, features, texts, labels):
    scores = jnp.exp(clip.params["logit_scale"]) * unit(features) @ texts.T
    return jnp.log(jnp.sum(jnp.exp(scores), axis=1)) - scores[jnp.arange(len(labels)), labels]


def modulated(phi, gradient, reference):
    """g + sigma(W_2 W_1 [g; r]) r, a gate for every eight entries, leaf by leaf, written out."""
    found = {}
    for side, leaves in gradient.items():
        found[side] = {}
        for name, leaf in leaves.items():
            own = phi[side][name]
            both = jnp.concatenate([leaf.ravel(), reference[side][name].ravel()])
            gate = jax.nn.sigmoid(both @ own["inner"] @ own["outer"])
            gate = jnp.repeat(gate, 8)[: leaf.size].reshape(leaf.shape)
            found[side][name] = leaf + gate * reference[side][name]
    return found


@jax.jit
def regulated(clip, fixed, prompt, phi, images, labels, frozen_images):
    """The regulated gradient on images that are all there is, and the cross-entropy."""
    classes, frozen_texts = fixed

    def task(prompt):
        texts, features = prompted(clip, classes, prompt, images)
        return jnp.mean(cross_entropies(clip, features, texts, labels))

    def held(prompt):
        texts, features = prompted(clip, classes, prompt, images)
        near = 50 * jnp.mean(jnp.abs(texts - frozen_texts)), 20 * jnp.mean(jnp.abs(unit(features) - frozen_images))
        return near[0] + near[1]

    return modulated(phi, jax.grad(task)(prompt), jax.grad(held)(prompt)), task(prompt)


@jax.jit
@functools.partial(jax.value_and_grad, argnums=(2, 3))
def asked(clip, fixed, prompt, phi, support, query):
    """The loss of the query after a step on the support; both are all there is."""
    own, _ = regulated(clip, fixed, prompt, phi, *support)
    adapted = jax.tree.map(lambda leaf, by: leaf - ADAPT * by, prompt, own)
    (images, labels), (others, other_labels), shares = query
    texts, features = prompted(clip, fixed[0], adapted, images)
    _, of_others = prompted(clip, fixed[0], adapted, others)
    mixed = shares[:, None] * features + (1 - shares)[:, None] * of_others
    first, second = (cross_entropies(clip, mixed, texts, of) for of in (labels, other_labels))
    return jnp.mean(shares * first + (1 - shares) * second)


def rate_of(step, base, low):
    epoch = step // EPOCH
    return low if epoch == 0 else base / 2 * (1 + math.cos(math.pi * (epoch - 1) / (STEPS // EPOCH)))


def restated(clip, setting, run, prompt, phi):
    """PyTorch's SGD on both, the splits by indices."""
    *fixed, batches = setting
    velocities = [jax.tree.map(np.zeros_like, tree) for tree in (prompt, phi)]
    losses, queries = [], []

    def moved(which, learned, gradient, rate):
        def velocity(before, leaf, parameter):
            return MOMENTUM * before + np.asarray(leaf, np.float64) + DECAY * np.asarray(parameter, np.float64)

        velocities[which] = jax.tree.map(velocity, velocities[which], gradient, learned)
        return jax.tree.map(lambda leaf, by: np.float32(leaf - rate * by), learned, velocities[which])

    for step, batch in enumerate(batches):
        images, labels = batch["images"][run], batch["labels"][run]
        frozen = batch["run_reference"]["image_features"][run]
        gradient, loss = regulated(clip, tuple(fixed), prompt, phi, images, labels, frozen)
        losses.append(float(loss))
        prompt = moved(0, prompt, gradient, rate_of(step, RATE, 1e-5))
        if len(set(labels.tolist())) == 1:
            queries.append(0.0)
            continue
        drawn = draw_query(jax.random.fold_in(jax.random.key(batch["seed"][run]), step), labels)
        mask, partner, share = map(np.asarray, drawn)
        query, support = np.flatnonzero(mask), np.flatnonzero(mask == 0)
        others = partner[query]
        assert len(set(labels[query].tolist())) == 1
        assert set(others.tolist()) <= set(support.tolist())
        value, gradients = asked(
            clip, tuple(fixed), prompt, phi, (images[support], labels[support], frozen[support]),
            ((images[query], labels[query]), (images[others], labels[others]), share[query]),
        )  # fmt: skip
        queries.append(float(value))
        of_prompt, of_phi = (jax.tree.map(lambda leaf: QUERY * leaf, tree) for tree in gradients)
        prompt = moved(0, prompt, of_prompt, rate_of(step, RATE, 1e-5))
        phi = moved(1, phi, of_phi, rate_of(step, OF_PHI * RATE, 1e-6))
    return prompt, phi, losses, queries


def begun(clip, tuner, regulator):
    keys = [jax.random.key(run) for run in range(RUNS)]
    prompts = [tuner.init(key, clip, None) for key in keys]
    phis = [
        jax.tree.map(lambda leaf: 3 * leaf, regulator.init(key, own)) for key, own in zip(keys, prompts, strict=True)
    ]
    return [jax.tree.map(lambda *leaves: np.stack(leaves), *each) for each in (prompts, phis)]


def test_steps_equal_real_splits_and_gradients_by_hand(clip, setting):
    tuner, regulator = tuners.ivlp(num_text=2, num_visual=2, depth=1, init_text=None), regulators.prometar()
    tuning = make_alternating(
        tuner, regulator, momentum=MOMENTUM, weight_decay=DECAY, schedule="warmup_cosine",
        adapt_rate=ADAPT, query_weight=QUERY, phi_rate=OF_PHI,
    )  # fmt: skip
    prompts, phis = begun(clip, tuner, regulator)
    state, found = tuning.init(prompts, phis), []
    for batch in setting[-1]:
        state, metrics = tuning.step(state, None, clip, batch, RATE, STEPS, EPOCH)
        found.append(metrics)
    for run in range(RUNS):
        own = [jax.tree.map(lambda leaf, run=run: leaf[run], tree) for tree in (prompts, phis)]
        *expected, losses, queries = restated(clip, setting, run, *own)
        for got, wanted, start in zip((state.prompts, state.phi), expected, own, strict=True):
            for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
                before, after = (dict(jax.tree_util.tree_leaves_with_path(tree))[path] for tree in (start, got))
                scale = np.abs(leaf - before).max()
                assert scale > 1e-5
                np.testing.assert_allclose(after[run], leaf, atol=1e-5, rtol=1e-5)
                np.testing.assert_allclose(after[run] - before, leaf - before, atol=5e-3 * scale)
        np.testing.assert_allclose([metrics["loss"][run] for metrics in found], losses, rtol=1e-5)
        np.testing.assert_allclose([metrics["query_loss"][run] for metrics in found], queries, rtol=1e-5, atol=1e-7)
    assert [float(metrics["query_loss"][0] > 0) for metrics in found] == [1, 1, 0, 1]


def test_queries_are_one_class_and_partners_of_the_others():
    labels = np.array([4, 9, 9, 4, 9, 2])
    keys = jax.random.split(jax.random.key(0), 4000)
    query, partner, share = map(np.asarray, jax.vmap(lambda key: draw_query(key, labels))(keys))
    chosen = np.array([set(labels[row > 0].tolist()).pop() for row in query])
    np.testing.assert_array_equal(query > 0, labels[None] == chosen[:, None])
    for label in (2, 4, 9):  # each class as likely, however many images it has
        assert abs(np.mean(chosen == label) - 1 / 3) < 0.03
        others = np.flatnonzero(labels != label)
        counts = np.bincount(partner[chosen == label].ravel(), minlength=6)
        assert set(np.flatnonzero(counts)) == set(others)
        np.testing.assert_allclose(counts[others] / counts.sum(), 1 / len(others), atol=0.03)
    assert abs(share.mean() - 0.5) < 0.01
    assert abs(share.var() - 1 / 8) < 0.005  # of Beta(1/2, 1/2)
    lone, nobody, _ = draw_query(keys[0], np.array([3, 3]))
    assert lone.tolist() == [1, 1]
    assert set(nobody.tolist()) <= {0, 1}


def directions(traced):
    """A tuner whose prompt is the text features, but for their length."""

    def apply(prompt, clip, classes, images):
        traced.append(1)
        texts = unit(prompt["texts"])
        return Outputs(10 * images @ texts.T, images, texts)

    return Tuner("directions", {}, lambda key, clip, classes: None, apply, False, False)


def test_one_program_for_all_splits_starts_and_lengths(clip):
    rng, traced = np.random.default_rng(3), []
    tuning = make_alternating(directions(traced), regulators.affine(), schedule="cosine")
    for count in (3, 5):
        prompts = {"texts": rng.normal(size=(RUNS, 3, 4)).astype(np.float32)}
        phis = jax.vmap(regulators.affine().init)(jax.random.split(jax.random.key(count), RUNS), prompts)
        batches = [
            {"classes": np.zeros((3, 2), np.float32), "images": np.float32(unit(rng.normal(size=(RUNS, BATCH, 4)))),
             "labels": rng.integers(0, 1 + number % 3, (RUNS, BATCH)), "seed": np.arange(RUNS)}
            for number in range(count)
        ]  # fmt: skip
        found = gram.tuning.tune(
            tuning, prompts, phis, clip, batches, gram.tuning.Recipe(0.1 * count, count), report=(0,)
        )
        assert np.all(np.isfinite(found.metrics["loss"]))
        assert found.metrics["query_loss"][0].tolist() == [0, 0]  # of one class
        assert np.all(found.metrics["query_loss"][2] > 0)
        assert len(traced) == 3  # on the batch, on the support, on the query
    assert tuning.lower(tuning.init(prompts, phis), None, clip, batches[0], 0.1, 1).compile()


def test_other_tuners_mix_normalized_features(clip):
    rng = np.random.default_rng(4)
    images, labels = np.float32(unit(rng.normal(size=(1, BATCH, 4)))), np.array([[0, 1, 0, 2]])
    prompts = {"texts": rng.normal(size=(1, 3, 4)).astype(np.float32)}
    tuning = make_alternating(directions([]), regulators.affine(), adapt_rate=1e-9)
    clip = clip.replace(params=clip.params | {"logit_scale": jnp.log(10.0)})
    phis = jax.vmap(regulators.affine().init)(jax.random.split(jax.random.key(0), 1), prompts)
    batch = {"classes": np.zeros((3, 2), np.float32), "images": images, "labels": labels, "seed": np.array([5])}
    _, metrics = tuning.step(tuning.init(prompts, phis), None, clip, batch, 0.0, 1)
    query, partner, share = map(
        np.asarray, draw_query(jax.random.fold_in(jax.random.key(np.uint32(5)), 0), labels[0])
    )  # fmt: skip
    texts, total = np.asarray(unit(prompts["texts"][0])), []
    for i in np.flatnonzero(query):
        mixed = share[i] * images[0, i] + (1 - share[i]) * images[0, partner[i]]
        scores = 10 * texts @ mixed / np.linalg.norm(mixed)
        scores -= np.log(np.sum(np.exp(scores)))
        total.append(-share[i] * scores[labels[0, i]] - (1 - share[i]) * scores[labels[0, partner[i]]])
    np.testing.assert_allclose(metrics["query_loss"][0], np.mean(total), rtol=1e-5)


def test_what_cannot_be_is_refused(clip):
    tuner = tuners.coop()
    for settings, message in (
        ({"adapt_rate": 0}, "adapt_rate=0"),
        ({"query_weight": math.inf}, "query_weight=inf"),
        ({"phi_rate": True}, "phi_rate=True"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"weight_decay": -1}, "weight_decay=-1"),
        ({"schedule": "step"}, "schedule='step'"),
    ):
        with pytest.raises(ValueError, match=message):
            make_alternating(tuner, regulators.prometar(), **settings)
    with pytest.raises(ValueError, match=r"structured .*prototypes"):
        make_alternating(tuner, regulators.structured(prototypes=2))
    prompts = {"context": jnp.zeros((1, 4, 8))}
    for phi in (None, {"context": {}}):
        with pytest.raises(ValueError, match="prometar"):
            make_alternating(tuner, regulators.prometar()).init(prompts, phi)
    phi = jax.tree.map(
        lambda leaf: leaf[None], regulators.prometar().init(jax.random.key(0), {"context": prompts["context"][0]})
    )
    tuning = make_alternating(tuner, regulators.prometar())
    with pytest.raises(ValueError, match='"seed"'):
        tuning.step(tuning.init(prompts, phi), None, clip, {"images": 0}, 0.1, 1)
