"""Baselines in experiments.evaluate, and a second run that reads its image features from the store."""

import dataclasses

import numpy as np
import pytest
from etils import epath

import gram_jax as gram
from experiments.evaluate import run as evaluate
from gram_jax import evaluation
from gram_jax.data import load_dataset
from gram_jax.evaluation import encoder
from gram_jax.testing import tiny_clip


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    gram.save_clip(tiny_clip(seed=1, text_layers=1, vision_layers=1, text_context_length=40), folder)
    return evaluate.Config(
        clip=str(folder),
        baselines="linear_probe(strength=2.0), tip_adapter(alpha=1.0), hand_crafted(template='a sketch of a {}.')",
        dataset=("glyphs:chess",),
        domains=("noise",),
        shots=(1, 2),
        seeds=(1, 2),
        steps=(1,),
        learning_rate=(0.1,),
        report_steps=(),
        max_test_images=3,
        save_confusion=True,
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("runs")) / "evaluate"
    return workdir, evaluate.run(config, workdir)


def test_baselines_are_rows_of_the_same_draws_and_tables(finished):
    workdir, results = finished
    probe, tip, text = (
        "linear_probe(strength=2.0)",
        "tip_adapter(alpha=1.0)",
        "hand_crafted(template='a sketch of a {}.')",
    )
    found = {(row.method, row.protocol, row.domain, row.split, row.shots, row.seed) for row in results.rows}
    for method in (probe, tip):
        assert {each[1:] for each in found if each[0] == method} == {
            (protocol, domain, split, shots, seed)
            for protocol, domain, split in (
                ("few_shot", None, "all"), ("few_shot", "noise", "all"), ("base_to_new", None, "base")
            )
            for shots in (1, 2)
            for seed in (1, 2)
        }  # fmt: skip
    assert {each[1:] for each in found if each[0] == text} == {
        ("few_shot", None, "all", None, None), ("few_shot", "noise", "all", None, None),
        ("base_to_new", None, "base", None, None), ("base_to_new", None, "new", None, None),
    }  # fmt: skip
    table = (workdir / "table.md").read_text()
    assert "linear probe (strength=2.0)" in table
    assert "Tip-Adapter (alpha=1.0)" in table


def test_a_linear_probe_is_scikit_learns_on_the_draw(config, finished):
    from sklearn.linear_model import LogisticRegression

    _, results = finished
    clip, chess = gram.load_clip(config.clip), load_dataset("glyphs:chess")
    drawn = evaluation.few_shot(chess, 2, 1)
    test = [i for label in range(12) for i in np.flatnonzero(chess.labels == label) if chess.splits[i] == "test"]
    test = [i for label in range(12) for i in [i for i in test if chess.labels[i] == label][:3]]
    features, queries = (
        np.asarray(gram.encode_image(clip, clip.preprocess(chess.images(part)))) for part in (drawn, test)
    )
    fitted = LogisticRegression(C=2.0, max_iter=1000).fit(features, chess.labels[drawn])
    (row,) = [
        row
        for row in results.rows
        if (row.method, row.protocol, row.domain, row.shots, row.seed)
        == ("linear_probe(strength=2.0)", "few_shot", None, 2, 1)
    ]
    assert row.value == pytest.approx(fitted.score(queries, chess.labels[test]), abs=1.01 / len(test))


def test_a_second_run_encodes_no_image_and_is_identical(config, finished, monkeypatch):
    workdir, results = finished
    monkeypatch.setattr(encoder, "encode_image", None)
    again = evaluate.run(config, workdir.parent / "again")
    assert again.rows == results.rows
    assert (workdir / "rows.jsonl").read_bytes() == (workdir.parent / "again" / "rows.jsonl").read_bytes()


def test_without_a_store_results_are_the_same(config, finished, tmp_path):
    _, results = finished
    alone = evaluate.run(dataclasses.replace(config, feature_store=""), epath.Path(tmp_path) / "runs" / "evaluate")
    assert alone.rows == results.rows
    assert not (tmp_path / "runs" / "features").exists()
