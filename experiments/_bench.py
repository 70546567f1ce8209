"""What `experiments.evaluate` measures with: frozen features, the parts of datasets, tuning, accuracies, scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import _methods
from gram_jax import evaluation, tuners
from gram_jax.clip import Clip
from gram_jax.data import Dataset, base_and_new, restrict

PHOTO = "a photo of a {}."
FEATURE_BATCH = 4096  # frozen image features that are classified at once


class Part(NamedTuple):
    """Images that prompts are measured on, among their own classes; the domain is None where prompts are tuned."""

    split: str
    domain: str | None
    dataset: Dataset


class Pixels:
    """Images that are transformed when they are sliced."""

    def __init__(self, clip: Clip, images: Sequence[Any]):
        self._clip, self._images = clip, images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        positions = np.arange(len(self))[index]
        return self._clip.preprocess([self._images[position] for position in positions])


class Bench:
    """The clip and what it says without a prompt, computed once for everything that is measured."""

    def __init__(self, config: Any, clip: Clip, tuner: tuners.Tuner):
        self.config, self.clip, self.tuner = config, clip, tuner
        self._features: dict[tuple[str, str], np.ndarray] = {}
        self._images: dict[tuple[str, str], Any] = {}
        self._classes: dict[tuple[str, ...], Any] = {}
        self._texts: dict[Any, np.ndarray] = {}

    def features(self, dataset: Dataset) -> np.ndarray:
        """Frozen features of all images of a dataset, `[images, embed_dim]`."""
        keys = [(dataset.name, json.dumps(reference)) for reference in dataset.references]
        missing = [i for i, key in enumerate(keys) if key not in self._features]
        if missing:
            # Filled up, so that every call runs batches of the one compiled size.
            filled = missing + missing[-1:] * (-len(missing) % self.config.image_batch)
            found = evaluation.image_features(self.clip, self._read(dataset, keys, filled), self.config.image_batch)
            self._features.update((keys[i], feature) for i, feature in zip(missing, found, strict=False))
        return np.stack([self._features[key] for key in keys])

    def inputs(self, dataset: Dataset) -> np.ndarray | Pixels:
        """The images of a dataset as the tuner takes them."""
        if not self.tuner.needs_pixels:
            return self.features(dataset)
        keys = [(dataset.name, json.dumps(reference)) for reference in dataset.references]
        return Pixels(self.clip, self._read(dataset, keys, range(len(keys))))

    def texts(self, names: tuple[str, ...], template: str) -> np.ndarray:
        """Frozen text features of classes, `[classes, embed_dim]`."""
        if (names, template) not in self._texts:
            self._texts[names, template] = np.asarray(evaluation.class_features(self.clip, names, [template]))
        return self._texts[names, template]

    def classes(self, names: tuple[str, ...]) -> tuple[Any, np.ndarray]:
        """Classes as the tuner takes them, filled up to a shape that other class lists share."""
        if names not in self._classes:
            found = self.clip.class_tokens(list(names)) if self.tuner.needs_names else self.texts(names, PHOTO)
            shapes = jax.eval_shape(lambda key: self.tuner.init(key, self.clip, found), jax.random.key(0))
            self._classes[names] = evaluation.pad_classes(self.clip, found, shapes)
        return self._classes[names]

    def _read(self, dataset: Dataset, keys: Sequence[tuple[str, str]], positions: Sequence[int]) -> list[Any]:
        if not self.tuner.needs_pixels:  # features are kept, and nothing reads the image again
            return dataset.images(positions)
        for position in positions:
            if keys[position] not in self._images:
                self._images[keys[position]] = dataset.images([position])[0]
        return [self._images[keys[position]] for position in positions]


def class_splits(protocol: str, dataset: Dataset) -> dict[str, np.ndarray]:
    """The class lists of a protocol, by the name that results show; the first is the one that is tuned on."""
    if protocol == "few_shot":
        return {"all": np.arange(len(dataset.class_names))}
    return dict(zip(("base", "new"), base_and_new(len(dataset.class_names)), strict=True))


def without_test(dataset: Dataset) -> Dataset:
    """The training and validation images: all that tuning and selection are given."""
    return dataset.take(np.flatnonzero(dataset.splits != "test"))


def measured_parts(config: Any, protocol: str, dataset: Dataset, split: str, shifted: Sequence[Dataset]) -> list[Part]:
    """The images of a split, by the protocol's class lists, in the dataset's own domain and in others."""
    parts = []
    domains = {None: dataset} | {other.domain: other for other in shifted if protocol == "few_shot"}
    for name, labels in class_splits(protocol, dataset).items():
        for domain, found in domains.items():
            positions = found.select(split)
            if config.max_test_images:
                kept = [positions[found.labels[positions] == label] for label in range(len(found.class_names))]
                positions = np.concatenate([of_class[: config.max_test_images] for of_class in kept])
            parts.append(Part(name, domain, restrict(found.take(positions), labels)))
    return parts


def tune(
    bench: Bench,
    method: _methods.Method,
    candidate: _methods.Candidate,
    learnable: Dataset,
    protocol: str,
    shots: int,
    seeds: Sequence[int],
    report: Sequence[int],
) -> evaluation.Tuned:
    """Tunes one prompt for each seed, side by side, on its own draw from the training split."""
    labels = next(iter(class_splits(protocol, learnable).values()))
    drawn = [learnable.take(evaluation.few_shot(learnable, shots, seed)) for seed in seeds]
    supports = [restrict(support, labels) for support in drawn]
    names = supports[0].class_names
    classes, valid = bench.classes(names)
    starts = [candidate.start(jax.random.key(seed), bench.clip, classes) for seed in seeds]
    prompts = jax.tree.map(lambda *leaves: np.stack(leaves), *starts)
    context = None
    if method.reads_context:
        text = bench.texts(names, PHOTO)
        context = np.stack([evaluation.task_context(bench.clip, bench.features(s), text) for s in supports])
    inputs, size = [bench.inputs(support) for support in supports], bench.config.batch_size
    orders = [evaluation.batches(s, len(d), size, candidate.steps) for s, d in zip(seeds, supports, strict=True)]
    shared = jax.device_put({"classes": classes, "valid": valid, "context": context})

    def batches() -> Iterator[dict[str, Any]]:
        for positions in zip(*orders, strict=True):
            yield shared | {
                "images": np.stack([own[at] for own, at in zip(inputs, positions, strict=True)]),
                "labels": np.stack([own.labels[at] for own, at in zip(supports, positions, strict=True)]),
            }

    return evaluation.tune(
        method.tuning,
        prompts,
        method.phi,
        bench.clip,
        batches(),
        candidate.learning_rate,
        total_steps=candidate.steps,
        report=report,
    )


def accuracies(bench: Bench, tuning: evaluation.Tuning, prompts: Any, parts: Sequence[Part]) -> list[np.ndarray]:
    """The accuracy of each run on each part, `[runs]` a part; class texts are encoded once for all domains."""
    found: dict[int, np.ndarray] = {}
    batch_size = bench.config.image_batch if bench.tuner.needs_pixels else FEATURE_BATCH
    for names in dict.fromkeys(part.dataset.class_names for part in parts):
        members = [i for i, part in enumerate(parts) if part.dataset.class_names == names]
        inputs = [bench.inputs(parts[i].dataset) for i in members]
        together = [np.concatenate(inputs)] if not bench.tuner.needs_pixels else inputs
        predicted = np.concatenate(
            [
                evaluation.predict(tuning, prompts, bench.clip, *bench.classes(names), own, batch_size=batch_size)
                .argmax(-1)
                for own in together
            ],
            axis=1,
        )  # fmt: skip
        ends = np.cumsum([len(parts[i].dataset) for i in members])
        for i, own in zip(members, np.split(predicted, ends[:-1], axis=1), strict=True):
            found[i] = np.mean(own == parts[i].dataset.labels, axis=1)
    return [found[i] for i in range(len(parts))]


def score_candidates(bench: Bench, method: _methods.Method, learnable: Dataset) -> list[float]:
    """The validation score of every candidate on one dataset, which holds no test image.

    The score is H of base and new classes, or few-shot accuracy where base-to-new is not measured, averaged over
    shots and over seeds that are used for nothing else.
    """
    config = bench.config
    protocol = "base_to_new" if "base_to_new" in config.protocol else "few_shot"
    parts = measured_parts(config, protocol, learnable, "val", ())
    scores: dict[int, list[float]] = {i: [] for i in range(len(method.candidates))}
    # Under a constant rate, a shorter run is the beginning of a longer one.
    groups: dict[Any, list[int]] = {}
    for i, candidate in enumerate(method.candidates):
        described = {k: v for k, v in candidate.described.items() if k != "steps" or config.schedule != "constant"}
        groups.setdefault(tuple(described.items()), []).append(i)
    for shots in config.select_shots or config.shots:
        for members in groups.values():
            longest = max((method.candidates[i] for i in members), key=lambda candidate: candidate.steps)
            report = [method.candidates[i].steps for i in members]
            tuned = tune(bench, method, longest, learnable, protocol, shots, config.select_seeds, report)
            for i in members:
                found = accuracies(bench, method.tuning, tuned.prompts[method.candidates[i].steps], parts)
                score = found[0] if len(found) == 1 else evaluation.harmonic_mean(*found)
                scores[i].append(float(np.mean(score)))
    return [float(np.mean(scores[i])) for i in range(len(method.candidates))]
