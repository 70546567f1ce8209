"""Draws a picture of a labeled dataset, or of the corpus with its captions.

    python -m experiments.contact_sheet --dataset=glyphs:greek_small/serif-italic+noise
    python -m experiments.contact_sheet --dataset=corpus

Writes ``WORKDIR/NAME.png`` in about a second.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from gram_jax.data import glyphs, load_dataset
from gram_jax.io import atomic_path
from gram_jax.reporting.contact_sheet import contact_sheet

from ._launch import at_least, launch, setting


@dataclasses.dataclass(frozen=True)
class Config:
    """The images to show."""

    dataset: str = setting("corpus", "glyphs:NAME, glyphs:NAME/DOMAIN, or corpus")
    split: str = setting("train", "the split of a labeled dataset", choices=("train", "val", "test"))
    images: int = setting(96, "number of images")
    per_class: int = setting(2, "images per class of a labeled dataset")
    columns: int = setting(12, "images per row")
    seed: int = setting(0, "seed of the draw")

    def __post_init__(self) -> None:
        at_least(self, 1, "images", "per_class", "columns")


def run(config: Config, workdir: Any) -> None:
    """Draws the sheet and prints its path."""
    if config.dataset == "corpus":
        pairs = [glyphs.pair(i, config.seed) for i in range(config.images)]
        images, labels = [pair.image for pair in pairs], [pair.caption for pair in pairs]
        sheet = contact_sheet(images, labels, config.columns, lines=4)
    else:
        dataset = load_dataset(config.dataset, seed=config.seed)
        shown = (i for i in dataset.select(config.split) if dataset.references[i][2] < config.per_class)
        positions = sorted(shown, key=dataset.labels.__getitem__)[: config.images]
        labels = [dataset.class_names[dataset.labels[i]] for i in positions]
        sheet = contact_sheet(dataset.images(positions), labels, config.columns)
    path = workdir / (re.sub(r"[^A-Za-z0-9]+", "-", config.dataset).strip("-") + ".png")
    with atomic_path(path) as part, part.open("wb") as file:
        sheet.save(file, "PNG")
    print(f"{len(labels)} images in {path}")


if __name__ == "__main__":
    launch(run, Config)
