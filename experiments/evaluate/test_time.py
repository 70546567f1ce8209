"""Test-time tuning in `experiments.evaluate`: a prompt for each test image, tuned on unlabeled views of it alone.

The methods are those of any protocol: the tuner from its words (TPT), and with a meta checkpoint the learned start and
the learned regulator, together and each alone. What a regulator and a structured start read of an image is the mean
frozen feature of its own views beside the mean text of the classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

import gram_jax as gram
from gram_jax import meta
from gram_jax import tuning as tuning_lib
from gram_jax.data import Dataset, augmented_views
from gram_jax.errors import InputError
from gram_jax.evaluation import Row
from gram_jax.evaluation import measures as _measures
from gram_jax.evaluation.measures import Outcome
from gram_jax.evaluation.protocols import TEST_TIME, Part, measured_parts

from . import presets as _presets
from .bench import PHOTO, Bench, regulator_contexts
from .methods import Candidate, Method

# What says how labeled images are learned from.
_LABELED = ("shots", "select_shots", "epochs", "batch_size", "momentum", "schedule", "augmentation", "aggregation")


def check(config: Any) -> None:
    """Raises InputError for settings that go not with test-time tuning, or with it alone."""
    if TEST_TIME not in config.protocol:
        if config.optimizer == "adamw":
            known = " or ".join(tuning_lib.step.OPTIMIZERS)
            raise InputError(f"--optimizer=adamw belongs to --protocol={TEST_TIME}; give {known}")
        return
    if config.protocol != (TEST_TIME,):
        raise InputError(
            f"--protocol={','.join(config.protocol)}: {TEST_TIME} tunes without labeled images, at rates and steps of "
            "its own; run it by itself, and put its results beside others with experiments.report"
        )
    if config.preset is not None:
        raise InputError(f"--preset={config.preset} is a recipe for labeled images, which {TEST_TIME} has none of")
    for name in ("regularizers", "regulator"):
        if value := getattr(config, name):
            raise InputError(
                f"--{name}={value if isinstance(value, str) else ','.join(value)}: {TEST_TIME} has one loss, the "
                "entropy of an image's views, and no regularizer or second gradient beside it; leave it out"
            )
    for name in _LABELED:
        if (value := getattr(config, name)) not in (None, (), _presets.PLAIN.get(name)):
            raise InputError(f"--{name}={value}: {TEST_TIME} tunes on one test image, without labels; leave it out")
    for name in ("save_prompts", "save_features"):
        if getattr(config, name):
            raise InputError(
                f"--{name}: under {TEST_TIME} every image has a prompt of its own, which is dropped with it"
            )
    if config.optimizer not in tuning_lib.test_time.OPTIMIZERS:
        known = " or ".join(tuning_lib.test_time.OPTIMIZERS)
        raise InputError(f"--optimizer={config.optimizer}: {TEST_TIME} takes {known}")
    if len(config.steps) > 1:
        raise InputError(f"--steps={','.join(map(str, config.steps))}: {TEST_TIME} takes one number of steps")
    if not 0 < config.test_time_share <= 1 or not tuning_lib.select_views(
        config.test_time_views, config.test_time_share
    ):
        raise InputError(
            f"--test_time_share={config.test_time_share:g} of --test_time_views={config.test_time_views} is less than "
            "one view, or more than all; give more views, or a share up to 1"
        )


def rows(
    bench: Bench, workdir: epath.Path, method: Method, candidate: Candidate, dataset: Dataset, parts: Sequence[Part]
) -> list[Row]:
    """The rows of a method on a dataset, before and after its steps; writes the files that are asked for."""
    config = bench.config
    by_step = {0: [], config.steps[0]: []}
    for part in parts:
        runs = list(_runs(bench, method, candidate, part, config.seeds))
        for step, outcomes in zip(by_step, zip(*runs, strict=True), strict=True):
            fields = (np.concatenate(field) for field in zip(*outcomes, strict=True))
            by_step[step].append((part, Outcome(*fields)))
    found: list[Row] = []
    for step, measured in by_step.items():
        metrics = _measures.asked_for(config.metrics if step else ())
        found += _measures.rows(method.name, TEST_TIME, dataset.name, measured, metrics, None, config.seeds, step)
    if config.save_confusion:
        file = _measures.file_name((method.name, dataset.name, TEST_TIME))
        _measures.save_confusion(workdir / "confusion" / f"{file}.npz", by_step[config.steps[0]])
    return found


def score_candidates(bench: Bench, method: Method, learnable: Dataset) -> list[float]:
    """The validation accuracy of every candidate on one dataset, which holds no test image."""
    scores = []
    for candidate in method.candidates:
        correct = []
        for part in measured_parts(bench.config, TEST_TIME, learnable, "val"):
            for _, after in _runs(bench, method, candidate, part, bench.config.select_seeds):
                correct.append(np.mean(after.predicted == part.dataset.labels))
        scores.append(float(np.mean(correct)))
    return scores


class Views:
    """The views of every image of a dataset, made when they are sliced, as the tuner takes them."""

    def __init__(self, bench: Bench, dataset: Dataset, seed: int):
        self._bench, self._dataset, self._seed = bench, dataset, seed

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, chunk: slice) -> np.ndarray:
        positions = range(len(self))[chunk]
        if not self._bench.tuner.needs_pixels:
            return np.stack([self.features(position) for position in positions])
        kept = self._name("views")
        stacks = [self._bench.keep(self._dataset, at, kept, lambda at=at: self._pixels(at)) for at in positions]
        return self._bench.clip.transform.normalize(np.stack(stacks))

    def features(self, position: int) -> np.ndarray:
        """The frozen features of the views of an image, `[views, embed_dim]`."""
        return self._bench.keep(self._dataset, position, self._name("features"), lambda: self._encoded(position))

    def _name(self, what: str) -> str:
        return f"{what} {self._seed} {self._bench.config.test_time_views}"

    def _pixels(self, position: int) -> np.ndarray:
        dataset, reference = self._dataset, self._dataset.references[position]
        return augmented_views(
            self._bench.clip.transform,
            dataset.read(reference),
            self._seed,
            dataset.item_number(position),
            self._bench.config.test_time_views,
            f"{dataset.name}, {reference}",
        )

    def _encoded(self, position: int) -> np.ndarray:
        clip, pixels = self._bench.clip, self._pixels(position)
        size = min(len(pixels), self._bench.config.image_batch)
        # Filled up, so that every call runs batches of the one compiled size.
        filled = np.pad(pixels, ((0, -len(pixels) % size), (0, 0), (0, 0), (0, 0)), mode="edge")
        blocks = (clip.transform.normalize(filled[at : at + size]) for at in range(0, len(filled), size))
        return np.concatenate([np.asarray(gram.encode_image(clip, block)) for block in blocks])[: len(pixels)]


def _runs(
    bench: Bench, method: Method, candidate: Candidate, part: Part, seeds: Sequence[int]
) -> Iterator[tuple[Outcome, Outcome]]:
    """For each seed of the views, what is predicted of a part before and after tuning, each `[1, images]`."""
    dataset, config = part.dataset, bench.config
    classes, valid = bench.classes(dataset.class_names)
    for seed in seeds:
        views, contexts = Views(bench, dataset, seed), None
        if method.reads_context or method.structured:
            text = bench.texts(dataset.class_names, PHOTO)
            contexts = np.stack([meta.task_context(bench.clip, views.features(i), text) for i in range(len(dataset))])

        def start(context: Any, seed: int = seed) -> Any:
            return candidate.start(jax.random.key(seed), bench.clip, classes, context)

        prompt = start(None)
        if method.structured:
            prompt = jax.tree.map(lambda *leaves: np.stack(leaves), *map(start, contexts))
        batch = {"classes": classes, "valid": valid, "views": views, "context": regulator_contexts(method, contexts)}
        found = tuning_lib.predict_test_time(
            method.tuning,
            prompt,
            method.phi,
            bench.clip,
            batch,
            candidate.learning_rate,
            own=method.structured,
            batch_size=config.test_time_batch,
        )
        if not np.all(np.isfinite(found.losses)) or not np.all(np.isfinite(found.logits)):
            raise InputError(
                f"test-time tuning of {method.name} on {dataset.name} is not finite at the views of seed {seed}; lower "
                "its learning rate"
            )
        yield _measures.outcome(found.initial_logits[None]), _measures.outcome(found.logits[None])
