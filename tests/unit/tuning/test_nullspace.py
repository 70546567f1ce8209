"""Prompts as keys and values, and updates in the null space of old tasks, against NumPy in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage

from gram_jax import tuners
from gram_jax.clip import encode_image
from gram_jax.objectives import norm_consistency
from gram_jax.testing import tiny_clip
from gram_jax.tuning.nullspace import (
    Covariances,
    batch_covariances,
    elbow,
    null_projection,
    null_space,
    observe,
    task_covariances,
)
from tests.unit.clip import reference

TOKENS = 3


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(vision_layers=2, text_layers=1)


def inputs(params, config, image):
    """Returns the tokens `[tokens, width]` that enter the first block."""
    side, count = config.patch_size, config.image_size // config.patch_size
    grid = np.float64(image).reshape(count, side, count, side, 3).swapaxes(1, 2).reshape(count**2, -1)
    x = np.concatenate([params["class_embedding"][None], grid @ params["patch_embedding"]])
    return reference.norm(x + params["position_embedding"], params["pre_norm"], config.norm_eps)


def forward(clip, image, prompts, first=0):
    """Returns the block inputs and the feature: each block runs on [x; P] as a whole, then the prompts are dropped."""
    params, config = reference.to_numpy(clip.params["vision"]), clip.config.vision
    x, entered = inputs(params, config, image), []
    for index in range(config.layers):
        own = prompts[index - first] if first <= index < first + len(prompts) else np.zeros((0, config.width))
        entered.append(x)
        x = reference.layer(np.concatenate([x, own]), reference.layer_params(params, index), config, False)[: len(x)]
    return entered, reference.norm(x[0], params["post_norm"], config.norm_eps) @ params["projection"]


@pytest.mark.parametrize(("depth", "first"), [(None, 0), (1, 1)])
def test_the_tuner_equals_blocks_whose_prompts_are_dropped(clip, images, depth, first):
    tuner = tuners.vpt_kv(num_tokens=TOKENS, depth=depth, first=first)
    prompt = tuner.init(jax.random.key(0), clip, None)
    texts = jnp.eye(clip.config.embed_dim)
    features = tuner.apply(prompt, clip, texts, images).image_features
    expected = [forward(clip, image, np.float64(prompt["prompts"]), first)[1] for image in images]
    np.testing.assert_allclose(features, reference.unit(np.stack(expected)), atol=3e-6)


def loop_covariances(clip, images, prompts, gain=False):
    """Returns both covariances of every layer, one image, one head and one token at a time."""
    params, config = reference.to_numpy(clip.params["vision"]), clip.config.vision
    size, width = config.width // config.heads, config.width
    one, two = np.zeros((len(prompts), width, width)), np.zeros((len(prompts), TOKENS, TOKENS))
    entered = [forward(clip, image, prompts)[0] for image in images]
    for index in range(len(prompts)):
        layer, rows = reference.layer_params(params, index), 0
        for x in (tokens[index] for tokens in entered):
            normed, own = (reference.norm(y, layer["norm_1"], config.norm_eps) for y in (x, prompts[index]))
            query = reference.dense(normed, layer["attention"]["query"])
            key = reference.dense(np.concatenate([own, normed]), layer["attention"]["key"])
            for head in range(config.heads):
                part = slice(head * size, (head + 1) * size)
                for i in range(len(x)):
                    row = layer["attention"]["key"]["kernel"][:, part] @ query[i, part]
                    row = row * layer["norm_1"]["scale"] if gain else row
                    scores = np.exp(key[:, part] @ query[i, part] / np.sqrt(size))
                    weights = (scores / scores.sum())[:TOKENS]
                    one[index] += np.outer(row, row)
                    two[index] += np.outer(weights, weights)
                    rows += 1
        one[index], two[index] = one[index] / rows, two[index] / rows
    return one, two


def restated_null(covariance):
    """Returns U U^T and the rank, from the rule of the elbow in words."""
    _, values, rows = np.linalg.svd(covariance)
    n = len(values)
    if n < 128:
        bends = [values[i - 1] - 2 * values[i] + values[i + 1] for i in range(1, n - 1)]
        place = 1 + bends.index(max(bends))
    else:
        curve = ndimage.gaussian_filter1d(values, sigma=10)
        bends = [curve[i - 1] - 2 * curve[i] + curve[i + 1] for i in range(1, n - 1)]
        cut = int(n * 0.03 / 2)
        inner = bends[cut : len(bends) - cut]
        place = inner.index(max(inner)) + int((n - len(inner)) / 2)
    last = max(i for i in range(n) if values[i] >= values[place])
    basis = rows[last:].T
    return basis @ basis.T, n - last


@pytest.mark.parametrize("gain", [False, True])
def test_covariances_equal_a_loop(clip, images, gain):
    prompt = tuners.vpt_kv(num_tokens=TOKENS).init(jax.random.key(0), clip, None)
    layer = clip.params["vision"]["layers"]["norm_1"]
    params = {**clip.params["vision"]["layers"], "norm_1": {**layer, "scale": layer["scale"] * 1.5 + 0.1}}
    clip = clip.replace(params={**clip.params, "vision": {**clip.params["vision"], "layers": params}})
    found = batch_covariances(clip, images, tuners.kv_slots(prompt), gain=gain)
    for one, other in zip(found, loop_covariances(clip, images, np.float64(prompt["prompts"]), gain), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("n", [5, 40, 127, 128, 200])
def test_the_elbow_and_the_projection_equal_their_restatement(n):
    rng = np.random.default_rng(n)
    rotation = np.linalg.qr(rng.normal(size=(n, n)))[0]
    values = np.sort(np.exp(-np.arange(n) / (n / 8)) + 1e-6 * rng.uniform(size=n))[::-1]
    covariance = np.float32((rotation * values) @ rotation.T)
    expected, rank = restated_null(np.float64(covariance))
    assert n - elbow(np.linalg.svd(np.float64(covariance))[1]) == rank
    np.testing.assert_allclose(null_projection(covariance), expected, atol=1e-5)


@pytest.mark.parametrize("divide", [True, False])
def test_three_tasks_equal_a_restatement_of_the_public_code(clip, divide):
    eta, rate, decay, steps = 0.9, 0.01, 5e-5, 3
    tuner = tuners.vpt_kv(num_tokens=TOKENS)
    texts = jax.random.normal(jax.random.key(1), (4, clip.config.embed_dim))
    start = tuner.init(jax.random.key(0), clip, None)
    images = jax.random.normal(jax.random.key(2), (3, 4, 12, 12, 3))

    @jax.jit
    def gradient(prompt, previous, images, consistent):
        def loss(prompt):
            scores = tuner.apply(prompt, clip, texts, images).logits / 28
            classification = -jax.nn.log_softmax(scores)[jnp.arange(4), jnp.arange(4)].mean()
            return classification + consistent * norm_consistency(prompt, previous)

        return jax.grad(loss)(prompt)

    ours, theirs = start, np.float64(start["prompts"])
    space = null_space(eta, divide=divide)
    state, sums = space.init(start), None
    previous = start
    for task in range(3):
        descent = optax.chain(optax.add_decayed_weights(decay), optax.scale_by_adam())
        adam = descent.init(ours)
        moment, square = np.zeros_like(theirs), np.zeros_like(theirs)
        old = np.float32(theirs)  # its own: |mu - mu'| has a kink at 0
        for step in range(1, steps + 1):
            updates, adam = descent.update(gradient(ours, previous, images[task], float(task > 0)), adam, ours)
            updates, _ = space.update(updates, state)
            ours = optax.apply_updates(ours, jax.tree.map(lambda leaf: -rate * leaf, updates))

            given = {"prompts": jnp.float32(theirs)}, {"prompts": jnp.asarray(old)}
            slope = np.float64(gradient(*given, images[task], float(task > 0))["prompts"]) + decay * theirs
            moment, square = 0.9 * moment + 0.1 * slope, 0.999 * square + 0.001 * slope**2
            change = moment / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
            for layer in range(2 if sums else 0):
                sides = []
                for covariance in sums:
                    projection, rank = restated_null(covariance[layer])
                    projection = projection / np.sqrt(rank) if divide else projection
                    sides.append(eta * projection + (1 - eta) * np.eye(len(projection)))
                change[layer] = sides[1] @ change[layer] @ sides[0]
            theirs = theirs - rate * change
        np.testing.assert_allclose(ours["prompts"], theirs, atol=1e-5)
        previous = ours
        state = observe(state, task_covariances(clip, [images[task]], tuners.kv_slots(ours)))
        found = loop_covariances(clip, images[task], theirs)
        sums = found if sums is None else [a + b for a, b in zip(sums, found, strict=True)]
    assert np.abs(theirs - np.float64(start["prompts"])).max() > 0.02


def test_norm_consistency_is_that_of_the_public_code():
    rng = np.random.default_rng(0)
    new, old = np.float32(rng.normal(size=(2, 2, 3, 8)))
    expected = 0.0
    for layer, was in zip(np.float64(new), np.float64(old), strict=True):
        expected += np.abs(layer.mean(-1) - was.mean(-1)).mean() + np.abs(layer.std(-1) - was.std(-1)).mean()
    assert float(norm_consistency({"p": jnp.asarray(new)}, {"p": jnp.asarray(old)})) == pytest.approx(expected, 1e-5)
    same = {"p": jnp.ones((1, 2, 4))}
    assert np.isfinite(jax.grad(norm_consistency)(same, same)["p"]).all()


def test_old_features_do_not_move_in_the_exact_null_space():
    # One layer, one wide head and few image tokens: both null spaces are large. The step also keeps mean and variance.
    tokens = 16
    clip = tiny_clip(vision_layers=1, vision_heads=1, vision_width=96, text_layers=1)
    old = jax.random.normal(jax.random.key(3), (1, 12, 12, 3))
    prompts = jax.random.normal(jax.random.key(0), (1, tokens, 96))
    prompts = prompts - prompts.mean(-1, keepdims=True)
    prompts = {"prompts": prompts / prompts.std(-1, keepdims=True)}
    found = batch_covariances(clip, old, tuners.kv_slots(prompts), gain=True)
    kept = jnp.concatenate([prompts["prompts"][0], jnp.ones((1, 96))])
    found = Covariances(found.affinity + (kept.T @ kept)[None], found.weights)
    exact = Covariances(*(jnp.asarray([exact_projection(np.asarray(one[0]))]) for one in found))
    space = null_space(1.0, divide=False)
    state = space.init(prompts)._replace(projections=exact, tasks=jnp.int32(1))
    updates = {"prompts": 1e-2 * jax.random.normal(jax.random.key(5), (1, tokens, 96))}
    projected, _ = space.update(updates, state)
    assert jnp.abs(projected["prompts"]).max() > 1e-3

    def moved(step):
        after = optax.apply_updates(prompts, step)
        features = [encode_image(clip, old, slots=tuners.kv_slots(each)) for each in (prompts, after)]
        return float(jnp.abs(features[0] - features[1]).max())

    assert moved(projected) < 1e-5
    assert moved(updates) > 1e-4


def exact_projection(covariance):
    values, vectors = np.linalg.eigh(np.float64(covariance))
    basis = vectors[:, values < 1e-6 * values.max()]
    assert 0 < basis.shape[1] < len(values)
    return np.float32(basis @ basis.T)


def test_it_is_the_identity_bit_for_bit_until_a_task_was_observed_and_with_eta_0(clip, images):
    prompt = tuners.vpt_kv(num_tokens=TOKENS).init(jax.random.key(0), clip, None)
    updates = {"prompts": jax.random.normal(jax.random.key(1), prompt["prompts"].shape), "other": jnp.ones(3)}
    space = null_space(0.97)
    state = space.init(updates)
    for name, leaf in space.update(updates, state)[0].items():
        np.testing.assert_array_equal(leaf, updates[name])
    state = observe(state, batch_covariances(clip, images, tuners.kv_slots(prompt)))
    assert int(state.tasks) == 1
    assert jnp.abs(space.update(updates, state)[0]["prompts"] - updates["prompts"]).max() > 0.1
    unchanged, _ = null_space(0.0).update(updates, state)
    np.testing.assert_allclose(unchanged["prompts"], updates["prompts"], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: null_space(1.5), r"eta=1\.5"),
        (lambda: elbow(np.ones(2)), "2 singular values"),
        (lambda: tuners.vpt_kv(num_tokens=0), "num_tokens"),
        (
            lambda: tuners.vpt_kv(depth=2, first=1).init(jax.random.key(0), tiny_clip(vision_layers=2), None),
            r"first \+ depth=3",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
