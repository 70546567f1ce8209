"""Downstream tuning: a linear tuner against NumPy, a real one against direct computation without padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gram_jax as gram
from gram_jax import encode_classes, evaluation, logits, regulators, tuners
from gram_jax.clip import TextPrompt
from gram_jax.testing import tiny_clip
from gram_jax.tuners import Outputs, Tuner

RUNS, BATCH, DIM, CLASSES, VALID = 3, 5, 4, 6, 4
RATES = {"bias": 0.3, "kernel": 0.7}


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(text_layers=1, vision_layers=1)


def linear(traced=None):
    """Softmax regression in the shape of a tuner: its gradient is known in closed form."""

    def apply(prompt, clip, classes, images):
        if traced is not None:
            traced.append(1)
        return Outputs(images @ prompt["kernel"] + prompt["bias"], images, classes)

    return Tuner("linear", {}, lambda key, clip, classes: None, apply, False, False)


def draw_prompts(rng):
    return {
        "bias": rng.normal(size=(RUNS, CLASSES)).astype(np.float32),
        "kernel": rng.normal(size=(RUNS, DIM, CLASSES)).astype(np.float32),
    }


def draw_batches(rng, steps):
    valid = np.arange(CLASSES) < VALID
    for _ in range(steps):
        images = rng.normal(size=(RUNS, BATCH, DIM)).astype(np.float32)
        yield {
            "classes": np.zeros((CLASSES, 2), np.float32),
            "valid": valid,
            "images": images,
            "labels": rng.integers(0, VALID, (RUNS, BATCH)),
        }


def numpy_gradient(prompt, images, labels):
    """Loss and gradient of softmax regression among the first VALID classes."""
    scores = (images @ prompt["kernel"] + prompt["bias"])[:, :VALID]
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.mean(np.log(p[np.arange(len(labels)), labels]))
    error = np.zeros((len(labels), CLASSES))
    error[:, :VALID] = p - np.eye(VALID)[labels]
    return loss, {"bias": error.mean(0), "kernel": images.T @ error / len(labels)}


def numpy_affine(phi, gradient):
    root = np.sqrt(np.mean(gradient**2))  # over the last two axes, which are all that a leaf has here
    return (1 + phi["scale"]) * gradient + root * phi["shift"]


def numpy_tune(prompts, batches, regulate, direction, factor):
    """The runs one after the other, the steps as they are written down."""
    found = []
    for run in range(RUNS):
        prompt = {name: leaf[run].astype(np.float64) for name, leaf in prompts.items()}
        memory = {name: (np.zeros_like(leaf), np.zeros_like(leaf)) for name, leaf in prompt.items()}
        losses = []
        for k, batch in enumerate(batches):
            loss, gradient = numpy_gradient(prompt, batch["images"][run], batch["labels"][run])
            losses.append(loss)
            for name in prompt:
                update, memory[name] = direction(regulate(name, gradient[name]), memory[name], k + 1)
                prompt[name] = prompt[name] - RATES[name] * factor(k) * update
        found.append((prompt, losses))
    return found


def heavy_ball(gradient, memory, step):
    velocity = gradient + 0.9 * memory[0]
    return velocity, (velocity, memory[1])


def adam(gradient, memory, step):
    first, second = 0.9 * memory[0] + 0.1 * gradient, 0.999 * memory[1] + 0.001 * gradient**2
    return first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8), (first, second)


def plain(gradient, memory, step):
    return gradient, memory


@pytest.mark.parametrize(
    ("settings", "direction"),
    [
        ({}, plain),
        ({"momentum": 0.9, "schedule": "cosine"}, heavy_ball),
        ({"optimizer": "adam", "schedule": "cosine"}, adam),
    ],
)
@pytest.mark.parametrize("regulated", [False, True])
def test_steps_equal_numpy(clip, settings, direction, regulated):
    rng, steps = np.random.default_rng(0), 4
    prompts, batches = draw_prompts(rng), list(draw_batches(rng, steps))
    regulator = regulators.affine() if regulated else regulators.identity()
    phi = jax.tree.map(
        lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype(np.float32),
        regulator.init(jax.random.key(0), jax.tree.map(lambda leaf: leaf[0], prompts)),
    )
    tuning = gram.tuning.make_tuning(linear(), regulator, **settings)
    found = gram.tuning.tune(tuning, prompts, phi, clip, batches, gram.tuning.Recipe(RATES, steps))
    expected = numpy_tune(
        prompts,
        batches,
        (lambda name, gradient: numpy_affine(phi[name], gradient)) if regulated else lambda name, gradient: gradient,
        direction,
        (lambda k: (1 + np.cos(np.pi * k / steps)) / 2) if settings else lambda k: 1.0,
    )
    for run, (prompt, losses) in enumerate(expected):
        for name, leaf in prompt.items():
            np.testing.assert_allclose(found.prompts[steps][name][run], leaf, rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(found.metrics["loss"][:, run], losses, rtol=1e-4)


@pytest.mark.parametrize("regulated", [False, True])
def test_weight_decay_goes_through_momentum_and_not_through_the_regulator(clip, regulated):
    """PyTorch's SGD: g + w theta into the velocity, the velocity times the rate of the epoch off theta."""
    rng, steps, epoch_steps, decay = np.random.default_rng(12), 6, 2, 0.3
    prompts, batches = draw_prompts(rng), list(draw_batches(rng, steps))
    regulator = regulators.affine() if regulated else regulators.identity()
    phi = jax.tree.map(
        lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype(np.float32),
        regulator.init(jax.random.key(0), jax.tree.map(lambda leaf: leaf[0], prompts)),
    )
    tuning = gram.tuning.make_tuning(linear(), regulator, momentum=0.9, weight_decay=decay, schedule="warmup_cosine")
    found = gram.tuning.tune(
        tuning, prompts, phi, clip, batches, gram.tuning.Recipe(RATES, steps, epoch_steps), report=range(steps)
    )
    for run in range(RUNS):
        prompt = {name: leaf[run].astype(np.float64) for name, leaf in prompts.items()}
        velocity = {name: np.zeros_like(leaf) for name, leaf in prompt.items()}
        for k, batch in enumerate(batches):
            _, gradient = numpy_gradient(prompt, batch["images"][run], batch["labels"][run])
            for name in prompt:
                own = numpy_affine(phi[name], gradient[name]) if regulated else gradient[name]
                velocity[name] = 0.9 * velocity[name] + own + decay * prompt[name]
                rate = [1e-5, RATES[name], RATES[name] * (1 + np.cos(np.pi / 3)) / 2][k // epoch_steps]
                prompt[name] = prompt[name] - rate * velocity[name]
            for name, leaf in prompt.items():
                np.testing.assert_allclose(found.prompts[k + 1][name][run], leaf, rtol=2e-4, atol=2e-5)
    with pytest.raises(ValueError, match="epoch_steps=0"):
        gram.tuning.tune(tuning, prompts, phi, clip, batches, gram.tuning.Recipe(0.1, 6, epoch_steps=0))


def test_leaves_have_rates_and_warmups_of_their_own_in_one_program(clip):
    rng, steps, traced = np.random.default_rng(13), 8, []
    prompts, batches = draw_prompts(rng), list(draw_batches(rng, steps))
    tuning = gram.tuning.make_tuning(linear(traced), regulators.identity(), schedule="warmup_cosine")
    for warmup in ({"bias": 1, "kernel": 3}, {"bias": 2, "kernel": 0}):
        found = gram.tuning.tune(
            tuning, prompts, {"bias": {}, "kernel": {}}, clip, batches, gram.tuning.Recipe(RATES, steps, 2, warmup),
        )  # fmt: skip
        for run in range(RUNS):
            prompt = {name: leaf[run].astype(np.float64) for name, leaf in prompts.items()}
            for k, batch in enumerate(batches):
                _, gradient = numpy_gradient(prompt, batch["images"][run], batch["labels"][run])
                for name in prompt:
                    past = k // 2 - warmup[name]
                    rate = 1e-5 if past < 0 else RATES[name] * (1 + np.cos(np.pi * past / 4)) / 2
                    prompt[name] = prompt[name] - rate * gradient[name]
            for name, leaf in prompt.items():
                np.testing.assert_allclose(found.prompts[steps][name][run], leaf, rtol=2e-4, atol=2e-5)
    assert len(traced) == 1
    with pytest.raises(ValueError, match="warmup_epochs"):
        gram.tuning.tune(
            tuning,
            prompts,
            {"bias": {}, "kernel": {}},
            clip,
            batches,
            gram.tuning.Recipe(0.1, 8, warmup_epochs={"bias": 1}),
        )


def test_regulation_is_measured_over_all_leaves(clip):
    rng = np.random.default_rng(1)
    prompts, (batch,) = draw_prompts(rng), draw_batches(rng, 1)
    regulator = regulators.affine()
    phi = {name: {part: rng.normal(size=CLASSES).astype(np.float32) for part in ("scale", "shift")} for name in prompts}
    tuning = gram.tuning.make_tuning(linear(), regulator)
    _, metrics = tuning.step(tuning.init(prompts), phi, clip, batch, 0.1, 1)
    for run in range(RUNS):
        _, gradient = numpy_gradient(
            {k: v[run] for k, v in prompts.items()}, batch["images"][run], batch["labels"][run]
        )
        raw = np.concatenate([gradient[name].ravel() for name in sorted(gradient)])
        after = np.concatenate([numpy_affine(phi[name], gradient[name]).ravel() for name in sorted(gradient)])
        lengths = np.linalg.norm(raw), np.linalg.norm(after)
        np.testing.assert_allclose(metrics["gradient_norm"][run], lengths[0], rtol=1e-4)
        np.testing.assert_allclose(metrics["gradient_norm_ratio"][run], lengths[1] / lengths[0], rtol=1e-4)
        np.testing.assert_allclose(metrics["gradient_cosine"][run], raw @ after / np.prod(lengths), rtol=1e-4)


def test_no_gradient_is_no_regulation(clip):
    # One class is certain and right: the softmax is 1 to the last bit, and the gradient 0.
    prompts = {"bias": np.tile(np.float32([500, 0, 0, 0, 0, 0]), (RUNS, 1)), "kernel": np.zeros((RUNS, DIM, CLASSES))}
    (batch,) = draw_batches(np.random.default_rng(2), 1)
    batch["labels"] = np.zeros_like(batch["labels"])
    tuning = gram.tuning.make_tuning(linear(), regulators.identity())
    _, metrics = tuning.step(tuning.init(prompts), {"bias": {}, "kernel": {}}, clip, batch, 0.1, 1)
    assert metrics["gradient_norm"].tolist() == [0.0] * RUNS
    assert metrics["gradient_norm_ratio"].tolist() == metrics["gradient_cosine"].tolist() == [1.0] * RUNS


def test_one_program_for_starts_rates_lengths_and_regulators(clip):
    traced, rng = [], np.random.default_rng(3)
    tuning = gram.tuning.make_tuning(linear(traced), regulators.affine(), schedule="cosine")
    for steps, rate in ((2, 0.1), (3, 7), (4, RATES), (1, np.float64(0.5))):
        phi = {name: {part: rng.normal(size=CLASSES) for part in ("scale", "shift")} for name in RATES}
        phi = jax.tree.map(jnp.float32, phi)
        gram.tuning.tune(
            tuning, draw_prompts(rng), phi, clip, draw_batches(rng, steps), gram.tuning.Recipe(rate, steps)
        )
    assert len(traced) == 1


def test_prompts_are_kept_where_asked(clip):
    rng = np.random.default_rng(4)
    prompts, batches = draw_prompts(rng), list(draw_batches(rng, 5))
    tuning = gram.tuning.make_tuning(linear(), regulators.identity())
    phi = {"bias": {}, "kernel": {}}
    found = gram.tuning.tune(tuning, prompts, phi, clip, batches, gram.tuning.Recipe(0.1, 5), report=(0, 2))
    assert sorted(found.prompts) == [0, 2, 5]
    for name, leaf in prompts.items():
        np.testing.assert_array_equal(found.prompts[0][name], leaf)
    shorter = gram.tuning.tune(tuning, prompts, phi, clip, batches, gram.tuning.Recipe(0.1, 2))
    np.testing.assert_array_equal(found.prompts[2]["kernel"], shorter.prompts[2]["kernel"])
    assert found.metrics["loss"].shape == (5, RUNS)
    with pytest.raises(ValueError, match=r"total_steps=6, .* 5 batches"):
        gram.tuning.tune(tuning, prompts, phi, clip, batches, gram.tuning.Recipe(0.1, 6))
    with pytest.raises(ValueError, match=r"report=\[2, 7\] with total_steps=2"):
        gram.tuning.tune(tuning, prompts, phi, clip, batches, gram.tuning.Recipe(0.1, 2), report=(7,))


@pytest.mark.parametrize("position", ["end", "middle"])
def test_padding_changes_neither_loss_nor_gradient(clip, position):
    names = ["cat", "a small red fish", "small_dog"]
    tuner, classes = tuners.coop(num_tokens=3, position=position), clip.class_tokens(names)
    prompt = tuner.init(jax.random.key(0), clip, classes)
    rng = np.random.default_rng(5)
    features = rng.normal(size=(7, clip.config.embed_dim)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels = np.arange(7) % 3

    def direct(context):
        texts = encode_classes(clip, classes, TextPrompt(context, class_position=position))
        scores = jax.nn.log_softmax(logits(features, texts, clip.params["logit_scale"]))
        return -jnp.mean(scores[jnp.arange(7), labels])

    value, gradient = jax.value_and_grad(direct)(prompt["context"])
    filled, valid = gram.tuning.pad_classes(clip, classes, prompt)
    assert (filled.tail_ids.shape, valid.shape) == ((16, 8), (16,))
    tuning = gram.tuning.make_tuning(tuner, regulators.identity())
    batch = {"classes": filled, "valid": valid, "images": features[None], "labels": labels[None]}
    stacked = jax.tree.map(lambda leaf: leaf[None], prompt)
    state, metrics = tuning.step(tuning.init(stacked), {"context": {}}, clip, batch, 1.0, 1)
    np.testing.assert_allclose(metrics["loss"][0], value, rtol=1e-5)
    step = prompt["context"] - state.prompts["context"][0]
    np.testing.assert_allclose(step, gradient, rtol=1e-3, atol=1e-5 * float(jnp.abs(gradient).max()) + 1e-7)


def test_predicts_every_run_and_image(clip):
    rng = np.random.default_rng(6)
    prompts, images = draw_prompts(rng), rng.normal(size=(300, DIM)).astype(np.float32)
    tuning = gram.tuning.make_tuning(linear(), regulators.identity())
    expected = np.einsum("nd,rdc->rnc", images, prompts["kernel"]) + prompts["bias"][:, None]
    classes, valid = np.zeros((CLASSES, 2)), np.arange(CLASSES) < VALID
    for batch_size in (4096, 300, 128, 7):
        found = evaluation.predict(tuning, prompts, clip, classes, valid, images, batch_size=batch_size)
        np.testing.assert_allclose(found, expected[..., :VALID], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no images"):
        evaluation.predict(tuning, prompts, clip, classes, valid, images[:0])


def test_sets_of_images_share_programs(clip):
    traced, rng = [], np.random.default_rng(7)
    tuning = gram.tuning.make_tuning(linear(traced), regulators.identity())
    prompts, classes, valid = draw_prompts(rng), np.zeros((CLASSES, 2)), np.ones(CLASSES, bool)
    for count in (1, 100, 256, 257, 400, 512):
        evaluation.predict(tuning, prompts, clip, classes, valid, rng.normal(size=(count, DIM)))
    assert len(traced) == 2


def test_padding_leaves_room_for_the_prompt(clip):
    limit = clip.config.text.context_length
    classes = clip.class_tokens(["a small red fish", "cat"])
    tail = classes.tail_ids.shape[1]
    assert tail == 6
    for tokens in (limit - 1 - tail, limit - 2 - tail, 4):
        tuner = tuners.coop(num_tokens=tokens)
        prompt = tuner.init(jax.random.key(0), clip, classes)
        filled, _ = gram.tuning.pad_classes(clip, classes, prompt)
        assert filled.tail_ids.shape[1] == min(8, limit - 1 - tokens)
        jax.eval_shape(tuner.apply, prompt, clip, filled, jnp.ones((1, 16)))  # raises where it is too long


def test_frozen_text_features_are_padded_too(clip):
    features = np.random.default_rng(8).normal(size=(17, 16)).astype(np.float32)
    filled, valid = gram.tuning.pad_classes(clip, features)
    assert filled.shape == (32, 16)
    np.testing.assert_array_equal(filled[:17], features)
    assert valid.tolist() == [True] * 17 + [False] * 15


def test_context_reaches_the_regulator(clip):
    rng = np.random.default_rng(10)
    prompts, (batch,) = draw_prompts(rng), draw_batches(rng, 1)
    regulator = regulators.gated_low_rank(rank=2, hidden=3, context_dim=4)
    first = jax.tree.map(lambda leaf: leaf[0], prompts)
    phi = jax.tree.map(lambda leaf: leaf + 0.5, regulator.init(jax.random.key(0), first))
    contexts = rng.normal(size=(RUNS, 4)).astype(np.float32)
    tuning = gram.tuning.make_tuning(linear(), regulator)
    state, _ = tuning.step(tuning.init(prompts), phi, clip, batch | {"context": contexts}, 1.0, 1)
    for run in range(RUNS):
        own = {name: leaf[run] for name, leaf in prompts.items()}
        _, gradient = numpy_gradient(own, batch["images"][run], batch["labels"][run])
        gradient = jax.tree.map(jnp.float32, gradient)
        for name, leaf in jax.jit(regulator.apply)(phi, gradient, contexts[run]).items():
            np.testing.assert_allclose(own[name] - state.prompts[name][run], leaf, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "lion"}, "optimizer='lion'"),
        ({"schedule": "linear"}, "schedule='linear'"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"momentum": 1.0}, "momentum=1.0 with optimizer='sgd'"),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum=0.9 with optimizer='adam'"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        gram.tuning.make_tuning(linear(), regulators.identity(), **settings)


def test_learning_rates_of_another_structure_are_refused(clip):
    rng = np.random.default_rng(11)
    tuning = gram.tuning.make_tuning(linear(), regulators.identity())
    (batch,) = draw_batches(rng, 1)
    for rate in ({"kernel": 0.1}, np.ones(3), None):
        with pytest.raises(ValueError, match="learning_rate"):
            tuning.step(tuning.init(draw_prompts(rng)), {"bias": {}, "kernel": {}}, clip, batch, rate, 1)
