"""Methods composed by flags: plain loops of the formulas, the names of rows, what is refused, which recipes run."""

import dataclasses
import json
import math
import random
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import gram_jax as gram
from experiments.evaluate import methods as _methods
from experiments.evaluate import run as evaluate
from gram_jax import evaluation, meta, objectives, regulators, tuners
from gram_jax.clip import TextPrompt
from gram_jax.data import load_dataset, templates
from gram_jax.evaluation.methods import Trial, task_of
from gram_jax.evaluation.references import templates_of
from gram_jax.testing import tiny_clip
from tests.system.watching import forbid

SHOTS, SEEDS, STEPS, RATE, BASE = 2, (1, 2), 3, 0.02, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    clip = tiny_clip(seed=1, text_layers=1, vision_layers=1, text_context_length=64)
    gram.save_clip(clip, folder)
    tuner, regulator = tuners.coop(init_text="a photo of a"), regulators.affine()
    prompt = tuner.init(jax.random.key(0), clip, None)
    learned = meta.init_meta(prompt, regulator.init(jax.random.key(1), prompt), learning_rate=0.01)
    gram.save_meta(folder / "meta.safetensors", learned, tuner, regulator, clip)
    return folder


@pytest.fixture(scope="module")
def config(folder):
    return evaluate.Config(
        clip=str(folder),
        dataset=("glyphs:chess",),
        protocol=("base_to_new",),
        shots=(SHOTS,),
        seeds=SEEDS,
        steps=(STEPS,),
        learning_rate=(RATE,),
        init_text=("a photo of a",),
        batch_size=SHOTS * BASE,  # all images in every batch, so that the order does not matter
        schedule="constant",
        report_steps=(),
        methods=("tuner",),
        max_test_images=2,
    )


def tuned(config, protocol="base_to_new", shots=SHOTS, report=()):
    """The clip and the tuner, and what the only method of a configuration is tuned to."""
    clip, settings = gram.load_clip(config.clip), config.settings
    tuner = _methods.choose_tuner(settings)
    (method,), _ = _methods.build(settings, tuner, clip)
    task = task_of(load_dataset("glyphs:chess"), evaluation.protocols.parse(protocol), shots, config.seeds)
    bench = types.SimpleNamespace(clip=clip, tuner=tuner)
    return bench, method.learn(Trial(evaluation.Encoder(clip), task, method.candidates[0]), report)


class Task:
    """The base classes of chess and the draw of one seed, written out."""

    def __init__(self, clip, seed, shots=SHOTS):
        chess, rng, items = load_dataset("glyphs:chess"), random.Random(seed), {}
        for position, (label, split) in enumerate(zip(chess.labels, chess.splits, strict=True)):
            if split == "train":
                items.setdefault(int(label), []).append(position)
        drawn = [position for members in items.values() for position in rng.sample(members, shots)]
        self.clip, self.names = clip, list(chess.class_names[:BASE])
        self.positions = [position for position in drawn if chess.labels[position] < BASE]
        self.labels, self.template = chess.labels[self.positions], chess.template
        self.pixels = clip.preprocess(chess.images(self.positions))
        self.features = gram.encode_image(clip, self.pixels)

    def texts(self, template):
        return gram.encode_text(self.clip, self.clip.tokenize([template.replace("{}", name) for name in self.names]))

    def prompted(self, context):
        return gram.encode_classes(self.clip, self.clip.class_tokens(self.names), TextPrompt(context))

    def scores(self, texts):
        return gram.logits(self.features, texts, self.clip.params["logit_scale"])

    def cross_entropy(self, texts):
        return -jnp.mean(jax.nn.log_softmax(self.scores(texts))[jnp.arange(len(self.labels)), self.labels])

    def start(self):
        return gram.embed_tokens(self.clip, self.clip.tokenize(["a photo of a"])[0, 1:-1])


def test_kgcoop_is_cross_entropy_plus_the_distance_to_the_template(config):
    bench, found = tuned(dataclasses.replace(config, regularizers="kgcoop:8"))
    for run, seed in enumerate(SEEDS):
        task = Task(bench.clip, seed)
        hand = task.texts(task.template)

        @jax.jit
        @jax.value_and_grad
        def loss(context, task=task, hand=hand):
            texts = task.prompted(context)
            return task.cross_entropy(texts) + 8 * (1 - jnp.mean(jnp.sum(texts * hand, axis=1)))

        context = task.start()
        for step in range(STEPS):
            value, gradient = loss(context)
            np.testing.assert_allclose(found.metrics["loss"][step, run], value, rtol=1e-4)
            context = context - RATE * gradient
        moved = found.prompts[STEPS]["context"][run] - task.start()
        expected = context - task.start()
        np.testing.assert_allclose(moved, expected, atol=2e-3 * np.abs(expected).max())


def test_prograd_drops_what_conflicts_with_the_zero_shot_clip(config):
    bench, found = tuned(dataclasses.replace(config, regulator="prograd(strength=0.8)"))
    for run, seed in enumerate(SEEDS):
        task = Task(bench.clip, seed)
        shares = jax.nn.softmax(task.scores(task.texts(task.template)))

        @jax.jit
        def gradients(context, task=task, shares=shares):
            def both(context):
                texts = task.prompted(context)
                known = -jnp.mean(jnp.sum(shares * jax.nn.log_softmax(task.scores(texts)), axis=1))
                return task.cross_entropy(texts), known

            return jax.jacrev(both)(context)

        context = task.start()
        for step in range(STEPS):
            own, general = (np.asarray(each, np.float64) for each in gradients(context))
            general /= np.linalg.norm(general)
            kept = own - 0.8 * min(np.sum(own * general), 0) * general
            cosine = np.sum(kept * own) / np.linalg.norm(kept) / np.linalg.norm(own)
            np.testing.assert_allclose(found.metrics["gradient_cosine"][step, run], cosine, atol=1e-3)
            context = context - RATE * kept
        moved, expected = found.prompts[STEPS]["context"][run] - task.start(), context - task.start()
        np.testing.assert_allclose(moved, expected, atol=5e-3 * np.abs(expected).max())


def test_visual_prompts_are_held_to_features_of_the_same_pixels(config):
    changes = {"tuner": "vpt", "regularizers": "promptsrc", "init_text": None, "steps": (1,)}
    bench, found = tuned(dataclasses.replace(config, **changes))
    for run, seed in enumerate(SEEDS):
        task = Task(bench.clip, seed)
        texts = [each.replace("{}", name) for each in templates.ensemble("promptsrc_60") for name in task.names]
        raw = gram.encode_text(bench.clip, bench.clip.tokenize(texts), normalize=False)
        many = raw.reshape(60, BASE, -1).mean(0)
        frozen = many / jnp.linalg.norm(many, axis=1, keepdims=True)
        prompt = bench.tuner.init(jax.random.key(seed), bench.clip, None)
        outputs = bench.tuner.apply(prompt, bench.clip, bench.clip.class_tokens(task.names), task.pixels)
        before, after = jax.nn.log_softmax(task.scores(frozen)), jax.nn.log_softmax(outputs.logits)
        expected = (
            -jnp.mean(after[jnp.arange(len(task.labels)), task.labels])
            + 25 * jnp.mean(jnp.abs(outputs.text_features - frozen))
            + 10 * jnp.mean(jnp.abs(outputs.image_features - task.features))
            + jnp.mean(jnp.exp(before) * (before - after))
        )
        np.testing.assert_allclose(found.metrics["loss"][0, run], expected, rtol=1e-4)


def test_long_tails_are_adjusted_by_their_counts(config):
    changes = {"protocol": ("imbalanced",), "tau": (0.25,), "largest": 4, "regularizers": "logit_adjustment"}
    config = dataclasses.replace(config, **changes, steps=(1,), batch_size=13, seeds=(1,))
    bench, found = tuned(config, "imbalanced:0.25", 4)
    counts = np.round(4 * 0.25 ** (np.arange(BASE) / (BASE - 1)))
    assert counts.tolist() == [4, 3, 2, 2, 1, 1]
    task = Task(bench.clip, 1, 4)
    kept = [i for i, label in enumerate(task.labels) if i - np.flatnonzero(task.labels == label)[0] < counts[label]]
    scores = jax.nn.log_softmax(task.scores(task.prompted(task.start())) + np.log(counts / counts.sum()))
    expected = -np.mean([scores[i, task.labels[i]] for i in kept])
    np.testing.assert_allclose(found.metrics["loss"][0, 0], expected, rtol=1e-4)


def test_prompts_are_averaged_by_a_bell_over_epochs(config):
    config = dataclasses.replace(config, epochs=(3,), batch_size=6)
    _, last = tuned(config, report=(2, 4))
    _, found = tuned(dataclasses.replace(config, aggregation=(2.0, 1.0)), report=(2, 4))
    bell = np.exp(-((np.array([1, 2, 3]) - 2.0) ** 2) / 2)
    expected = sum(w * last.prompts[step]["context"] for w, step in zip(bell / bell.sum(), (2, 4, 6), strict=True))
    np.testing.assert_allclose(found.prompts[6]["context"], expected, rtol=1e-5, atol=1e-7)


def test_rows_and_results_tell_what_was_composed_and_steps_compile_once(config, folder, tmp_path, monkeypatch):
    traced, make = [], _methods.choose_tuner

    def counted(settings):
        tuner = make(settings)
        return tuner._replace(apply=lambda *given: traced.append(1) or tuner.apply(*given))

    monkeypatch.setattr(evaluate, "choose_tuner", counted)
    given = {"regularizers": "npt:0.5,kgcoop:8", "meta": str(folder / "meta.safetensors")}
    config = dataclasses.replace(config, methods=None, **given)
    results = evaluate.run(config, epath.Path(tmp_path))
    assert len(traced) == 2  # one step and one prediction, for all four methods and their seeds
    family = "coop+kgcoop+npt:0.5"
    learned = {f"{family}+gram{role}" for role in ("", ":init_only", ":regulator_only")}
    assert {row.method for row in results.rows} == {"zero_shot", "zero_shot:own", family} | learned
    assert {(each.a, each.b) for each in results.comparisons} == {(method, family) for method in learned}
    assert {row.method for row in results.rows if row.protocol == "regulation"} == {f"{family}+gram"}
    assert results.config["regularizers"] == {"kgcoop": 8.0, "npt": 0.5}
    stored = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[-1])
    assert [name for name, *_ in stored["depends"]["regularizers"]] == ["kgcoop", "npt"]
    table = (tmp_path / "table.md").read_text()
    assert "| CoOp + KgCoOp + NPT (weight 0.5) + GRAM, initialization only " in table
    assert "mean of H, difference to the tuner" in table


def test_templates_are_those_of_each_methods_code():
    dtd, food, chess = (
        types.SimpleNamespace(name=name, template=f"{name} {{}}.") for name in ("coop:dtd", "coop:food101", "chess")
    )
    assert templates_of("kgcoop", dtd) == ("a photo of a {}, a type of texture.",)
    assert templates_of("distillation", dtd) == ("a texture of {}.",)
    assert templates_of("distillation", food) == ("a type of food, a photo of {}.",)
    assert templates_of("kgcoop", food) == ("coop:food101 {}.",)
    assert templates_of("distillation", chess) == ("chess {}.",)
    assert templates_of("prometar", chess) == templates.ensemble("promptsrc_60")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tuner": "vpt", "regularizers": "kgcoop", "init_text": None},
         "kgcoop .*'vpt'"),
        ({"tuner": "vpt", "init_text": None, "regulator": "prograd(reference='kgcoop')"},
         "kgcoop acts on text features"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_any_work(config, tmp_path, monkeypatch, given, message):
    forbid(monkeypatch)
    with pytest.raises(ValueError, match=message):
        evaluate.run(dataclasses.replace(config, **given), epath.Path(tmp_path))
    assert not (tmp_path / "rows.jsonl").exists()


def test_clusters_come_with_the_text(config):
    bench, found = tuned(dataclasses.replace(config, regularizers="cpt:1", steps=(1,), seeds=(1,)))
    task = Task(bench.clip, 1)
    frozen = np.asarray(task.texts(task.template))
    clusters = objectives.class_clusters(frozen)
    texts, total = np.asarray(task.prompted(task.start())), 0.0
    for cluster in set(clusters.tolist()):
        own = texts[clusters == cluster]
        if len(own) > 1:
            off = ~np.eye(len(own), dtype=bool)
            total += 0.25 * np.sum(((own @ own.T)[off] + 1 / (len(own) - 1)) ** 2) / len(set(clusters.tolist()))
    total += 0.15 * np.mean(np.sum((np.asarray(task.features) - texts[task.labels]) ** 2, axis=1))
    total += 0.10 * np.mean(np.sum(np.abs(texts - frozen), axis=1))
    expected = float(task.cross_entropy(jnp.asarray(texts))) + total
    assert math.isclose(found.metrics["loss"][0, 0], expected, rel_tol=1e-4)
