"""Published recipes: what they set, and one of them run end to end against NumPy, step by step."""

import hashlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import gram_jax as gram
from experiments.evaluate import run as evaluate
from gram_jax import evaluation
from gram_jax.clip import TextPrompt
from gram_jax.data import augmented_view, load_dataset
from gram_jax.testing import tiny_clip
from tests.system.watching import watch

SEEDS = (1, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    gram.save_clip(tiny_clip(seed=1, text_layers=1, vision_layers=1, text_context_length=40), folder)
    return str(folder)


def restated(clip, seed, shots, epochs, batch_size, decay, fresh, base=0.002):
    """CoOp's context after every step: Dassl's schedule, PyTorch's SGD, the drawn batches, written out."""
    chess = load_dataset("glyphs:chess")
    support = [p for p in evaluation.few_shot(chess, shots, seed).tolist() if chess.labels[p] < 6]
    names = clip.class_tokens(list(chess.class_names[:6]))

    @jax.jit
    def gradient(context, features, labels):
        def loss(context):
            texts = gram.encode_classes(clip, names, TextPrompt(context))
            scores = jax.nn.log_softmax(gram.logits(features, texts, clip.params["logit_scale"]))
            return -jnp.mean(scores[jnp.arange(len(labels)), labels])

        return jax.grad(loss)(context)

    def shown(position, epoch):
        image = chess.images([position])[0]
        if not fresh:
            return clip.transform.pixels(image)
        text = json.dumps(["glyphs:chess", chess.references[position]]).encode()
        item = int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "little")
        return augmented_view(clip.transform, image, seed, item, seen_before(position, epoch))

    order, times = np.random.default_rng(seed), dict.fromkeys(support, 0)

    def seen_before(position, epoch):
        assert times[position] <= epoch
        times[position] += 1
        return times[position] - 1

    context = np.asarray(gram.embed_tokens(clip, clip.tokenize(["a photo of a"])[0, 1:-1]), np.float64)
    velocity, contexts = np.zeros_like(context), [context]
    for epoch in range(epochs):
        rate = 1e-5 if epoch == 0 else base / 2 * (1 + math.cos(math.pi * (epoch - 1) / epochs))
        items = order.permutation(len(support))
        for start in range(0, len(items) - batch_size + 1, batch_size):
            batch = [support[item] for item in items[start : start + batch_size]]
            pixels = clip.transform.normalize(np.stack([shown(position, epoch) for position in batch]))
            own = gradient(jnp.float32(context), gram.encode_image(clip, pixels), chess.labels[batch])
            velocity = 0.9 * velocity + np.asarray(own, np.float64) + decay * context
            context = context - rate * velocity
            contexts.append(context)
    return contexts


def tuned_by(config, workdir, monkeypatch):
    """What `experiments.evaluate` tunes, and its results."""
    calls = watch(monkeypatch)
    results = evaluate.run(config, epath.Path(workdir))
    (call,) = calls
    return call.tuned, results


@pytest.mark.parametrize(("decay", "augmentation"), [(None, "fresh"), (0.7, "none")])
def test_a_recipe_is_dassls_schedule_and_pytorchs_sgd(folder, tmp_path, monkeypatch, decay, augmentation):
    changes = {} if decay is None else {"weight_decay": decay, "augmentation": augmentation, "learning_rate": (0.5,)}
    config = evaluate.Config(
        preset="coop_b2n_vitb16", clip=folder, dataset=("glyphs:chess",), shots=(3,), seeds=SEEDS, batch_size=7,
        epochs=(4,), report_steps=tuple(range(8)), methods=("tuner",), max_test_images=1, **changes,
    )  # fmt: skip
    tuned, results = tuned_by(config, tmp_path, monkeypatch)
    clip = gram.load_clip(folder)
    for run, seed in enumerate(SEEDS):
        contexts = restated(clip, seed, 3, 4, 7, decay or 5e-4, augmentation == "fresh", 0.5 if decay else 0.002)
        assert len(contexts) == 1 + 4 * (18 // 7)
        for step in range(1, len(contexts)):
            moved = tuned.prompts[step]["context"][run] - tuned.prompts[step - 1]["context"][run]
            expected = contexts[step] - contexts[step - 1]
            np.testing.assert_allclose(
                moved, expected, atol=5e-3 * np.abs(expected).max() + 1e-7 * np.abs(contexts[step]).max()
            )
    settings = results.config
    assert (settings["momentum"], settings["schedule"], settings["tuner"]) == (0.9, "warmup_cosine", "coop")
    assert settings["tuner_settings"]["init_text"] == "a photo of a"
    assert "KaiyangZhou/CoOp" in settings["preset_from"]
    assert {row.protocol for row in results.rows} == {"base_to_new"}


@pytest.mark.slow
def test_a_recipe_at_full_size_on_the_embedded_world(tmp_path, monkeypatch):
    """200 epochs on 16 shots with the shipped clip: the restated trajectory to its end."""
    config = evaluate.Config(
        preset="coop_b2n_vitb16", dataset=("glyphs:chess",), seeds=SEEDS, methods=("tuner",), report_steps=(),
    )  # fmt: skip
    tuned, _ = tuned_by(config, tmp_path, monkeypatch)
    clip = gram.load_clip("mini")
    for run, seed in enumerate(SEEDS):
        contexts = restated(clip, seed, 16, 200, 32, 5e-4, fresh=True)
        assert list(tuned.prompts) == [len(contexts) - 1] == [600]
        moved = tuned.prompts[600]["context"][run] - np.float32(contexts[0])
        expected = contexts[-1] - contexts[0]
        assert np.linalg.norm(moved - expected) < 0.01 * np.linalg.norm(expected)
