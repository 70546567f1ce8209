"""Zero-shot classification of labeled datasets by class names in templates.

    python -m experiments.zero_shot
    python -m experiments.zero_shot --dataset=glyphs:chess/noise,glyphs:greek_small --template="a photo of a {}."
    python -m experiments.zero_shot --clip=openai/clip-vit-base-patch16 --dataset=glyphs:digits

With no flags: the shipped mini CLIP on every dataset of the embedded world, under each dataset's own template and
under "a photo of a {}.", in about a minute on two cores and under 1 GiB. Several templates make an ensemble with
``--ensemble``. Prints a table and writes ``WORKDIR/results.json``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

import gram_jax as gram
from gram_jax import evaluation, runtime
from gram_jax import reporting as reporting_lib
from gram_jax.data import Dataset, glyphs, load_dataset
from gram_jax.data.readers.sources import FORMS
from gram_jax.errors import InputError

from ._launch import at_least, launch, setting

OWN = "own"


@dataclasses.dataclass(frozen=True)
class Config:
    """What is classified, and how the classes are worded."""

    clip: str = setting("mini", 'a folder, a hub name, or "mini"')
    dataset: tuple[str, ...] = setting(
        tuple(f"glyphs:{name}" for name in glyphs.NAMES), f"datasets: {'; '.join(FORMS.values())}"
    )
    template: tuple[str, ...] = setting(
        (OWN, "a photo of a {}."), 'texts with one {}; "own" is the dataset\'s', repeated=True
    )
    ensemble: bool = setting(False, "average the templates' features into one classifier")
    split: str = setting("test", "the split that is measured", choices=("train", "val", "test"))
    batch_size: int = setting(256, "images a step")
    compute_dtype: str = setting("float32", "precision of the frozen compute", choices=("float32", "bfloat16"))
    seed: int = setting(0, "seed of datasets that are drawn, and of splits that are made")

    def __post_init__(self) -> None:
        if not self.dataset or not self.template:
            raise InputError("--dataset and --template need at least one value each")
        for template in self.template:
            if template != OWN and template.count("{}") != 1:
                raise InputError(
                    f'--template={template!r}: it must be "{OWN}" or hold exactly one {{}} for the class name'
                )
        at_least(self, 1, "batch_size")


def classifiers(config: Config, dataset: Dataset) -> dict[str, list[str]]:
    """The templates of each classifier, by the name that results show."""
    templates = [dataset.template if template == OWN else template for template in config.template]
    if config.ensemble:
        return {f"zero_shot:ensemble of {len(templates)}": templates}
    return {f"zero_shot:{name}": [template] for name, template in zip(config.template, templates, strict=True)}


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Measures every dataset under every classifier."""
    del workdir  # nothing but results.json is written
    clip = gram.load_clip(config.clip, compute_dtype=config.compute_dtype)
    datasets = [load_dataset(spec, seed=config.seed) for spec in config.dataset]
    rows, hashes = [], {}
    for dataset in runtime.Progress.over(datasets, "zero-shot", unit="dataset"):
        positions = dataset.select(config.split)
        features = evaluation.image_features(clip, dataset.lazy_images(positions), config.batch_size)
        hashes[dataset.name] = dataset.content_hash
        for method, templates in classifiers(config, dataset).items():
            classes = evaluation.class_features(clip, dataset.class_names, templates)
            predicted = np.argmax(features @ np.asarray(classes).T, axis=-1)
            accuracy = float(np.mean(predicted == dataset.labels[positions]))
            base = dataset.name.partition("/")[0]
            rows.append(
                evaluation.Row(
                    method, "zero_shot", base, "accuracy", accuracy, dataset.domain or None, seed=config.seed
                )
            )
    for domain in dict.fromkeys(row.domain for row in rows):
        title = f"domain {domain}" if domain else "top-1 accuracy, %"
        table = reporting_lib.transpose(reporting_lib.pivot(row for row in rows if row.domain == domain))
        print(f"\n{title}\n{reporting_lib.to_text(table)}")
    environment = evaluation.environment(weights=gram.weights_hash(clip.params), splits=hashes)
    return evaluation.Results(dataclasses.asdict(config), environment, tuple(rows))


if __name__ == "__main__":
    launch(run, Config)
