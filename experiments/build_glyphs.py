"""Builds the glyph benchmark as TFDS datasets (array_record files, no TensorFlow).

    python -m experiments.build_glyphs --data_dir=~/tensorflow_datasets
    python -m experiments.build_glyphs --pairs=1000000 --dataset=glyphs:greek_small/noise,glyphs:chess
    python -m experiments.build_glyphs --pairs=0 --dataset=glyphs:chess --photos=my_photos

100,000 pairs take about a minute on one core and 125 MB on disk; memory stays below 1 GiB. Existing datasets do
not change. Read them with ``tfds.builder_from_directory(FOLDER).as_data_source()``.
"""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

import numpy as np
from etils import epath

from gram_jax.data import Dataset, load_dataset
from gram_jax.data.glyphs import encode_png
from gram_jax.errors import InputError
from gram_jax.io import write_file

from ._launch import at_least, launch, setting


@dataclasses.dataclass(frozen=True)
class Config:
    """The datasets and their folder."""

    data_dir: str = setting("", "folder of TFDS datasets; WORKDIR/data if empty")
    pairs: int = setting(100_000, "image-text pairs of the corpus; 0 for no corpus")
    dataset: tuple[str, ...] = setting((), "labeled datasets: glyphs:NAME or glyphs:NAME/DOMAIN")
    seed: int = setting(0, "seed of the draws")
    photos: str = setting("", "instead, a new folder of PNG files, one folder per class, to try programs for photos on")
    per_class: int = setting(12, "images per class in --photos")

    def __post_init__(self) -> None:
        at_least(self, 0, "pairs")
        at_least(self, 1, "per_class")
        if self.photos and len(self.dataset) != 1:
            raise InputError(f"--photos={self.photos} holds one dataset; give one as --dataset")


def run(config: Config, workdir: Any) -> None:
    """Builds the corpus and the labeled datasets, and prints their sizes."""
    datasets = [load_dataset(spec, seed=config.seed) for spec in config.dataset]
    if config.photos:
        return write_photos(datasets[0], epath.Path(config.photos), config.per_class)
    from gram_jax.data.glyphs.builders import build_corpus, build_labeled

    data_dir = os.path.expanduser(config.data_dir) or os.fspath(workdir / "data")
    if config.pairs:
        begin = time.monotonic()
        print(f"drawing {config.pairs:,} pairs, about {config.pairs / 100_000:.1f} min on one core", flush=True)
        pairs = len(build_corpus(data_dir, config.pairs, config.seed))
        seconds = time.monotonic() - begin
        print(f"glyph_corpus: {pairs} pairs in {data_dir}; {seconds:.1f} s, {pairs / seconds:.0f} pairs per second")
    for dataset in datasets:
        name = dataset.name.removeprefix("glyphs:").partition("/")[0]
        sources = build_labeled(name, data_dir, dataset.domain, config.seed)
        sizes = ", ".join(f"{len(source)} {split}" for split, source in sources.items())
        print(f"{dataset.name}: {len(dataset.class_names)} classes, {sizes}, in {data_dir}")


def write_photos(dataset: Dataset, folder: epath.Path, per_class: int) -> None:
    """Writes the first images of every class, one folder per class."""
    if folder.exists():
        print(f"{folder} exists already and stays as it is")
        return
    for label, name in enumerate(dataset.class_names):
        for number, position in enumerate(np.flatnonzero(dataset.labels == label)[:per_class].tolist()):
            write_file(folder / name / f"{number:03d}.png", encode_png(dataset[position]))
    print(f"{len(dataset.class_names)} classes of {per_class} images in {folder}")


if __name__ == "__main__":
    launch(run, Config)
