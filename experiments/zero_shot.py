"""Zero-shot classification of labeled datasets by class names in templates.

    python -m experiments.zero_shot
    python -m experiments.zero_shot --dataset=glyphs:chess/noise,glyphs:greek_small --template="a photo of a {}."
    python -m experiments.zero_shot --clip=openai/clip-vit-base-patch16 --dataset=glyphs:digits

By default it evaluates the shipped mini CLIP on every dataset of the glyph benchmark, with each dataset's own template
and with "a photo of a {}.", in about a minute on two cores and under 1 GiB. --ensemble averages the templates into one
classifier. It prints a table and writes WORKDIR/results.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

import gram_jax as gram
from gram_jax import evaluation, reporting, runtime
from gram_jax.data import Dataset, coop, glyphs, load_datasets, templates
from gram_jax.data.readers.sources import forms
from gram_jax.errors import InputError

from ._accounts import tell
from ._launch import at_least, launch, setting

OWN = "own"


@dataclasses.dataclass(frozen=True)
class Config:
    """The datasets and the classifiers."""

    clip: str = setting("mini", 'folder, file, hub name, OpenCLIP MODEL:TAG, or "mini"')
    dataset: tuple[str, ...] = setting(tuple(f"glyphs:{name}" for name in glyphs.NAMES), f"datasets: {forms()}")
    template: tuple[str, ...] = setting(
        (OWN, templates.DEFAULT), 'texts with one {}; "own" means the template of the dataset', repeated=True
    )
    ensemble: bool = setting(False, "average the templates' features into one classifier")
    split: str = setting("test", "the split to evaluate", choices=("train", "val", "test"))
    batch_size: int = setting(256, "images per step")
    compute_dtype: str = setting("float32", "precision of the frozen computation", choices=("float32", "bfloat16"))
    seed: int = setting(0, "seed of drawn datasets and of generated splits")
    gray_range: float | None = setting(
        None,
        "the white value of grayscale images with more than 8 bits; default: the range that a dataset uses",
        above=0,
    )

    def __post_init__(self) -> None:
        if not self.dataset or not self.template:
            raise InputError("--dataset and --template need at least one value each")
        for template in self.template:
            if template != OWN and template.count("{}") != 1:
                needed = f'"{OWN}" or contain exactly one {{}} for the class name'
                raise InputError(f"--template={template!r}: it must be {needed}")
        at_least(self, 1, "batch_size")


def classifiers(config: Config, dataset: Dataset) -> dict[str, list[str]]:
    """Returns the templates of each classifier, by its name in the results."""
    texts = [dataset.template if template == OWN else template for template in config.template]
    if config.ensemble:
        return {f"zero_shot:ensemble of {len(texts)}": texts}
    return {f"zero_shot:{name}": [template] for name, template in zip(config.template, texts, strict=True)}


def accuracy(
    clip: gram.Clip, features: np.ndarray, labels: np.ndarray, names: Sequence[str], texts: Sequence[str]
) -> float:
    """Returns the share of image features whose nearest class, as worded by the templates, is their label."""
    classes = np.asarray(evaluation.class_features(clip, names, texts))
    return float(np.mean(np.argmax(features @ classes.T, axis=-1) == labels))


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Evaluates every classifier on every dataset."""
    loaded = load_datasets(coop.expand(config.dataset), seed=config.seed, gray_range=config.gray_range)
    datasets = list(loaded.values())
    for dataset in datasets:
        evaluation.checks.require_usable(dataset, config.split)
    tell(datasets)
    clip = gram.load_clip(config.clip, compute_dtype=config.compute_dtype)
    rows, hashes = [], {}
    for dataset in runtime.Progress.over(datasets, "zero-shot", unit="dataset"):
        positions = dataset.select(config.split)
        features = evaluation.image_features(clip, dataset.take(positions), config.batch_size)
        hashes[dataset.name] = dataset.content_hash
        base, domain = dataset.name.partition("/")[0], dataset.domain or None
        for method, texts in classifiers(config, dataset).items():
            value = accuracy(clip, features, dataset.labels[positions], dataset.class_names, texts)
            rows.append(evaluation.Row(method, "zero_shot", base, "accuracy", value, domain, seed=config.seed))
    environment = evaluation.environment(weights=gram.weights_hash(clip.params), splits=hashes)
    told = dataclasses.asdict(config) | {"datasets": {dataset.name: dict(dataset.about) for dataset in datasets}}
    results = evaluation.Results(told, environment, tuple(rows))
    evaluation.save_results(workdir, results)  # before anything that could fail
    for domain in dict.fromkeys(row.domain for row in rows):
        title = f"domain {domain}" if domain else "top-1 accuracy, %"
        shown = [dataclasses.replace(row, method=reporting.label(row.method)) for row in rows if row.domain == domain]
        table = reporting.transpose(reporting.pivot(shown))
        print(f"\n{title}\n{reporting.to_text(table)}")
    return results


if __name__ == "__main__":
    launch(run, Config)
