"""experiments.embed_corpus: stores of a corpus and of datasets, and build_tasks on a store."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

import gram_jax as gram
from experiments import build_tasks, embed_corpus
from experiments.evaluate import run as evaluate
from gram_jax.clip.images import ImageError
from gram_jax.data import (
    FeatureBank,
    StoreError,
    augmented_view,
    feature_key,
    load_corpus,
    load_dataset,
    open_bank,
    open_store,
)
from gram_jax.evaluation import encoder
from gram_jax.testing import tiny_clip

Config = embed_corpus.Config
ROOT = Path(__file__).parents[2]
PAIRS = 21


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    gram.save_clip(tiny_clip(text_layers=1, vision_layers=1), folder)
    return folder


@pytest.fixture(scope="module")
def clip(folder):
    return gram.load_clip(folder)


@pytest.fixture(scope="module")
def config(folder):
    return Config(
        clip=str(folder), corpus="glyphs", pairs=PAIRS, dtype="float32", batch_size=4, shard_rows=8, workers=2
    )


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("embedded"))
    embed_corpus.run(config, workdir)
    return workdir


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_features_are_those_of_each_item_alone(clip, workdir):
    corpus = load_corpus("glyphs", pairs=PAIRS)
    kept = open_store(workdir / "store", feature_key(clip, corpus))
    assert (kept.images.shape, kept.texts.shape) == ((21, 16), (21, 16))
    for item in (0, 3, 4, 8, 15, 20):  # of first and later batches and shards
        (image,) = corpus.images([item])
        alone = gram.encode_image(clip, clip.preprocess([image]))[0]
        np.testing.assert_allclose(kept.images[item], alone, atol=1e-5)
        tokens = clip.tokenizer.encode([corpus.captions[item]], truncate=True)
        np.testing.assert_allclose(kept.texts[item], gram.encode_text(clip, tokens)[0], atol=1e-5)


def test_the_same_command_embeds_nothing_again_and_another_is_refused(config, workdir, monkeypatch):
    before = files(workdir / "store")
    with monkeypatch.context() as patched:
        patched.setattr(embed_corpus, "pixels", lambda *_: pytest.fail("embedded again"))
        embed_corpus.run(config, workdir)
    assert files(workdir / "store") == before
    for change, field in (({"pairs": 20}, "source_hash"), ({"dtype": "float16"}, "dtype")):
        with pytest.raises(StoreError, match=f"{field} is"):
            embed_corpus.run(dataclasses.replace(config, **change), workdir)


def test_a_run_that_failed_continues_to_the_same_bytes(config, workdir, tmp_path, monkeypatch):
    keep, kept = FeatureBank.keep, []

    def full(bank, items, features):
        if kept:
            raise OSError("No space left on device")
        kept.append(items)
        keep(bank, items, features)

    monkeypatch.setattr(FeatureBank, "keep", full)
    with pytest.raises(OSError, match="No space"):
        embed_corpus.run(config, epath.Path(tmp_path))
    monkeypatch.undo()
    with pytest.raises(StoreError, match="lacks 13 of 21 items"):
        open_store(tmp_path / "store")
    embed_corpus.run(config, epath.Path(tmp_path))
    assert files(tmp_path / "store") == files(workdir / "store")


def test_each_process_writes_its_own_items(clip, config, workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for index, left in ((1, [*range(8), *range(16, 21)]), (0, [])):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        embed_corpus.run(config, epath.Path(tmp_path))
        bank = open_bank(clip, load_corpus("glyphs", pairs=PAIRS), tmp_path / "store")
        assert bank.missing().tolist() == left
    monkeypatch.undo()
    assert files(tmp_path / "store") == files(workdir / "store")


@pytest.fixture(scope="module")
def datasets(folder, tmp_path_factory):
    """Returns the settings and the work directory of two datasets, one after the other, with views."""
    config = Config(clip=str(folder), dataset=("glyphs:chess/noise", "glyphs:digits"), views=2, shard_rows=100)
    workdir = epath.Path(tmp_path_factory.mktemp("datasets"))
    embed_corpus.run(config, workdir)
    return config, workdir


def test_datasets_and_their_views(clip, datasets):
    for name in datasets[0].dataset:
        dataset = load_dataset(name)
        bank = open_bank(clip, dataset, datasets[1] / "store")
        assert len(bank.missing()) == 0
        chosen = np.arange(0, len(dataset), 90)
        expected = gram.evaluation.image_features(clip, dataset.images(chosen))
        np.testing.assert_allclose(bank.rows(chosen, None), expected, atol=1e-5)
        views = open_bank(clip, dataset, datasets[1] / "store", views=2).rows([5], None)[0]
        (image,) = dataset.images([5])
        for number in range(2):
            seen = augmented_view(clip.transform, image, 0, dataset.item_number(5), number)
            alone = gram.encode_image(clip, clip.transform.normalize(seen[None]))[0]
            np.testing.assert_allclose(views[number], alone, atol=1e-5)


def test_only_missing_images_are_encoded_again(clip, datasets, monkeypatch):
    config, workdir = datasets
    store = Path(workdir) / "store" / "glyphs-digits"
    bank = open_bank(clip, load_dataset("glyphs:digits"), workdir / "store")
    before = bank.rows(np.arange(600), None)
    (lost, *_) = (path for path in sorted(store.glob("rows-*.npy")) if 150 in np.load(path)["item"])
    lost.unlink()
    encoded, pixels = [], embed_corpus.pixels
    monkeypatch.setattr(embed_corpus, "pixels", lambda step, *rest: encoded.append(step) or pixels(step, *rest))
    embed_corpus.run(config, workdir)
    assert sorted(item for step in encoded for item, _ in step.pairs) == list(range(100, 200))
    bank = open_bank(clip, load_dataset("glyphs:digits"), workdir / "store")
    np.testing.assert_allclose(bank.rows(np.arange(600), None), before, atol=1e-6)


def test_processes_share_a_dataset(clip, datasets, tmp_path, monkeypatch):
    config = dataclasses.replace(datasets[0], dataset=("glyphs:digits",), views=0)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for index, left in ((1, 300), (0, 0)):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        embed_corpus.run(config, epath.Path(tmp_path))
        assert len(open_bank(clip, load_dataset("glyphs:digits"), tmp_path / "store").missing()) == left


def test_an_image_that_cannot_be_read_is_named(clip, config, tmp_path, monkeypatch):
    corpus = load_corpus("glyphs", pairs=PAIRS)
    broken = dataclasses.replace(corpus, read=lambda index: b"no image" if index == 1 else corpus.read(index))
    monkeypatch.setattr(embed_corpus, "load_corpus", lambda *_, **__: broken)
    with pytest.raises(ImageError, match="image 1 of glyphs"):
        embed_corpus.run(config, epath.Path(tmp_path))


def test_build_tasks_takes_the_features_from_the_store(folder, clip, tmp_path, monkeypatch):
    settings = {"clip": str(folder), "pairs": 300}
    embed_corpus.run(Config(corpus="glyphs", dtype="float32", **settings), epath.Path(tmp_path))
    config = build_tasks.Config(themes=2, classes=20, min_members=3, **settings)
    corpus = load_corpus("glyphs", pairs=300)
    with_features = dataclasses.replace(config, features=str(tmp_path / "store"))
    computed = build_tasks.build(config, epath.Path(tmp_path / "a"), clip, corpus)
    monkeypatch.setattr(build_tasks, "embed", lambda *_: pytest.fail("features were computed again"))
    kept = build_tasks.build(with_features, epath.Path(tmp_path / "b"), clip, corpus)
    assert kept.about == computed.about
    np.testing.assert_array_equal(kept.members, computed.members)
    np.testing.assert_allclose(kept.image_features, computed.image_features, atol=1e-3)
    with pytest.raises(StoreError, match="source_hash is"):
        build_tasks.build(with_features, epath.Path(tmp_path / "c"), clip, load_corpus("glyphs", pairs=300, seed=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "--corpus='' --dataset=''"),
        ({"corpus": "glyphs", "dataset": ("glyphs:chess",)}, "--dataset='glyphs:chess'"),
        ({"corpus": "glyphs", "shard_rows": 0}, "--shard_rows=0"),
        ({"corpus": "glyphs", "views": 8}, "--views=8"),
        ({"dataset": ("glyphs:chess",), "views": -1}, "--views=-1"),
        ({"dataset": ("glyphs:chess",), "dtype": "float16"}, "--dtype=float16"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


def start(workdir: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments.embed_corpus", f"--workdir={workdir}", *flags]
    # Two devices, so that batches are divided.
    xla = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla,
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "cache"),  # what the first run compiles serves all
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_run_that_was_killed_continues_to_the_same_bytes(folder, clip, tmp_path):
    # So many shards that killing the program behind the first one takes no skill.
    flags = (f"--clip={folder}", "--corpus=glyphs", "--pairs=600", "--batch_size=5", "--shard_rows=10", "--workers=1")
    whole = start(tmp_path / "whole", *flags)
    killed, deadline = start(tmp_path / "killed", *flags), time.monotonic() + 60
    while not list(tmp_path.glob("killed/store/rows-*.npy")) and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.kill()
    killed.communicate(timeout=30)
    assert 0 < len(list(tmp_path.glob("killed/store/rows-*.npy"))) < 60
    for process in (start(tmp_path / "killed", *flags), whole):
        printed, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
        assert "600 items of glyphs" in printed
    assert files(tmp_path / "killed/store") == files(tmp_path / "whole/store")
    corpus = load_corpus("glyphs", pairs=600)
    kept = open_store(tmp_path / "killed/store", feature_key(clip, corpus))
    alone = gram.evaluation.image_features(clip, corpus.images([0, 377, 599]))
    np.testing.assert_allclose(kept.images[[0, 377, 599]], alone, atol=1e-3)


@pytest.mark.parametrize("augmentation", ["none", "stored"])
def test_evaluate_encodes_no_stored_image_again(datasets, tmp_path, monkeypatch, augmentation):
    config, workdir = datasets
    settings = evaluate.Config(
        clip=config.clip,
        dataset=("glyphs:digits",),
        feature_store=str(workdir / "store"),
        protocol=("few_shot",),
        shots=(2,),
        seeds=(1,),
        learning_rate=(0.1,),
        steps=(2,),
        report_steps=(),
        batch_size=4,
        augmentation=augmentation,
        views=2,
    )
    monkeypatch.setattr(encoder, "encode_image", lambda *_: pytest.fail("encoded again"))
    (tmp_path / "run").mkdir()
    results = evaluate.run(settings, epath.Path(tmp_path / "run"))
    assert {row.method for row in results.rows} >= {"zero_shot", "coop"}
