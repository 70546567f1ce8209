"""The public runner: a tuner, a baseline or a method of one's own over any protocol, in a few lines."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gram_jax as gram
from gram_jax import evaluation, meta, regulators, tuners
from gram_jax.data import load_dataset, restrict
from gram_jax.errors import InputError
from gram_jax.evaluation import Encoder, TestTimePlan, TuningPlan, baselines, evaluate, prompt_method
from gram_jax.testing import tiny_clip

SEEDS = (1, 2)


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(seed=1, text_layers=1, vision_layers=1, text_context_length=40)


@pytest.fixture(scope="module")
def encoder(clip):
    return Encoder(clip)


def shifted_texts():
    """A tuner of one's own: a learned vector is added to every text feature."""

    def init(key, clip, classes):
        return {"shift": jnp.zeros(clip.config.embed_dim)}

    def apply(prompt, clip, classes, images):
        texts = classes + prompt["shift"]
        texts = texts / jnp.linalg.norm(texts, axis=-1, keepdims=True)
        return tuners.Outputs(gram.logits(images, texts, clip.params["logit_scale"]), images, texts)

    return tuners.Tuner(
        "shifted_texts", {}, init, apply, needs_pixels=False, needs_names=False, changes=frozenset({"text"})
    )


def test_a_tuner_of_ones_own_is_plain_gradient_descent(clip, encoder):
    tuner, chess = shifted_texts(), load_dataset("glyphs:chess")
    plan = {"steps": 3, "learning_rate": 0.01, "schedule": "constant", "batch_size": 12, "report_steps": (0,)}
    rows = evaluate(encoder, tuner, chess, "base_to_new", 2, SEEDS, **plan)
    assert {(row.method, row.protocol, row.dataset, row.shots, row.metric) for row in rows} == {
        ("shifted_texts", "base_to_new", "glyphs:chess", 2, "accuracy")
    }
    templated = [f"a photo of a {name}." for name in chess.class_names]
    texts = np.asarray(gram.encode_text(clip, clip.tokenize(templated)))
    for seed in SEEDS:
        support = [i for i in evaluation.few_shot(chess, 2, seed).tolist() if chess.labels[i] < 6]
        features, labels = gram.encode_image(clip, clip.preprocess(chess.images(support))), chess.labels[support]

        def scores(prompt, features, texts):
            return tuner.apply(prompt, clip, texts, features).logits

        def loss(prompt, features=features, labels=labels):
            return -jnp.mean(jax.nn.log_softmax(scores(prompt, features, texts[:6]))[jnp.arange(len(labels)), labels])

        prompt = tuner.init(None, clip, None)
        for _ in range(3):
            prompt = jax.tree.map(lambda leaf, grad: leaf - 0.01 * grad, prompt, jax.grad(loss)(prompt))
        for split, members in (("base", range(6)), ("new", range(6, 12))):
            test = [i for i in chess.select("test") if chess.labels[i] in members]
            images = gram.encode_image(clip, clip.preprocess(chess.images(test)))
            chosen = np.argmax(np.asarray(scores(prompt, images, texts[list(members)])), 1) + members[0]
            (row,) = [row for row in rows if (row.seed, row.split, row.step) == (seed, split, 3)]
            assert row.value == pytest.approx(np.mean(chosen == chess.labels[test]), abs=1.01 / len(test))


def test_a_protocol_of_ones_own(encoder):
    class EverySecondClass(evaluation.Protocol):
        name = "every_second_class"

        def splits(self, dataset):
            labels = np.arange(len(dataset.class_names))
            return {"even": labels[::2], "odd": labels[1::2]}

    rows = evaluate(encoder, tuners.coop(), "glyphs:chess", EverySecondClass(), 1, (1,), steps=1)
    assert [(row.protocol, row.split, row.step) for row in rows] == [
        ("every_second_class", split, 1) for split in ("even", "odd")
    ]


def test_meta_learning_and_test_time_tuning_are_methods(clip, encoder):
    tuner, regulator = tuners.coop(init_text="a photo of a"), regulators.affine()
    prompt = tuner.init(jax.random.key(0), clip, None)
    learned = meta.init_meta(prompt, regulator.init(jax.random.key(1), prompt), learning_rate=0.1)
    plan = TuningPlan(steps=2, learning_rate=0.1)
    gram_method = prompt_method(tuner, plan, regulator=regulator, learned=learned)
    alone = prompt_method(tuner, plan)
    values = [
        [row.value for row in evaluate(encoder, method, "glyphs:chess", shots=2, seeds=SEEDS)]
        for method in (gram_method, alone)
    ]
    assert gram_method.name == "coop+gram"
    assert values[0] == values[1]  # nothing has been learned yet: the same prompt, rate and gradient
    rows = evaluate(encoder, prompt_method(tuner, TestTimePlan(views=10, batch_size=60)), "glyphs:chess", "test_time")
    assert {(row.method, row.step, row.seed) for row in rows} == {("coop+tpt", s, n) for s in (0, 1) for n in (1, 2, 3)}


@pytest.mark.parametrize("text", ["linear_probe(strength=2.0)", "tip_adapter(alpha=1.0, beta=5.5)", "linear_probe"])
def test_baselines_are_those_of_direct_fits(clip, encoder, text):
    chess, baseline = load_dataset("glyphs:chess"), evaluation.baselines.parse(text)
    rows = evaluate(encoder, baseline, chess, "base_to_new", 2, SEEDS, metrics=("macro_f1",))
    assert {row.split for row in rows} == {"base"}  # the new classes are none of those it was fitted to
    assert {row.metric for row in rows} == {"accuracy", "macro_f1"}
    names = chess.class_names[:6]
    for seed in SEEDS:
        drawn, val = (
            [i for i in part.tolist() if chess.labels[i] < 6] for part in evaluation.few_shot_and_val(chess, 2, seed)
        )
        test = [i for i in chess.select("test") if chess.labels[i] < 6]
        features = {
            key: encoder.features(chess.take(part))  # the search for C turns on the last digits
            for key, part in (("drawn", drawn), ("val", val), ("test", test))
        }
        state = baseline.fit(
            clip, names, features["drawn"], chess.labels[drawn], validation=(features["val"], chess.labels[val])
        )
        chosen = np.argmax(np.asarray(baseline.apply(state, clip, features["test"])), 1)
        (row,) = [row for row in rows if (row.seed, row.metric) == (seed, "accuracy")]
        assert row.value == pytest.approx(np.mean(chosen == chess.labels[test]), abs=1.01 / len(test))


def test_targets_are_tested_and_not_learned(encoder):
    rows = evaluate(
        encoder, tuners.coop(init_text="a photo of a"), "glyphs:chess", "cross_dataset", 1, (1,), ["glyphs:digits"],
        steps=1,
    )  # fmt: skip
    assert [(row.dataset, row.domain) for row in rows] == [("glyphs:chess", None), ("glyphs:chess", "glyphs:digits")]


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        (tuners.coop(), {"step": 3}, r"setting='step' is unknown \(did you mean 'steps'"),
        (tuners.coop(), {"steps": 0}, "steps=0"),
        (tuners.coop(), {"protocol": "base_two_new"}, "'base_two_new'.*'base_to_new'"),
        (tuners.coop(), {"protocol": "cross_dataset"}, "cross_dataset .*targets"),
        (tuners.coop(), {"protocol": "base_to_new", "targets": ["glyphs:digits"]}, "targets=glyphs:digits"),
        (tuners.coop(class_specific=True), {"protocol": "base_to_new"}, "class-specific prompt of coop .*base_to_new"),
        (evaluation.baselines.linear_probe(), {"steps": 3}, "steps: only tuners"),
        (evaluation.baselines.linear_probe(), {"protocol": "test_time"}, "linear_probe .*test_time"),
        (prompt_method(tuners.coop(), TestTimePlan()), {}, r"coop\+tpt .*few_shot"),
        (tuners.coop(), {"protocol": "test_time", "views": 5}, "share=0.1 of views=5"),
        (tuners.coop(), {"shots": 33}, "33"),
    ],
)
def test_what_cannot_be_combined_is_refused(encoder, method, given, message):
    with pytest.raises(InputError, match=message):
        evaluate(encoder, method, "glyphs:chess", **{"shots": 1, "seeds": (1,), **given})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda chess: restrict(chess, [0]), "one class, 'white king'"),
        (lambda chess: chess.take(np.flatnonzero(chess.splits != "test")), "no images of split 'test'"),
        (lambda chess: dataclasses.replace(chess, class_names=("White  King", *chess.class_names[1:], )), None),
        (lambda chess: dataclasses.replace(chess, class_names=("WHITE_QUEEN", *chess.class_names[1:])), "white queen"),
    ],
)  # fmt: skip
def test_a_dataset_that_check_data_refuses_is_refused(encoder, change, message):
    dataset = change(load_dataset("glyphs:chess"))
    dataset = dataclasses.replace(dataset, name="own")
    if message is None:
        assert evaluate(encoder, baselines.hand_crafted(), dataset, shots=1)
        return
    with pytest.raises(InputError, match=message):
        evaluate(encoder, baselines.hand_crafted(), dataset, shots=1)


def test_several_candidates_are_not_reduced_silently(encoder):
    method = prompt_method(tuners.coop(), TuningPlan(steps=1))
    method = dataclasses.replace(method, candidates=method.candidates * 2)
    with pytest.raises(InputError, match="coop has 2 candidate"):
        evaluate(encoder, method, "glyphs:chess", shots=1)
