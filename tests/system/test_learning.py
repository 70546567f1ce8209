"""DPT's staged loss, a regulator that is learned along the way, rates by part: by flags, against plain loops."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import gram_jax as gram
from experiments.evaluate import run as evaluate
from gram_jax import evaluation, objectives, regulators, tuners
from gram_jax.data import load_dataset, templates
from gram_jax.testing import tiny_clip
from tests.system.watching import forbid, watch

SEEDS = (1, 2)


@pytest.fixture
def folder(tmp_path):
    """Of two vision layers: the upper one is that of class prompts."""
    gram.save_clip(tiny_clip(seed=1, text_layers=1, vision_layers=2, text_context_length=64), tmp_path / "clip")
    return str(tmp_path / "clip")


@pytest.fixture
def shallow(tmp_path):
    gram.save_clip(tiny_clip(seed=1, text_layers=1, vision_layers=1, text_context_length=64), tmp_path / "clip")
    return str(tmp_path / "clip")


def tuned_by(config, workdir, monkeypatch):
    """What `experiments.evaluate` tunes, and its results."""
    calls = watch(monkeypatch)
    results = evaluate.run(config, epath.Path(workdir))
    (call,) = calls
    return call.tuned, results


def rate_of(epoch, epochs, base, warmup):
    return 1e-5 if epoch < warmup else base / 2 * (1 + math.cos(math.pi * (epoch - warmup) / epochs))


def test_dpt_is_tuned_in_stages_its_parts_at_rates_and_warmups_of_their_own(folder, tmp_path, monkeypatch):
    """Two guided epochs of four; the visual parts warm up for three and then take the fivefold rate."""
    config = evaluate.Config(
        preset="dpt_fs_vitb32", clip=folder, dataset=("glyphs:chess",), shots=(1,), seeds=SEEDS, epochs=(4,),
        batch_size=5, learning_rate=(0.1,), augmentation="none", methods=("tuner",), max_test_images=1,
        tuner="dpt(num_text=2, num_visual=2, num_classes=3)", report_steps=(),
        loss="dpt(guided_epochs=2, class_weight=0.7)", part_warmup="visual:3,class_aware:3,classifier:3",
    )  # fmt: skip
    tuned, results = tuned_by(config, tmp_path, monkeypatch)
    clip, chess = gram.load_clip(folder), load_dataset("glyphs:chess")
    tuner = tuners.dpt(num_text=2, num_visual=2, num_classes=3, class_specific=True)
    names = clip.class_tokens(list(chess.class_names), chess.template)
    classes, valid = gram.tuning.pad_classes(clip, names)
    gradient = jax.jit(jax.value_and_grad(objectives.dpt_loss(tuner, class_weight=0.7)))
    losses = np.empty((8, 2))
    for run, seed in enumerate(SEEDS):
        support = chess.take(evaluation.few_shot(chess, 1, seed))
        prompt = tuner.init(jax.random.key(seed), clip, classes)
        begun, velocity = prompt, jax.tree.map(np.zeros_like, prompt)
        order = gram.tuning.epoch_batches(seed, 12, 5, 4)
        for step, items in enumerate(order):
            epoch = step // 2
            batch = {
                "classes": classes, "valid": valid, "labels": jnp.asarray(support.labels[items]),
                "images": clip.preprocess(support.images(items)), "guided": epoch < 2,
            }  # fmt: skip
            losses[step, run], own = gradient(prompt, clip, batch)
            velocity = jax.tree.map(lambda v, g, p: 0.9 * v + np.asarray(g) + 5e-4 * p, velocity, own, prompt)
            rates = {part: rate_of(epoch, 4, *((0.1, 1) if part == "text" else (0.5, 3))) for part in prompt}
            rates = {part: jax.tree.map(lambda _, rate=rates[part]: rate, own) for part, own in prompt.items()}
            prompt = jax.tree.map(lambda p, v, rate: p - rate * v, prompt, velocity, rates)
        for path, leaf in jax.tree_util.tree_leaves_with_path(prompt):
            before, after = (
                dict(jax.tree_util.tree_leaves_with_path(tree))[path] for tree in (begun, tuned.prompts[8])
            )
            scale = np.abs(leaf - before).max()
            assert scale > 1e-4
            np.testing.assert_allclose(after[run] - before, leaf - before, atol=5e-3 * scale)
    np.testing.assert_allclose(tuned.metrics["loss"], losses, rtol=1e-4)
    assert np.all(losses[:4] > 1.5 * losses[4:].mean())  # guided: three cross-entropies
    assert {row.method for row in results.rows} == {"dpt+staged"}
    assert results.config["part_rates"] == "visual:5,class_aware:5,classifier:5"


@pytest.mark.slow
def test_prometar_learns_its_regulator_along_the_way(shallow, tmp_path, monkeypatch):
    config = evaluate.Config(
        preset="prometar_b2n_vitb16", clip=shallow, dataset=("glyphs:chess",), shots=(2,), seeds=SEEDS, epochs=(2,),
        methods=("tuner",), max_test_images=1, tuner="ivlp(depth=1, num_visual=2)", report_steps=(),
        learning_rate=(0.1,), augmentation="none",
    )  # fmt: skip
    states, make = [], gram.tuning.make_alternating

    def watched(*given, **named):
        tuning = make(*given, **named)

        def step(*given, **named):
            state, metrics = tuning.step(*given, **named)
            states.append(state)
            return state, metrics

        return tuning._replace(step=step)

    monkeypatch.setattr(gram.tuning, "make_alternating", watched)
    tuned, results = tuned_by(config, tmp_path, monkeypatch)
    assert {row.method for row in results.rows} == {"ivlp+prometar"}
    assert (results.config["regulator_settings"]["reference"], len(states)) == ("prometar", 6)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((tuned.prompts, tuned.metrics)))
    assert np.all(tuned.metrics["query_loss"] >= 0)
    assert tuned.metrics["query_loss"].max() > 0
    first, last = (state.phi["text"]["context"]["inner"] for state in (states[0], states[-1]))
    assert not np.allclose(first[0], first[1], atol=0.01)  # each seed draws its own
    assert 0 < np.abs(last - first).max() < 0.01
    # The first loss and regulated gradient: those of the task and of the published regularizer, by hand.
    clip, chess = gram.load_clip(shallow), load_dataset("glyphs:chess")
    names, tuner = list(chess.class_names[:6]), tuners.ivlp(num_text=4, num_visual=2, depth=1)
    texts = [each.replace("{}", name) for each in templates.ensemble("promptsrc_60") for name in names]
    raw = gram.encode_text(clip, clip.tokenize(texts), normalize=False).reshape(60, 6, -1).mean(0)
    frozen = raw / jnp.linalg.norm(raw, axis=1, keepdims=True)
    phi = regulators.prometar().init(
        jax.random.fold_in(jax.random.key(1), 1), prompt := tuner.init(jax.random.key(1), clip, None)
    )
    drawn = [p for p in evaluation.few_shot(chess, 2, 1).tolist() if chess.labels[p] < 6]
    items = [drawn[item] for item in gram.tuning.epoch_batches(1, 12, 4, 2)[0]]
    images, labels = clip.preprocess(chess.images(items)), chess.labels[items]

    @jax.jit
    @jax.jacrev
    def gradients(prompt):
        outputs = tuner.apply(prompt, clip, clip.class_tokens(names), images)
        near = 20 * jnp.mean(jnp.abs(outputs.image_features - gram.encode_image(clip, images)))
        near += 50 * jnp.mean(jnp.abs(outputs.text_features - frozen))
        return -jnp.mean(jax.nn.log_softmax(outputs.logits)[jnp.arange(4), labels]), near

    task, held = gradients(prompt)
    kept = regulators.prometar().apply(phi, task, held)
    norm, after = (np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(tree))) for tree in (task, kept))
    np.testing.assert_allclose(tuned.metrics["gradient_norm"][0, 0], norm, rtol=1e-3)
    np.testing.assert_allclose(tuned.metrics["gradient_norm_ratio"][0, 0], after / norm, rtol=1e-3)


def test_what_only_the_prompt_tells_is_refused_before_any_work(folder, tmp_path, monkeypatch):
    forbid(monkeypatch)
    config = evaluate.Config(clip=folder, dataset=("glyphs:chess",), methods=("tuner",), init_text=("a photo of a",))
    with pytest.raises(ValueError, match=r"--part_rates names 'text' .*; the parts of this prompt are context"):
        evaluate.run(dataclasses.replace(config, part_rates="text:2"), epath.Path(tmp_path))
    specific = evaluate.Config(
        preset="dpt_fs_vitb32", clip=folder, dataset=("glyphs:chess",), methods=("tuner",), protocol=("base_to_new",)
    )
    with pytest.raises(ValueError, match=r"class-specific prompt of dpt .* base_to_new"):
        evaluate.run(specific, epath.Path(tmp_path))
    meant = dataclasses.replace(config, part_warmup="contxt:2", schedule="warmup_cosine")
    with pytest.raises(ValueError, match=r"--part_warmup names 'contxt' \(did you mean 'context'\?\)"):
        evaluate.run(meant, epath.Path(tmp_path))
