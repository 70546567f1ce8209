"""A seed's prompts and numbers are bit-identical, whatever seeds are beside it."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from gram_jax import evaluation, regulators, tuners
from gram_jax.data import load_dataset
from gram_jax.evaluation.methods import Trial, task_of
from gram_jax.testing import tiny_clip


@pytest.fixture(scope="module")
def encoder():
    return evaluation.Encoder(tiny_clip(text_layers=1, vision_layers=1, text_context_length=40))


@pytest.fixture(scope="module")
def chess():
    dataset = load_dataset("glyphs:chess")
    return dataset.take([p for p in range(len(dataset)) if dataset.references[p][2] < 4])


@pytest.mark.parametrize(
    ("tuner", "plan", "regulator"),
    [
        ("coop", {}, None),
        ("coop(class_specific=True)", {}, None),
        ("coop", {"optimizer": "adam"}, None),
        ("coop", {"momentum": 0.9, "weight_decay": 0.01}, None),
        ("coop", {"regularizers": "kgcoop:8,npt:1"}, None),
        ("coop", {"augmentation": "stored", "views": 2}, None),
        ("coop", {}, regulators.prograd()),
        ("coop", {"alternating": True}, regulators.prometar()),
        ("cocoop", {}, None),
        ("vpt", {}, None),
        ("ivlp(depth=1)", {}, None),
        ("maple(depth=1)", {"augmentation": "fresh"}, None),
    ],
    ids=str,
)
def test_neighbors_change_nothing(encoder, chess, tuner, plan, regulator):
    encoder.add(chess)
    plan = evaluation.TuningPlan(steps=3, batch_size=8, learning_rate=0.5, **plan)
    method = evaluation.prompt_method(tuners.parse(tuner), plan, regulator=regulator)
    protocol = evaluation.protocols.parse("few_shot")
    parts = protocol.parts(chess)
    found = []
    for seeds in ((7,), (7, 8), (9, 8, 7)):
        trial = Trial(encoder, task_of(chess, protocol, 1, seeds), method.candidates[0])
        learned = method.learn(trial, (1,))
        (predicted,) = method.predict(trial, learned, parts)[3]
        place = seeds.index(7)
        arrays = [leaf[place] for step in (1, 3) for leaf in jax.tree.leaves(learned.prompts[step])]
        arrays += [losses[:, place] for losses in learned.metrics.values()]
        found.append([np.asarray(each) for each in (*arrays, predicted.labels[place], predicted.confidence[place])])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def coop():
    plan = evaluation.TuningPlan(steps=3, batch_size=8, learning_rate=0.5)
    return evaluation.prompt_method(tuners.coop(num_tokens=2), plan)


NEIGHBORS = [(7, 8), (8, 7), (0, 7), (7, 2**32 - 1), (6, 7, 8), (1, 2, 3, 7), (1, 2, 3, 4, 7), tuple(range(9))]
NEIGHBORS += [(7, 70, 700, 7000), (2**31, 7), tuple(range(7, 24))]


@pytest.mark.parametrize("seeds", NEIGHBORS, ids=str)
def test_a_report_of_a_seed_is_the_same_beside_any_others(encoder, chess, coop, seeds):
    """Of any number, in any order, across the width of a group, and of any size."""

    def rows(seeds):
        found = evaluation.evaluate(encoder, coop, chess, "few_shot", 1, seeds, metrics=("all",))
        return [(row.split, row.metric, row.step, row.value) for row in found if row.seed == 7]

    assert rows(seeds) == rows((7,))


@pytest.mark.parametrize("name", ["linear_probe(strength=1.0)", "tip_adapter(epochs=2,alpha=1.0,beta=1.0)"])
def test_a_baseline_of_a_seed_is_the_same_beside_others(encoder, chess, name):
    baseline = evaluation.baselines.parse(name)
    found = [evaluation.evaluate(encoder, baseline, chess, "few_shot", 2, seeds) for seeds in ((7,), (8, 7, 1))]
    alone, beside = ([row.value for row in rows if row.seed == 7] for rows in found)
    assert alone == beside
