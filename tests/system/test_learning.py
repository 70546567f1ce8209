"""DPT's staged loss, a regulator that is learned along the way, rates by part: by flags, against plain loops."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import gram_jax as gram
from experiments.evaluate import bench as _bench
from experiments.evaluate import learning as _learning
from experiments.evaluate import methods as _methods
from experiments.evaluate import presets as _presets
from experiments.evaluate import run as evaluate
from gram_jax import evaluation, objectives, regulators, tuners
from gram_jax import tuning as tuning_lib
from gram_jax.data import load_dataset, templates
from gram_jax.testing import tiny_clip

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
    found = []
    monkeypatch.setattr(evaluate, "tune", lambda *given: found.append(_bench.tune(*given)) or found[-1])
    results = evaluate.run(config, epath.Path(workdir))
    (tuned,) = found
    return tuned, results


def rate_of(epoch, epochs, base, warmup):
    return 1e-5 if epoch < warmup else base / 2 * (1 + math.cos(math.pi * (epoch - warmup) / epochs))


def test_dpt_is_tuned_in_stages_its_parts_at_rates_and_warmups_of_their_own(folder, tmp_path, monkeypatch):
    """Two guided epochs of four; the visual parts warm up for three and then take the fivefold rate."""
    config = evaluate.Config(
        preset="dpt_fs_vitb32", clip=folder, dataset=("glyphs:chess",), shots=(1,), seeds=SEEDS, epochs=(4,),
        batch_size=5, learning_rate=(0.1,), augmentation="none", methods=("tuner",), max_test_images=1,
        tuner_settings='{"num_text": 2, "num_visual": 2, "num_classes": 3}', report_steps=(),
        loss_settings='{"guided_epochs": 2, "class_weight": 0.7}',
        part_warmup='{"visual": 3, "class_aware": 3, "classifier": 3}',
    )  # fmt: skip
    assert config.loss == "dpt"
    tuned, results = tuned_by(config, tmp_path, monkeypatch)
    clip, chess = gram.load_clip(folder), load_dataset("glyphs:chess")
    tuner = tuners.dpt(num_text=2, num_visual=2, num_classes=3, class_specific=True)
    classes, valid = tuning_lib.pad_classes(clip, clip.class_tokens(list(chess.class_names)))
    gradient = jax.jit(jax.value_and_grad(objectives.dpt_loss(tuner, class_weight=0.7)))
    losses = np.empty((8, 2))
    for run, seed in enumerate(SEEDS):
        support = chess.take(evaluation.few_shot(chess, 1, seed))
        prompt = tuner.init(jax.random.key(seed), clip, classes)
        begun, velocity = prompt, jax.tree.map(np.zeros_like, prompt)
        order = tuning_lib.epoch_batches(seed, 12, 5, 4)
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
    assert (results.config["loss"], json.loads(results.config["part_rates"])["visual"]) == ("dpt", 5)


@pytest.mark.slow
def test_prometar_learns_its_regulator_along_the_way(shallow, tmp_path, monkeypatch):
    config = evaluate.Config(
        preset="prometar_b2n_vitb16", clip=shallow, dataset=("glyphs:chess",), shots=(2,), seeds=SEEDS, epochs=(2,),
        methods=("tuner",), max_test_images=1, tuner_settings='{"depth": 1, "num_visual": 2}', report_steps=(),
        learning_rate=(0.1,), augmentation="none",
    )  # fmt: skip
    states, make = [], _methods.build

    def watched(*given):
        (method,), *rest = make(*given)

        def step(*given, **named):
            state, metrics = method.tuning.step(*given, **named)
            states.append(state)
            return state, metrics

        return [method._replace(tuning=method.tuning._replace(step=step))], *rest

    monkeypatch.setattr(_methods, "build", watched)
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
    items = [drawn[item] for item in tuning_lib.epoch_batches(1, 12, 4, 2)[0]]
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


def test_the_published_numbers():
    dpt = evaluate.Config(preset="dpt_fs_vitb32")
    tuner = _methods.choose_tuner(dpt)
    assert {name: tuner.settings[name] for name in ("num_text", "num_visual", "num_classes", "class_layers")} == {
        "num_text": 16, "num_visual": 10, "num_classes": 10, "class_layers": 1
    }  # fmt: skip
    prompt = {"text": {"context": 0}, "visual": {"tokens": 0, "deep": 0}, "class_aware": {"query": 0}, "classifier": 0}
    rates = _learning.rates(dpt, dpt.learning_rate[0], prompt)
    assert rates == {
        "text": {"context": 0.002}, "visual": {"tokens": 0.01, "deep": 0.01}, "class_aware": {"query": 0.01},
        "classifier": 0.01,
    }  # fmt: skip
    assert _learning.warmup(dpt, "coop:dtd", prompt) == {
        "text": {"context": 1}, "visual": {"tokens": 10, "deep": 10}, "class_aware": {"query": 10}, "classifier": 10
    }  # fmt: skip
    assert _learning.warmup(dpt, "coop:imagenet", prompt) == 1
    assert [_presets.epochs("dpt_fs_vitb32", "coop:dtd", shots) for shots in (1, 2, 16)] == [60, 100, 100]
    assert (dpt.loss, _learning.loss_settings(dpt)) == ("dpt", {"guided_epochs": 30, "class_weight": 0.3})
    assert (dpt.init_text, dpt.batch_size, dpt.protocol) == (("",), 32, ("few_shot",))
    own = evaluate.Config(preset="prometar_b2n_vitb16")
    assert (own.regulator, own.regulation, own.regularizers) == ("prometar", "alternating", None)
    assert (own.batch_size, own.learning_rate, own.shots) == (4, (0.0025,), (16,))
    plain = evaluate.Config()
    assert (plain.loss, plain.regulation) == ("cross_entropy", "frozen")
    assert (_learning.rates(plain, 0.3, prompt), _learning.warmup(plain, "coop:dtd", prompt)) == (0.3, 1)
    alone = evaluate.Config(preset="prometar_b2n_vitb16", meta="meta.safetensors")
    assert (alone.regulator, alone.regulation) == (None, "frozen")  # the checkpoint's


SPECIFIC = '{"class_specific": true}'


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": "dpt"}, "--loss=dpt: dpt_loss .*'coop'"),
        ({"loss": "dpt", "tuner": "vpt"}, "'vpt'"),
        ({"loss": "dpt", "tuner": "dpt"},
         "class_weight=0.3 .* Here: --tuner_settings='{\"class_specific\": true}', or --loss_settings="),
        ({"loss": "dpt", "tuner": "dpt", "tuner_settings": SPECIFIC, "regularizers": ("kgcoop",)},
         "--regularizers=kgcoop and --loss=dpt: DPT's loss is a sum of its own"),
        ({"loss": "dpt", "tuner": "dpt", "tuner_settings": SPECIFIC, "regulator": "prograd"},
         "prograd and --loss=dpt: prograd holds a gradient against a second one"),
        ({"loss_settings": '{"guided_epochs": 3}'}, "is given with --loss=cross_entropy; name --loss=dpt"),
        ({"loss": "dpt", "tuner": "dpt", "loss_settings": '{"guided_epoch": 3}'},
         r"has no 'guided_epoch' \(did you mean 'guided_epochs'\?\)"),
        ({"loss": "dpt", "tuner": "dpt", "loss_settings": '{"guided_epochs": 1.5}'},
         "guided_epochs is 1.5; give a number of epochs, 0 or more"),
        ({"loss": "dpt", "tuner": "dpt", "loss_settings": '{"class_weight": -1}'}, "class_weight=-1"),
        ({"part_rates": '{"visual": 0}'}, "--part_rates has 0 for 'visual'; give a positive number"),
        ({"part_warmup": '{"visual": 3}'}, "--schedule=cosine has no warm-up; give --schedule=warmup_cosine"),
        ({"part_warmup": '{"visual": -3}', "schedule": "warmup_cosine"}, "has -3 for 'visual'; give a number of"),
        ({"regulation": "alternating"}, "learns a regulator along with the prompt, and none is named; add --reg"),
        ({"regulation": "alternating", "regulator": "prograd"}, "--regulator=prograd has nothing to learn"),
        ({"regulation": "alternating", "regulator": "structured"}, "structured has parameters that must be learned"),
        ({"regulation": "alternating", "regulator": "prometar", "meta": "a.safetensors"}, "both say what becomes of"),
        ({"regulation": "alternating", "regulator": "prometar", "regularizers": ("kgcoop",)},
         "--regularizers=kgcoop and --regulation=alternating: its steps are on the cross-entropy"),
        ({"regulation": "alternating", "regulator": "prometar", "optimizer": "adam"}, "is two steps of sgd"),
        ({"regulation": "alternating", "regulator": "prometar", "batch_size": 1}, "splits a batch by its classes"),
        ({"regulator": "prometar"}, "--regulation=alternating learns it along with the prompt"),
        ({"protocol": ("test_time",), "part_rates": '{"text": 2}'}, "without labels; leave it out"),
        ({"protocol": ("test_time",), "loss": "dpt", "tuner": "dpt"}, "--loss=dpt: test_time tunes on one test image"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_with_the_reason(given, message):
    with pytest.raises(ValueError, match=message):
        evaluate.Config(**given)


def test_what_only_the_prompt_tells_is_refused_before_any_work(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "tune", None)
    config = evaluate.Config(clip=folder, dataset=("glyphs:chess",), methods=("tuner",), init_text=("a photo of a",))
    with pytest.raises(ValueError, match=r"--part_rates names 'text' .*; the parts of this prompt are context"):
        evaluate.run(dataclasses.replace(config, part_rates='{"text": 2}'), epath.Path(tmp_path))
    specific = evaluate.Config(
        preset="dpt_fs_vitb32", clip=folder, dataset=("glyphs:chess",), methods=("tuner",), protocol=("base_to_new",)
    )
    with pytest.raises(ValueError, match="a class-specific prompt of dpt knows no new class"):
        evaluate.run(specific, epath.Path(tmp_path))
    meant = dataclasses.replace(config, part_warmup='{"contxt": 2}', schedule="warmup_cosine")
    with pytest.raises(ValueError, match=r"--part_warmup names 'contxt' \(did you mean 'context'\?\)"):
        evaluate.run(meant, epath.Path(tmp_path))
