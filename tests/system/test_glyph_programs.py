"""The glyph benchmark in processes of its own: equal draws, no TensorFlow, contact_sheet and build_glyphs."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import gram_jax
from gram_jax.data import glyphs

FINGERPRINT = """
import hashlib
from gram_jax.data import glyphs
digest = hashlib.sha256()
for index in range(300):
    pair = glyphs.pair(index, 3)
    digest.update(repr((pair.caption, pair.sort, pair.character.code, pair.appearance)).encode())
    if index < 40:
        digest.update(pair.image.tobytes())
    if index == 299:
        print(digest.hexdigest())
"""


def program(name, *flags):
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *flags], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("dataset", "file"),
    [("corpus", "corpus.png"), ("glyphs:chess/mono+noise", "glyphs-chess-mono-noise.png")],
)
def test_contact_sheet(tmp_path, dataset, file):
    done = program("contact_sheet", f"--dataset={dataset}", f"--workdir={tmp_path}", "--images=10")
    assert done.returncode == 0, done.stderr
    assert file in done.stdout
    assert np.ptp(np.asarray(Image.open(tmp_path / file))) > 100


def test_build_glyphs(tmp_path):
    done = program(
        "build_glyphs", f"--data_dir={tmp_path}/tfds", f"--workdir={tmp_path}", "--pairs=7", "--dataset=glyphs:chess"
    )
    assert done.returncode == 0, done.stderr
    assert "glyph_corpus: 7 pairs" in done.stdout
    assert "12 classes, 384 train, 96 val, 240 test" in done.stdout
    source = tfds.builder_from_directory(tmp_path / "tfds/glyph_corpus/pairs_7_seed_0/1.0.0").as_data_source("train")
    assert np.array_equal(source[6]["image"], glyphs.pair(6).image)


def test_the_same_in_every_process():
    outputs = set()
    for hash_seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(gram_jax.__file__).parents[1])}
        done = subprocess.run([sys.executable, "-c", FINGERPRINT], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        outputs.add(done.stdout)
    assert len(outputs) == 1


def test_neither_tensorflow_nor_torch_is_imported(tmp_path):
    code = f"""
import sys
from gram_jax.data.glyphs.builders import build_corpus
build_corpus({str(tmp_path)!r}, pairs=3)[2]
assert not {{"tensorflow", "torch"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
