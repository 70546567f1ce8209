"""experiments.evaluate on a small clip: its numbers against direct computation, what it selects on, how it resumes."""

import dataclasses
import json
import random
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import gram_jax as gram
from experiments.evaluate import comparison as comparing
from experiments.evaluate import run as evaluate
from experiments.evaluate.datasets import open_datasets
from gram_jax import evaluation, meta, regulators, runtime, tuners
from gram_jax.array_file import read_arrays
from gram_jax.clip import TextPrompt
from gram_jax.data import load_dataset
from gram_jax.evaluation.methods import task_of
from gram_jax.evaluation.tuned import TunedMethod
from gram_jax.testing import tiny_clip
from tests.system.watching import forbid, watch

WORDS = "greek small letter"  # the words that meta-learning started from: as many tokens as the tuner's own
ALONE = {"meta": "", "controls": (), "init_text": None}
SHOTS, SEEDS, STEPS, PER_CLASS = 2, (1, 2), 2, 8


def spread_clip():
    """A random clip whose features have mean 0, or it would call all images by one name."""
    clip = tiny_clip(seed=1, text_layers=1, vision_layers=1, text_context_length=40)
    dataset = load_dataset("glyphs:chess")
    texts = clip.tokenize([f"a photo of a {name}." for name in dataset.class_names])
    images = clip.preprocess(dataset.images(dataset.select("val")))
    for tower, norm, features in (
        ("text", "final_norm", gram.encode_text(clip, texts, normalize=False)),
        ("vision", "post_norm", gram.encode_image(clip, images, normalize=False)),
    ):
        params = clip.params[tower]
        shift = np.linalg.lstsq(np.asarray(params["projection"]).T, np.mean(features, axis=0))[0]
        params[norm]["bias"] -= shift
    return clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A clip in a folder, and meta checkpoints for it."""
    folder = tmp_path_factory.mktemp("clip")
    clip = spread_clip()
    gram.save_clip(clip, folder)
    for name, tuner, regulator, seed in (
        ("gram", tuners.coop(init_text=WORDS), regulators.gated_low_rank(rank=2, hidden=3, context_dim=32), 0),
        ("random", tuners.coop(init_text=WORDS), regulators.identity(), 1),
        ("vpt", tuners.vpt(), regulators.affine(), 2),
    ):
        prompt = tuner.init(jax.random.key(0), clip, None)
        rng = np.random.default_rng(seed)
        prompt = jax.tree.map(lambda leaf, rng=rng: leaf + 0.05 * rng.normal(size=leaf.shape), prompt)
        phi = jax.tree.map(
            lambda leaf, rng=rng: leaf + 0.5 * rng.normal(size=leaf.shape), regulator.init(jax.random.key(1), prompt)
        )
        learned = jax.tree.map(jnp.float32, meta.init_meta(prompt, phi, learning_rate=0.3))
        gram.save_meta(folder / f"{name}.safetensors", learned, tuner, regulator, clip)
    return folder


@pytest.fixture(scope="module")
def config(folder):
    return evaluate.Config(
        clip=str(folder),
        meta=str(folder / "gram.safetensors"),
        controls=(f"random={folder / 'random.safetensors'}",),
        dataset=("glyphs:chess",),
        domains=("noise",),
        shots=(SHOTS,),
        seeds=SEEDS,
        steps=(STEPS,),
        learning_rate=(0.2,),
        gram_rate_factor=(1.0,),
        init_text=("a photo of",),
        batch_size=24,  # every image equally often in each batch, so that the order does not matter
        schedule="constant",
        report_steps=(0,),
        max_test_images=PER_CLASS,
        save_prompts=True,
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("evaluate"))
    return workdir, evaluate.run(config, workdir)


def coops_draw(dataset, seed):
    rng, items = random.Random(seed), {}
    for position, (label, split) in enumerate(zip(dataset.labels, dataset.splits, strict=True)):
        if split == "train":
            items.setdefault(int(label), []).append(position)
    return [position for members in items.values() for position in rng.sample(members, SHOTS)]


def values(results, **fields):
    """The value of each seed in the rows that agree with the given fields."""
    found = [row for row in results.rows if all(getattr(row, name) == value for name, value in fields.items())]
    assert [row.seed for row in found] == list(SEEDS)
    return [row.value for row in found]


def direct(folder, method, protocol, seed, domain=""):
    """A prompt after plain gradient steps on its whole support, nothing padded, and its accuracies by class list."""
    clip = gram.load_clip(str(folder))
    dataset = load_dataset("glyphs:chess")
    tested = load_dataset(f"glyphs:chess/{domain}" if domain else "glyphs:chess")
    lists = {"few_shot": {"all": range(12)}, "base_to_new": {"base": range(6), "new": range(6, 12)}}[protocol]
    learned = gram.load_meta(folder / "gram.safetensors", clip).meta
    prompt = learned.prompt
    if method in ("coop", "coop+gram:regulator_only"):
        prompt = {"context": gram.embed_tokens(clip, clip.tokenize(["a photo of"])[0, 1:-1])}
    regulated = method in ("coop+gram", "coop+gram:regulator_only")
    regulator = regulators.gated_low_rank(rank=2, hidden=3, context_dim=32) if regulated else regulators.identity()
    trained = list(next(iter(lists.values())))
    support = [position for position in coops_draw(dataset, seed) if dataset.labels[position] in trained]
    features = gram.encode_image(clip, clip.preprocess(dataset.images(support)))
    labels = jnp.array([trained.index(dataset.labels[position]) for position in support])

    def scores(prompt, features, labels):
        classes = clip.class_tokens([dataset.class_names[label] for label in labels])
        texts = gram.encode_classes(clip, classes, TextPrompt(prompt["context"]))
        return gram.logits(features, texts, clip.params["logit_scale"])

    def loss(prompt):
        return -jnp.mean(jax.nn.log_softmax(scores(prompt, features, trained))[jnp.arange(len(labels)), labels])

    own = gram.encode_classes(clip, clip.class_tokens([dataset.class_names[label] for label in trained]))
    context = jnp.concatenate([features.mean(0), own.mean(0)])
    rate = 0.2 if method == "coop" else learned.rates["context"]
    for _ in range(STEPS):
        gradient = jax.grad(loss)(prompt)
        if regulated:
            gradient = jax.jit(regulator.apply)(learned.phi, gradient, context)
        prompt = {"context": prompt["context"] - rate * gradient["context"]}
    found = {}
    for name, members in lists.items():
        members = list(members)
        positions = [
            i for label in members for i in np.flatnonzero(tested.labels == label) if tested.splits[i] == "test"
        ]
        positions = [i for i in positions if tested.references[i][2] < PER_CLASS]
        images = gram.encode_image(clip, clip.preprocess(tested.images(positions)))
        chosen = np.asarray(scores(prompt, images, members)).argmax(1)
        found[name] = np.mean(chosen == [members.index(tested.labels[i]) for i in positions])
    return prompt, found


@pytest.mark.parametrize("method", ["coop", "coop+gram", "coop+gram:init_only", "coop+gram:regulator_only"])
def test_prompts_and_accuracies_are_those_of_plain_gradient_steps(finished, folder, method):
    workdir, results = finished
    for index, seed in enumerate(SEEDS):
        prompt, accuracies = direct(folder, method, "base_to_new", seed)
        for split, expected in accuracies.items():
            row = values(results, method=method, protocol="base_to_new", split=split, step=STEPS, metric="accuracy")
            assert row[index] == pytest.approx(expected, abs=1.01 / (6 * PER_CLASS))  # one image, by rounding
        if seed == SEEDS[0]:
            name = f"glyphs_chess-base_to_new-{SHOTS}-{method}".replace("+", "_").replace(":", "_")
            saved, _ = read_arrays(workdir / "prompts" / f"{name}.safetensors")
            np.testing.assert_allclose(saved["context"], prompt["context"], rtol=1e-3, atol=1e-4)


def test_shifted_domains_are_tested_and_not_learned(finished, folder):
    _, results = finished
    fields = {"method": "coop+gram:init_only", "protocol": "few_shot", "step": STEPS, "metric": "accuracy"}
    shifted = values(results, domain="noise", **fields)
    for index, seed in enumerate(SEEDS):
        _, expected = direct(folder, "coop+gram:init_only", "few_shot", seed, "noise")
        assert shifted[index] == pytest.approx(expected["all"], abs=1.01 / (12 * PER_CLASS))
    assert shifted != values(results, domain=None, **fields)


def test_rows_of_every_method(finished, config):
    workdir, results = finished
    tuned = ["coop", "coop+gram", "coop+gram:init_only", "coop+gram:regulator_only", "coop+gram:random"]
    measured = {row.method for row in results.rows}
    assert measured == {*tuned, "zero_shot", "zero_shot:own"}
    for row in results.rows:
        assert row.dataset == "glyphs:chess"
        assert (row.shots, row.seed is None) == ((None, True) if row.method.startswith("zero") else (SHOTS, False))
    regulation = [row for row in results.rows if row.protocol == "regulation"]
    assert {(row.method, row.metric, row.step) for row in regulation} == {
        ("coop+gram", metric, step) for metric in ("gradient_norm_ratio", "gradient_cosine") for step in (1, 2)
    }
    assert all(abs(row.value) < 0.99 for row in regulation if row.metric == "gradient_cosine")
    # Before the first step, what only starts differently or is only regulated differently is the same.
    for pair in (("coop", "coop+gram:regulator_only"), ("coop+gram", "coop+gram:init_only")):
        first, second = (
            values(results, method=m, protocol="base_to_new", split="new", step=0, metric="accuracy") for m in pair
        )
        assert first == second
    assert len(list((workdir / "prompts").iterdir())) == len(tuned) * 2
    assert results.config["selected"] == {}
    evaluation.write_results(workdir / "results.json", results)


def test_zero_shot_is_the_nearest_class(finished, folder):
    _, results = finished
    clip, dataset = gram.load_clip(str(folder)), load_dataset("glyphs:chess")
    positions = [i for i in dataset.select("test") if dataset.references[i][2] < PER_CLASS and dataset.labels[i] >= 6]
    images = np.asarray(gram.encode_image(clip, clip.preprocess(dataset.images(positions))))
    for method, template in (("zero_shot", "a photo of a {}."), ("zero_shot:own", dataset.template)):
        tokens = clip.tokenize([template.replace("{}", name) for name in dataset.class_names[6:]])
        texts = np.asarray(gram.encode_text(clip, tokens))
        expected = np.mean(np.argmax(images @ texts.T, 1) + 6 == dataset.labels[positions])
        rows = [row for row in results.rows if (row.method, row.split) == (method, "new")]
        assert [row.value for row in rows] == [pytest.approx(expected, abs=1.01 / len(positions))]


def test_resumes_where_it_was_stopped(finished, config, tmp_path, monkeypatch):
    workdir, results = finished
    shutil.copytree(workdir, tmp_path / "copy")
    moved = epath.Path(tmp_path) / "copy"
    lines = (moved / "rows.jsonl").read_text().splitlines(keepends=True)
    left = ("coop+gram:regulator_only", "coop+gram:random")
    (moved / "rows.jsonl").write_text("".join(line for line in lines if json.loads(line)["unit"][0] not in left))
    tuned = watch(monkeypatch)
    again = evaluate.run(config, moved)
    assert [each.method.name for each in tuned] == [*left, *left]  # few-shot and base-to-new
    assert again.rows == results.rows
    (moved / "prompts" / "glyphs_chess-base_to_new-2-coop.safetensors").unlink()
    assert evaluate.run(config, moved).rows == results.rows
    assert [(each.method.name, each.task.seeds) for each in tuned[4:]] == [("coop", SEEDS[:1])]
    name = "prompts/glyphs_chess-base_to_new-2-coop.safetensors"
    assert (moved / name).read_bytes() == (workdir / name).read_bytes()
    monkeypatch.setattr(TunedMethod, "learn", None)  # nothing is left to tune
    assert evaluate.run(config, moved).rows == results.rows
    fewer = evaluate.run(dataclasses.replace(config, seeds=SEEDS[:1]), moved).rows
    assert set(fewer) == {row for row in results.rows if row.seed in (None, SEEDS[0])}


def test_one_setting_is_selected_for_all_datasets_without_test_images(monkeypatch, tmp_path):
    candidates = tuple(evaluation.Candidate({"learning_rate": rate}) for rate in (0.1, 0.2, 0.3))
    method = evaluation.Method("coop", candidates)
    config = evaluate.Config(dataset=("glyphs:chess", "glyphs:digits"))
    opened = open_datasets(config.settings)
    scores = {"glyphs:chess": [0.9, 0.5, 0.7], "glyphs:digits": [0.1, 0.5, 0.4]}
    seen = []

    def score(method, encoder, tasks, limit):
        seen.append(set().union(*(task.dataset.splits for task in tasks)))
        assert {task.seeds for task in tasks} == {config.select_seeds}
        return scores[tasks[0].dataset.name]

    monkeypatch.setattr(comparing, "validation_scores", score)
    monkeypatch.setattr(comparing, "method_settings", lambda *_: {})
    for _ in range(2):  # the second time from the file
        units = runtime.SharedUnits(epath.Path(tmp_path), {"git": "12ab"})
        comparison = evaluate.Comparison(config.settings, None, [method], opened, units, None, "weights", {})
        comparison.score()
        chosen, selected = comparison.select(method)
        assert chosen is candidates[2]
    assert seen == [{"train", "val"}] * 2
    assert selected["chosen"] == {"learning_rate": 0.3}
    assert [each["score"] for each in selected["candidates"]] == pytest.approx([0.5, 0.5, 0.55])


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_scores_are_validation_accuracy_of_the_candidate_alone(schedule):
    """Shorter candidates are scored after their own number of steps; runs are shared only if that is exact."""
    candidates = tuple(
        evaluation.Candidate({"rate": 0.1, "steps": steps}, length=lambda name, shots, n=steps: evaluation.Length(n))
        for steps in (1, 3)
    )
    tuned = []

    class Counted(TunedMethod):
        def learn(self, trial, report=(), measure_cost=False):
            steps = trial.candidate.described["steps"]
            tuned.append((steps, trial.task.seeds, trial.task.protocol.name))
            return {*report, steps}

        def predict(self, trial, learned, parts):
            assert [set(part.dataset.splits) for part in parts] == [{"val"}]
            return {step: [accurate(parts[0].dataset.labels, np.array([0.1, 0.3]) * step)] for step in learned}

    def accurate(labels, shares):
        right = np.arange(len(labels)) < shares[:, None] * len(labels)
        return evaluation.Predictions(np.where(right, labels, -1), None)

    plan = evaluation.TuningPlan(schedule=schedule)
    method = Counted("coop", candidates, tuner=None, compiled=None, regulator=None, plan=plan)
    task = task_of(load_dataset("glyphs:chess"), evaluation.protocols.parse("few_shot"), 2, (101, 102))
    assert evaluation.validation_scores(method, None, [task]) == pytest.approx([0.2, 0.6], abs=0.01)
    steps = [3] if schedule == "constant" else [1, 3]
    assert tuned == [(count, (101, 102), "few_shot") for count in steps]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": ("glyphs:klingon",)}, "klingon"),
        ({"domains": ("sepia",)}, "sepia"),
        ({"shots": (33,)}, "shots=33: .*'white king' of 'glyphs:chess' has 32"),
        ({"meta": "", "methods": ("gram",)}, "--methods=gram: it needs --meta"),
        ({"meta": "nowhere.safetensors"}, "nowhere.safetensors does not exist"),
        ({"meta": "FOLDER/vpt.safetensors", "tuner": "coop"}, "--tuner=coop: .*vpt.safetensors.* 'vpt'"),
        ({"controls": ("a=FOLDER/vpt.safetensors",)}, "vpt.safetensors .*tuner='vpt', not 'coop'"),
        ({"tuner": "coop(position='front')"}, "--tuner=coop.position='front'.: .* position='end'"),
        ({"tuner": "coop num_tokens=4"}, "--tuner=coop num_tokens=4 is not NAME"),
        ({"init_text": ("a photo of a cat",)}, r"\[\(3, 24\)\].* init_text 'a photo of a cat'"),
        (ALONE | {"tuner": "coop(class_specific=True)"}, "class-specific prompt of coop .* base_to_new"),
        (ALONE | {"tuner": "coop(num_tokens=38)"}, "coop on glyphs:chess: "),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_anything_is_measured(config, folder, tmp_path, monkeypatch, changes, message):
    forbid(monkeypatch)
    changes = {name: _at(value, folder) for name, value in changes.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate.run(dataclasses.replace(config, **changes), epath.Path(tmp_path))
    assert not (tmp_path / "rows.jsonl").exists()


def _at(value, folder):
    if isinstance(value, tuple):
        return tuple(_at(item, folder) for item in value)
    return value.replace("FOLDER", str(folder)) if isinstance(value, str) else value


def test_loss_that_is_not_finite_stops(config, tmp_path, monkeypatch):
    losses = np.array([[1.0, 2.0], [1.0, np.nan]])
    monkeypatch.setattr(TunedMethod, "learn", lambda *arguments: gram.tuning.Tuned({}, {"loss": losses}))
    config = dataclasses.replace(config, methods=("tuner",), **ALONE)
    with pytest.raises(ValueError, match=r"coop on glyphs:chess .* step 1, 2 shots, seed 2"):
        evaluate.run(config, epath.Path(tmp_path))


def test_a_mistake_ends_in_one_line(tmp_path):
    command = [sys.executable, "-m", "experiments.evaluate", f"--workdir={tmp_path}", "--shots=64", "--seeds=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "64" in done.stderr
    assert "Traceback" not in done.stderr


def test_results_are_json(finished):
    _, results = finished
    assert json.loads(json.dumps(results.config))["tuner"] == "coop"
    assert {"coop+gram", "coop"} in [{comparison.a, comparison.b} for comparison in results.comparisons]
