"""experiments.evaluate --protocol=test_time: its accuracies against loops over images and views, what it refuses."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import gram_jax as gram
from experiments.evaluate import run as evaluate
from gram_jax import evaluation, meta, regulators, reporting, tuners
from gram_jax.clip import TextPrompt
from gram_jax.data import augmented_view, load_dataset
from gram_jax.errors import InputError
from gram_jax.evaluation import test_time
from gram_jax.evaluation.methods import task_of
from gram_jax.evaluation.test_time import TestTimeMethod
from tests.system.test_evaluate import spread_clip

SEEDS, PER_CLASS, VIEWS, SHARE, KEPT, RATE, TAU = (1, 2), 2, 10, 0.3, 3, 0.01, 0.5
WORDS = "a photo of a"
REGULATOR = regulators.structured(prototypes=3, rank=2)
TUNED = ("coop+tpt", "coop+tpt+gram", "coop+tpt+gram:init_only", "coop+tpt+gram:regulator_only")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A clip in a folder, with a structured start and a structured regulator that have learned something."""
    folder, clip, rng = tmp_path_factory.mktemp("test_time"), spread_clip(), np.random.default_rng(0)
    gram.save_clip(clip, folder)
    tuner = tuners.coop(init_text=WORDS)
    prompt = tuner.init(jax.random.key(0), clip, None)
    phi = REGULATOR.init(jax.random.key(1), prompt)
    phi = jax.tree.map(lambda leaf: jnp.float32(leaf + 0.5 * rng.normal(size=leaf.shape)), phi)
    learned = meta.with_structure(
        meta.init_meta(prompt, phi, 0.1), rng.normal(size=(3, 2 * clip.config.embed_dim)), TAU
    )
    learned = learned.replace(offsets={"context": jnp.float32(0.2 * rng.normal(size=(3, *prompt["context"].shape)))})
    gram.save_meta(folder / "meta.safetensors", learned, tuner, REGULATOR, clip)
    config = evaluate.Config(
        clip=str(folder),
        meta=str(folder / "meta.safetensors"),
        dataset=("glyphs:chess",),
        domains=("noise",),
        protocol=("test_time",),
        seeds=SEEDS,
        learning_rate=(RATE,),
        max_test_images=PER_CLASS,
        test_time_views=VIEWS,
        test_time_share=SHARE,
        test_time_batch=5,
        save_confusion=True,
    )
    return clip, learned, config


@pytest.fixture(scope="module")
def finished(made, tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("evaluate"))
    return workdir, evaluate.run(made[2], workdir)


@pytest.fixture(scope="module")
def functions(made):
    """Logits under a context, and the gradient of the loss, compiled."""
    clip, names = made[0], load_dataset("glyphs:chess").class_names
    classes = clip.class_tokens(names)

    @jax.jit
    def logits(context, features):
        return gram.logits(
            features, gram.encode_classes(clip, classes, TextPrompt(context)), clip.params["logit_scale"]
        )

    @jax.jit
    def gradient(context, features):
        def entropy(context):
            mean = jnp.mean(jax.nn.softmax(logits(context, features)), 0)
            return -jnp.sum(mean * jnp.log(mean))

        return jax.grad(entropy)(context)

    texts = gram.encode_text(clip, clip.tokenize([f"a photo of a {name}." for name in names]))
    return logits, gradient, np.mean(texts, axis=0)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def direct(made, functions, method, seed, domain=""):
    """The accuracy of a method before and after tuning, image by image."""
    (clip, learned, _), (logits, gradient, text) = made, functions
    dataset = load_dataset(f"glyphs:chess/{domain}" if domain else "glyphs:chess")
    correct = []
    for label in range(len(dataset.class_names)):
        for position in [i for i in dataset.select("test") if dataset.labels[i] == label][:PER_CLASS]:
            image, item = dataset.read(dataset.references[position]), dataset.item_number(position)
            others = [augmented_view(clip.transform, image, seed, item, number) for number in range(1, VIEWS)]
            pixels = np.stack([clip.transform.pixels(image), *others])
            features = np.asarray(gram.encode_image(clip, clip.transform.normalize(pixels)))
            prototypes = np.asarray(learned.structure.prototypes)
            center = prototypes.mean(0)
            context = np.concatenate([features.mean(0), text])
            weights = np.exp(unit(prototypes - center) @ unit(context - center) / TAU)
            weights /= weights.sum()
            start = gram.embed_tokens(clip, clip.tokenize([WORDS])[0, 1:-1])
            if method.endswith(("gram", "init_only")):
                start = learned.prompt["context"] + np.tensordot(weights, learned.offsets["context"], 1)
            first = np.asarray(logits(start, features))
            p = np.exp(first - first.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            kept = np.argsort(-np.sum(p * np.log(p), 1))[:KEPT]
            g = np.asarray(gradient(start, features[kept]))
            if method.endswith(("gram", "regulator_only")):
                g = np.asarray(REGULATOR.apply(learned.phi, {"context": jnp.asarray(g)}, weights)["context"])
            end = start - RATE * (g / (np.abs(g) + 1e-8) + 0.01 * np.asarray(start))  # AdamW's first step
            correct.append([int(np.argmax(at)) == label for at in (first[0], np.asarray(logits(end, features[:1]))[0])])
    return np.mean(correct, axis=0)


@pytest.mark.parametrize(("method", "domain"), [(method, "") for method in TUNED] + [("coop+tpt+gram", "noise")])
def test_accuracies_are_those_of_a_loop_over_images(made, functions, finished, method, domain):
    _, results = finished
    for seed in SEEDS[: 1 if domain else 2]:
        found = [
            row.value
            for row in results.rows
            if (row.method, row.seed, row.domain or "", row.metric) == (method, seed, domain, "accuracy")
        ]
        assert found == pytest.approx(direct(made, functions, method, seed, domain), abs=1.01 / (12 * PER_CLASS))


def test_rows_tables_and_files(finished, tmp_path):
    workdir, results = finished
    rows = [row for row in results.rows if row.method in TUNED]
    assert {row.method for row in results.rows} == {*TUNED, "zero_shot", "zero_shot:own"}
    assert {(row.protocol, row.shots, row.split) for row in rows} == {("test_time", None, "all")}
    assert {(row.seed, row.step, row.domain) for row in rows} == {
        (seed, step, domain) for seed in SEEDS for step in (0, 1) for domain in (None, "noise")
    }
    assert {row.seed for row in results.rows if row.method == "zero_shot"} == {None}
    # What starts alike is alike before the first step; what only starts differently is not after it.
    at = {(r.method, r.step): r.value for r in rows if r.seed == 1 and r.domain == "noise"}
    assert at["coop+tpt", 0] == at["coop+tpt+gram:regulator_only", 0]
    assert at["coop+tpt+gram", 0] == at["coop+tpt+gram:init_only", 0]
    assert {(c.a, c.b) for c in results.comparisons} == {(method, "coop+tpt") for method in TUNED[1:]}
    assert results.environment["draws"]["rule"].startswith("views-1")
    assert results.config["weight_decay"] == 0.01
    assert len(list((workdir / "confusion").iterdir())) == len(TUNED)
    with np.load(workdir / "confusion" / "glyphs_chess-test_time-coop_tpt.npz") as file:
        assert file["all/counts"].sum() == 12 * PER_CLASS * len(SEEDS)
    text = reporting.write_report([results], tmp_path)
    for title in ("Accuracy: test-time", "Accuracy: test-time, shifted domains", "Accuracy by dataset: test-time"):
        assert f"## {title}" in text
    assert "| CoOp + TPT + GRAM, regulator only " in text


def test_goes_on_where_it_was_stopped(made, finished, tmp_path, monkeypatch):
    workdir, results = finished
    copied = epath.Path(shutil.copytree(workdir, tmp_path / "copy"))
    lines = (copied / "rows.jsonl").read_text().splitlines()
    (copied / "rows.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    tuned, predict = [], TestTimeMethod.predict
    monkeypatch.setattr(
        TestTimeMethod, "predict", lambda self, *given: tuned.append(self.name) or predict(self, *given)
    )
    assert evaluate.run(made[2], copied).rows == results.rows
    assert tuned == ["coop+tpt+gram:regulator_only"]


def test_rates_are_selected_on_validation_images():
    """Each candidate by its accuracy after tuning on the images of val, over views of seeds of their own."""

    class Planted(TestTimeMethod):
        def _run(self, trial, dataset, seed):
            assert set(dataset.splits) == {"val"}
            cut = round(trial.candidate.learning_rate * seed / 4 * len(dataset))
            shown = np.where(np.arange(len(dataset)) < cut, dataset.labels, (dataset.labels + 1) % 12)
            return np.eye(12)[(dataset.labels + 1) % 12], np.eye(12)[shown]

    candidates = tuple(evaluation.Candidate({"learning_rate": rate}, None, rate) for rate in (0.1, 0.2))
    plan = evaluation.TestTimePlan()
    method = Planted("coop+tpt", candidates, tuner=None, compiled=None, regulator=None, plan=plan)
    task = task_of(load_dataset("glyphs:chess"), evaluation.protocols.test_time, None, (7, 8))
    found = evaluation.validation_scores(method, None, [task])
    assert found == pytest.approx([0.1 * 7.5 / 4, 0.2 * 7.5 / 4], abs=0.03)


def test_a_regulator_of_second_gradients_is_refused(made, tmp_path):
    clip, _, config = made
    tuner, regulator = tuners.coop(init_text=WORDS), regulators.prometar(per="all")
    prompt = tuner.init(jax.random.key(0), clip, None)
    learned = meta.init_meta(prompt, regulator.init(jax.random.key(1), prompt), 0.1)
    gram.save_meta(tmp_path / "meta.safetensors", learned, tuner, regulator, clip)
    with pytest.raises(ValueError, match=r"prometar .*'prometar'"):
        evaluate.run(dataclasses.replace(config, meta=str(tmp_path / "meta.safetensors")), epath.Path(tmp_path))


def test_a_loss_that_is_not_finite_stops(monkeypatch):
    nothing = np.full((2, 12), np.nan)
    tuned = gram.tuning.TestTimeTuning(nothing, nothing, nothing[:, :1], np.zeros((2, 3), int))
    monkeypatch.setattr(test_time, "predict_test_time", lambda *arguments, **named: tuned)
    with pytest.raises(InputError, match=r"coop\+tpt on glyphs:chess .*seed 1"):
        evaluation.evaluate(spread_clip(), tuners.coop(init_text=WORDS), "glyphs:chess", "test_time", seeds=(1,))
