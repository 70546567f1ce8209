"""Makes a classifier of your own photos: checks them, tunes a prompt, and compares it with two simple methods.

    python -m experiments.classify --images=my_photos
    python -m experiments.classify --images=my_photos --clip=/models/clip-vit-base-patch16 --steps=300
    python -m experiments.classify --images=my_photos --clip=mini

--images is a folder of class folders, or of train, val and test with class folders; or any dataset, such as
csv:list.csv. Without splits, half of each class tunes, a fifth chooses the learning rate and then tunes too, the rest
tests. The photos are checked as by `check_data`, and a problem ends the program. The prompt, zero-shot ("a photo of
a {}.") and a linear probe are then measured on the same test images; nothing is chosen on these. Writes the classifier,
which `gram_jax.PromptClassifier.load`, `experiments.predict --prompt` and `experiments.export` read, to
WORKDIR/classifier.safetensors, the numbers to results.json, the prediction of every test image to predictions.csv, and
all of it as a page with wrong images, confusion and calibration to report.html.

The backbone is openai/clip-vit-base-patch16, from the Hugging Face hub or its local cache. The shipped clip, mini, only
knows printed characters. With 60 photos: two minutes on two cores.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import shlex
from typing import Any

import lazy_loader
import numpy as np

import gram_jax as gram
from gram_jax import evaluation, reporting, runtime
from gram_jax.batching import map_batches
from gram_jax.data import Dataset, load_dataset
from gram_jax.data.readers.sources import READERS
from gram_jax.errors import InputError
from gram_jax.io import replacing

from . import check_data
from ._launch import at_least, launch, positive, setting

# Loaded when used, so that --help answers at once.
jax = lazy_loader.load("jax")

BACKBONE = "openai/clip-vit-base-patch16"
_STRENGTH = 100.0  # of the linear probe without validation images


@dataclasses.dataclass(frozen=True)
class Config:
    """The photos, the backbone and the length of tuning."""

    images: str = setting("", "a folder of class folders; or a dataset, such as csv:list.csv", positional=True)
    clip: str = setting(BACKBONE, 'the backbone: folder, file, hub name, OpenCLIP MODEL:TAG, or "mini"')
    tuner: str = setting("coop(init_text='a photo of a')", "the tuner with its settings, as in evaluate")
    learning_rate: tuple[float, ...] = setting((0.03, 0.3), "candidate learning rates; validation images choose")
    steps: int = setting(40, "optimizer steps; 300 reach convergence, at seven times the time")
    batch_size: int = setting(16, "images that are encoded at once")
    seed: int = setting(0, "seed of the splits, the initialization and the order of the images")
    gray_range: float | None = setting(
        None,
        "the white value of grayscale images with more than 8 bits; default: the range that the images use",
        above=0,
    )

    def __post_init__(self) -> None:
        if not self.images:
            raise InputError("--images is empty: give a folder that holds one folder of photos for each class")
        if not self.learning_rate:
            raise InputError("--learning_rate is empty; give at least one value")
        at_least(self, 1, "steps", "batch_size")
        positive(self, "learning_rate")


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Checks the photos, tunes and measures the classifier, and saves it."""
    from gram_jax.evaluation.protocols import AllShots  # it imports JAX: late, so that --help answers at once

    from .evaluate.run import write_page

    clip, dataset = load_backbone(config.clip), checked(config, workdir)
    encoder = encoded(clip, dataset, config.batch_size)
    model = gram.PromptClassifier(
        os.path.abspath(path) if os.path.exists(path := os.path.expanduser(config.clip)) else config.clip,
        config.tuner,
        learning_rate=config.learning_rate,
        steps=config.steps,
        random_state=config.seed,
        batch_size=config.batch_size,
    )
    selecting = len(config.learning_rate) if len(config.learning_rate) > 1 and "val" in dataset.splits else 0
    with runtime.Progress((selecting + 1) * config.steps, "tuning") as progress:
        model.fit_dataset(dataset, encoder, progress.update)
    saved = workdir / "classifier.safetensors"
    with replacing(saved) as part:
        model.save(part)
    test = dataset.take(dataset.select("test"))
    tuner = model.scorer_.tuner
    predicted = {
        "zero_shot": zero_shot(encoder, test),
        "linear_probe": probe(encoder, dataset, test),
        tuner.name: map_batches(model.scorer_, encoder.inputs(tuner, test), config.batch_size),
    }
    right = {name: int(np.sum(each.argmax(-1) == test.labels)) for name, each in predicted.items()}
    rows = [
        evaluation.Row(name, AllShots.name, dataset.name, "accuracy", count / len(test), seed=config.seed)
        for name, count in right.items()
    ]
    fitted = model.report_ | {"validation_accuracy": list(map(list, model.report_["validation_accuracy"].items()))}
    told = dataclasses.asdict(config) | {"datasets": {dataset.name: dict(dataset.about)}, "fitted": fitted}
    splits = {dataset.name: dataset.content_hash}
    environment = evaluation.environment(weights=gram.weights_hash(clip.params), splits=splits)
    results = evaluation.Results(told, environment, tuple(rows))
    evaluation.save_results(workdir, results)  # before anything that could fail
    write_predictions(workdir / "predictions.csv", test, predicted)
    store(workdir, test, predicted, config.seed)
    print(f"\n{'method':<14}  {'test accuracy':>13}  {'right':>10}")
    for name, count in right.items():
        share = f"{100 * count / len(test):.1f} %"
        print(f"{reporting.label(name):<14}  {share:>13}  {f'{count} of {len(test)}':>10}")
    print(f"\npredictions in {workdir / 'predictions.csv'}")
    write_page(results, workdir, {dataset.name: dataset})
    print(f"classifier in {saved}; to use it:")
    command = ["--images=NEW_PHOTOS", f"--clip={config.clip}", f"--prompt={saved}"]
    print(f"  python -m experiments.predict {shlex.join(command)}")
    return results


def checked(config: Config, workdir: Any) -> Dataset:
    """Returns the labeled photos; raises InputError with all that check_data finds wrong."""
    spec = config.images if config.images.partition(":")[0] in READERS else f"folder:{config.images}"
    told: dict[str, Any] = {"seed": config.seed, "gray_range": config.gray_range}
    found = check_data.check(check_data.Config(dataset=(spec,), **told), spec, workdir)
    if found.problems:
        what = f"--images={config.images}: problems: {len(found.problems)}"
        raise InputError("\n  ".join([what, *found.problems]))
    return load_dataset(spec, **told)


def encoded(clip: gram.Clip, dataset: Dataset, batch_size: int) -> evaluation.Encoder:
    """Returns an encoder that knows the features of all photos."""
    encoder = evaluation.Encoder(clip, batch_size)
    encoder.add(dataset)
    with runtime.Progress(len(dataset), "encoding", unit="image") as progress:
        for begin in range(0, len(dataset), batch_size):
            part = dataset.take(np.arange(begin, min(begin + batch_size, len(dataset))))
            encoder.features(part)
            progress.update(len(part))
    return encoder


def load_backbone(name: str) -> gram.Clip:
    """Returns a clip; where the default one is not at hand, InputError says how to get it."""
    try:
        return gram.load_clip(name)
    except FileNotFoundError as error:
        if name != BACKBONE:
            raise
        raise InputError(
            f"--clip={BACKBONE} is not on this machine, and the Hugging Face hub cannot be reached: run 'hf download "
            f"{BACKBONE} --local-dir=FOLDER' where it can, and give --clip=FOLDER (or --clip=mini, which only knows "
            "printed characters)"
        ) from error


def zero_shot(encoder: evaluation.Encoder, test: Dataset) -> np.ndarray:
    """Returns probabilities `[images, classes]` of the clip under "a photo of a {}."."""
    scale = np.exp(np.asarray(encoder.clip.params["logit_scale"]))
    return np.asarray(jax.nn.softmax(scale * encoder.features(test) @ encoder.texts(test.class_names).T))


def probe(encoder: evaluation.Encoder, dataset: Dataset, test: Dataset) -> np.ndarray:
    """Returns probabilities `[images, classes]` of a linear probe on the images that the prompt learns from.

    Its strength is chosen on split "val", then it is fitted to "train" and "val".
    """
    strength, names = _STRENGTH, dataset.class_names
    parts = {split: dataset.take(np.flatnonzero(dataset.splits == split)) for split in ("train", "val")}
    labeled = {split: (encoder.features(part), part.labels) for split, part in parts.items() if len(part)}
    if "val" in labeled:
        chosen = evaluation.baselines.linear_probe().fit(
            encoder.clip, names, *labeled["train"], validation=labeled["val"]
        )
        strength = float(chosen["strength"])
    features, labels = (np.concatenate(each) for each in zip(*labeled.values(), strict=True))
    baseline = evaluation.baselines.linear_probe(strength)
    state = baseline.fit(encoder.clip, names, features, labels)
    return np.asarray(jax.nn.softmax(baseline.apply(state, encoder.clip, encoder.features(test))))


def write_predictions(path: Any, test: Dataset, predicted: dict[str, np.ndarray]) -> None:
    """Writes a row for every test image: its file, its class, and the class that each method predicts."""
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", "class", *(f"{name}{suffix}" for name in predicted for suffix in ("", "_probability"))])
        for row, (reference, label) in enumerate(zip(test.references, test.labels, strict=True)):
            cells = [
                cell
                for each in predicted.values()
                for cell in (test.class_names[each[row].argmax()], f"{each[row].max():.6f}")
            ]
            table.writerow([reference, test.class_names[label], *cells])


def store(workdir: Any, test: Dataset, predicted: dict[str, np.ndarray], seed: int) -> None:
    """Writes the predictions of every method to WORKDIR/predictions, which reports read."""
    from gram_jax.evaluation import measures, stored
    from gram_jax.evaluation.protocols import AllShots

    for name, each in predicted.items():
        labels, confidence = each.argmax(-1)[None], each.max(-1)[None]
        measured = [(evaluation.Part("all", None, test), evaluation.Predictions(labels, confidence))]
        file = f"{measures.file_name((name, test.name, AllShots.name, None))}.npz"
        with replacing(workdir / "predictions" / file) as part:
            stored.save_predictions(part, measured, seed=seed)


if __name__ == "__main__":
    launch(run, Config)
