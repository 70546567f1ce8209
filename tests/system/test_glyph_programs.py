"""experiments.contact_sheet and experiments.build_glyphs as a user runs them."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from gram_jax.data import glyphs


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
