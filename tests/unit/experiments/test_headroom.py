"""The rule that chooses datasets, on numbers by hand and on a small run."""

from __future__ import annotations

import numpy as np
import pytest
from etils import epath

import gram_jax as gram
from experiments import headroom
from gram_jax import evaluation, tuners
from gram_jax.data import load_dataset
from gram_jax.errors import InputError
from gram_jax.evaluation import Row


def rows(template, early, late, config):
    """Returns rows of two seeds; `early` and `late` are accuracies on new classes."""
    found = [
        Row(name, "few_shot", "glyphs:chess", "accuracy", value, split="all")
        for name, value in (("zero_shot", 0.1), ("zero_shot:own", template))
    ]
    for step, values in ((config.early, early), (config.steps, late)):
        for seed, value in enumerate(values):
            found += [
                Row("coop", "base_to_new", "glyphs:chess", "accuracy", value, seed=seed, split=split, step=step)
                for split in ("base", "new")
            ]
    return found


@pytest.mark.parametrize(
    ("template", "late", "expected"),
    [(0.9, (0.88, 0.90), True), (0.9, (0.89, 0.905), False), (0.97, (0.5, 0.5), False), (0.969, (0.5, 0.5), True)],
)
def test_a_dataset_qualifies_if_it_is_unsolved_and_new_classes_fall(template, late, expected):
    config = headroom.Config()
    summary = headroom.summarize(config, rows(template, (0.9, 0.9), late, config))
    assert summary == pytest.approx({"template": 100 * template, "early": 90.0, "late": 100 * np.mean(late)})
    assert headroom.qualifies(config, summary) is expected


def test_it_measures_the_validation_split_and_resumes(tmp_path, monkeypatch):
    config = headroom.Config(dataset=("glyphs:chess",), shots=1, seeds=(5,), early=1, steps=2)
    results = headroom.run(config, epath.Path(tmp_path))
    clip, dataset = gram.load_clip("mini"), load_dataset("glyphs:chess")
    positions = dataset.select("val")
    texts = gram.encode_text(clip, clip.class_tokens(list(dataset.class_names), dataset.template).token_ids)
    features = gram.encode_image(clip, clip.preprocess(dataset.images(positions)))
    expected = np.mean(np.argmax(features @ texts.T, axis=-1) == dataset.labels[positions])
    (own,) = (row.value for row in results.rows if row.method == "zero_shot:own")
    assert own == pytest.approx(expected)
    measured = {(row.split, row.step): row.value for row in results.rows if row.method == "coop"}
    assert measured.keys() == {(split, step) for split in ("base", "new") for step in (1, 2)}
    tested = evaluation.evaluate(
        clip, tuners.parse(config.tuner), dataset, "base_to_new", 1, (5,), split="val", steps=2
    )
    assert {row.split: row.value for row in tested} == {split: measured[split, 2] for split in ("base", "new")}
    assert results.rows[-1].metric == "qualifies"

    def never(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr("experiments.evaluate.comparison.method_rows", never)
    assert headroom.run(config, epath.Path(tmp_path)).rows == results.rows


@pytest.mark.parametrize("changes", [{"steps": 30}, {"early": 0}, {"fall": 0.0}, {"shots": 0}])
def test_impossible_settings_are_named(changes):
    (name, value) = next(iter(changes.items()))
    with pytest.raises(InputError, match=f"{name}={value}"):
        headroom.Config(**changes)
