"""What `experiments.evaluate` measures with: frozen features, pixels, tuning, predictions, scores."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gram_jax import evaluation, meta, objectives, runtime, tuners
from gram_jax import tuning as tuning_lib
from gram_jax.clip import Clip
from gram_jax.data import Dataset
from gram_jax.errors import InputError
from gram_jax.evaluation.measures import Outcome, key, outcome
from gram_jax.evaluation.protocols import Part, counts, measured_parts, selected_on, support
from gram_jax.tuning.batches import CLASS_MULTIPLE

from . import learning as _learning
from . import methods as _methods
from .inputs import Pixels, class_counts, class_reference, diverse_texts, run_pairs, stacked

PHOTO = "a photo of a {}."
FEATURE_BATCH = 4096  # frozen image features that are classified at once
PIXEL_BYTES = 2 << 30  # of transformed images, which are kept up to so many bytes and else read again


class Bench:
    """The clip and what it says without a prompt, computed once for everything that is measured."""

    def __init__(self, config: Any, clip: Clip, tuner: tuners.Tuner):
        self.config, self.tuner = config, tuner
        self._devices = len(jax.local_devices()) if config.shard_classes else 1
        if CLASS_MULTIPLE % self._devices:
            raise InputError(
                f"--shard_classes: class lists are filled up to a multiple of {CLASS_MULTIPLE}, which {self._devices} "
                "devices cannot share evenly; show fewer of them to this process"
            )
        self._mesh = runtime.make_mesh("classes", jax.local_devices()) if config.shard_classes else None
        self.clip = self.place(clip)
        self._announced: dict[str, int] = {}
        self._features: dict[tuple[str, str], np.ndarray] = {}
        self._pixels: dict[tuple[str, ...], np.ndarray] = {}
        self.view_features: dict[tuple[str, str], np.ndarray] = {}
        self._room = PIXEL_BYTES
        self.tuned: dict[tuple, tuning_lib.Tuned] = {}
        self._classes: dict[tuple[str, ...], Any] = {}
        self._texts: dict[Any, np.ndarray] = {}

    def features(self, dataset: Dataset) -> np.ndarray:
        """Frozen features of all images of a dataset, `[images, embed_dim]`."""
        keys = [self.key(dataset, position) for position in range(len(dataset))]
        missing = [i for i, key in enumerate(keys) if key not in self._features]
        if missing:
            # Filled up, so that every call runs batches of the one compiled size.
            filled = missing + missing[-1:] * (-len(missing) % self.config.image_batch)
            found = evaluation.image_features(self.clip, dataset.take(filled), self.config.image_batch)
            self._features.update((keys[i], feature) for i, feature in zip(missing, found, strict=False))
        return np.stack([self._features[key] for key in keys])

    def pixels(self, dataset: Dataset, position: int) -> np.ndarray:
        """An image, transformed but not normalized, uint8 `[height, width, 3]`."""
        reference = dataset.references[position]

        def read() -> np.ndarray:
            return self.clip.transform.pixels(dataset.read(reference), f"{dataset.name}, {reference}")

        return self.keep(dataset, position, "as it is", read)

    def keep(self, dataset: Dataset, position: int, what: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Something made of an image, kept as long as there is room."""
        key = *self.key(dataset, position), what
        if key in self._pixels:
            return self._pixels[key]
        found = make()
        if found.nbytes <= self._room:
            self._pixels[key] = found
            self._room -= found.nbytes
        return found

    def key(self, dataset: Dataset, position: int) -> tuple[str, str]:
        """What an image is known by."""
        return dataset.name, json.dumps(dataset.references[position])

    def inputs(self, dataset: Dataset) -> np.ndarray | Pixels:
        """The images of a dataset as the tuner takes them."""
        return Pixels(self, dataset) if self.tuner.needs_pixels else self.features(dataset)

    def texts(self, names: tuple[str, ...], template: str) -> np.ndarray:
        """Frozen text features of classes, `[classes, embed_dim]`."""
        if (names, template) not in self._texts:
            self._texts[names, template] = np.asarray(evaluation.class_features(self.clip, names, [template]))
        return self._texts[names, template]

    def diverse_texts(self, names: tuple[str, ...], templates: tuple[str, ...]) -> np.ndarray:
        """Frozen text features of classes under many templates at once, `[classes, embed_dim]`."""
        if (names, templates) not in self._texts:
            self._texts[names, templates] = diverse_texts(self.clip, names, templates)
        return self._texts[names, templates]

    def classes(self, names: tuple[str, ...]) -> tuple[Any, np.ndarray]:
        """Classes as the tuner takes them, filled up to a shape that other class lists share."""
        if names not in self._classes:
            found: Any = self.texts(names, PHOTO)
            if self.tuner.needs_names:
                found = self.clip.class_tokens(list(names), allow_duplicates=True)
            shapes = jax.eval_shape(lambda key: self.tuner.init(key, self.clip, found), jax.random.key(0))
            padded, valid = tuning_lib.pad_classes(self.clip, found, shapes)
            self._classes[names] = self.place(padded, "classes"), valid
        return self._classes[names]

    def place(self, tree: Any, *axes: str) -> Any:
        """Arrays on all devices, whole or with their first axis spread, where classes are spread over devices."""
        return tree if self._mesh is None else jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec(*axes)))

    def announce(self, name: str, lowered: jax.stages.Lowered, dataset: str, classes: int) -> None:
        """Says how much memory a step is going to take, where it is more than a step of this method took before."""
        needed = tuning_lib.memory_bytes(lowered.compile())  # compiled here, and not again when the step is taken
        if needed <= self._announced.get(name, 0):
            return
        self._announced[name] = needed
        line = runtime.memory_line(needed, self._devices, runtime.available_memory())
        print(f"{name}, {dataset}, {classes} classes: {line}", flush=True)


def tune(
    bench: Bench,
    method: _methods.Method,
    candidate: _methods.Candidate,
    learnable: Dataset,
    protocol: str,
    shots: int,
    seeds: Sequence[int],
    report: Sequence[int],
    measure_cost: bool = False,
) -> tuning_lib.Tuned:
    """Tunes one prompt for each seed, side by side, on its own draw from the training split."""
    supports = [support(learnable, protocol, shots, seed) for seed in seeds]
    names = supports[0].class_names
    classes, valid = bench.classes(names)
    context = None
    if method.reads_context or method.structured:
        context = task_contexts(bench, supports)
    own = context if method.structured else [None] * len(seeds)
    starts = [
        candidate.start(jax.random.key(seed), bench.clip, classes, each) for seed, each in zip(seeds, own, strict=True)
    ]
    prompts = jax.tree.map(lambda *leaves: np.stack(leaves), *starts)
    size, count = bench.config.batch_size, len(supports[0])
    weights = None
    if candidate.epochs is None:
        orders = [tuning_lib.shuffled_batches(seed, count, size, candidate.steps) for seed in seeds]
    else:
        epochs = candidate.epochs(learnable.name, shots)
        orders = [tuning_lib.epoch_batches(seed, count, size, epochs) for seed in seeds]
        if (bell := _methods.aggregation(bench.config, learnable.name)) is not None:
            weights = objectives.gaussian_weights(epochs, *bell)
    warmup = _learning.warmup(bench.config, learnable.name, starts[0])
    recipe = tuning_lib.Recipe(candidate.learning_rate, len(orders[0]), max(1, count // size), warmup, weights)
    phi = _learning.start(method.phi, seeds)
    shared = {"classes": classes, "valid": valid, "context": regulator_contexts(method, context)}
    own_reference, loss = {}, method.loss
    if loss is not None:
        shared["reference"] = class_reference(bench, supports[0], loss)
        if "counts" in loss.reads:
            own_reference["counts"] = np.stack([class_counts(own, len(valid)) for own in supports])
    shared, own_reference = jax.device_put((shared, own_reference))
    frozen = loss is not None and bool(loss.reads & {"image_features", "logits"})

    def batches() -> Iterator[dict[str, Any]]:
        runs = [run_pairs(bench, *run, frozen) for run in zip(supports, orders, seeds, strict=True)]
        for step, (positions, *pairs) in enumerate(zip(zip(*orders, strict=True), *runs, strict=True)):
            images, features = zip(*pairs, strict=True)
            known = {} if features[0] is None else {"image_features": stacked(features)}
            yield shared | {
                **_learning.step_data(bench.config, seeds, step, recipe.epoch_steps),
                "images": stacked(images),
                "labels": np.stack([own.labels[at] for own, at in zip(supports, positions, strict=True)]),
                "run_reference": own_reference | known,
            }

    # Kept on all devices from the first step on, so that the second one is of the same kind.
    tuning = method.tuning._replace(init=lambda *begun: bench.place(method.tuning.init(*begun)))
    source = batches()
    if (first := next(source, None)) is not None:
        state = tuning.init(prompts, phi)
        lowered = tuning.lower(state, phi, bench.clip, first, *recipe[:4])
        bench.announce(method.name, lowered, learnable.name, len(names))
        source = itertools.chain([first], source)
    return tuning_lib.tune(
        tuning,
        prompts,
        phi,
        bench.clip,
        source,
        recipe,
        report=[step for step in report if step <= len(orders[0])],
        measure_cost=measure_cost,
    )


def task_contexts(bench: Bench, supports: Sequence[Dataset]) -> np.ndarray:
    """What is known of tasks that share their classes, `[tasks, context_dim]`."""
    text = bench.texts(supports[0].class_names, PHOTO)
    return np.stack([meta.task_context(bench.clip, bench.features(each), text) for each in supports])


def followed(
    bench: Bench,
    candidate: _methods.Candidate,
    supports: Sequence[Dataset],
    prompts: Any,
) -> Callable[[tuple[str, ...]], Any]:
    """Of class names, tuned prompts, moved as their structured start moves when it is told these; no image is seen."""

    def starts(contexts: np.ndarray) -> Any:
        each = [candidate.start(jax.random.key(0), bench.clip, None, context) for context in contexts]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *each)

    here = task_contexts(bench, supports)
    begun = starts(here)

    def moved(names: tuple[str, ...]) -> Any:
        there = here.copy()
        there[:, here.shape[1] // 2 :] = bench.texts(names, PHOTO).mean(0)
        return jax.tree.map(lambda prompt, new, old: prompt + (new - old), prompts, starts(there), begun)

    return moved


def regulator_contexts(method: _methods.Method, contexts: np.ndarray | None) -> np.ndarray | None:
    """What a method's regulator reads of tasks whose contexts are `[tasks, context_dim]`; None if it reads nothing."""
    if not method.reads_context:
        return None
    if method.related is None:
        return contexts
    return np.stack([meta.relation(method.related, context) for context in contexts])


def outcomes(bench: Bench, tuning: tuning_lib.Tuning, prompts: Any, parts: Sequence[Part]) -> list[Outcome]:
    """What each run predicts on each part; class texts are encoded once for all parts of one class list."""
    found: dict[int, Outcome] = {}
    batch_size = bench.config.image_batch if bench.tuner.needs_pixels else FEATURE_BATCH
    for names in dict.fromkeys(part.dataset.class_names for part in parts):
        members = [i for i, part in enumerate(parts) if part.dataset.class_names == names]
        inputs = [bench.inputs(parts[i].dataset) for i in members]
        together = [np.concatenate(inputs)] if not bench.tuner.needs_pixels else inputs
        predicted = [
            evaluation.predict(
                tuning, prompts, bench.clip, *bench.classes(names), own, batch_size=batch_size, reduce=outcome
            )
            for own in together
        ]
        ends = np.cumsum([len(parts[i].dataset) for i in members])[:-1]
        pieces = [np.split(np.concatenate(field, axis=1), ends, axis=1) for field in zip(*predicted, strict=True)]
        found |= dict(zip(members, map(Outcome, *pieces), strict=True))
    return [found[i] for i in range(len(parts))]


def part_features(bench: Bench, prompt: Any, parts: Sequence[Part]) -> dict[str, np.ndarray]:
    """Image and text features of each part under one prompt, frozen ones without, with labels and class names."""
    arrays = {}
    for part in parts:
        dataset, names = part.dataset, part.dataset.class_names
        images, texts = bench.features(dataset), bench.texts(names, PHOTO)
        if prompt is not None:
            images, texts = evaluation.prompted_features(
                bench.tuner, prompt, bench.clip, *bench.classes(names), bench.inputs(dataset),
                batch_size=bench.config.image_batch,
            )  # fmt: skip
        arrays |= {key(part, "image_features"): images, key(part, "text_features"): texts}
        arrays |= {key(part, "labels"): dataset.labels, key(part, "class_names"): np.array(names)}
    return arrays


def accuracies(bench: Bench, tuning: tuning_lib.Tuning, prompts: Any, parts: Sequence[Part]) -> list[np.ndarray]:
    """The accuracy of each run on each part, `[runs]` a part."""
    found = zip(outcomes(bench, tuning, prompts, parts), parts, strict=True)
    return [np.mean(each.predicted == part.dataset.labels, axis=1) for each, part in found]


def score_candidates(bench: Bench, method: _methods.Method, learnable: Dataset) -> list[float]:
    """The validation score of every candidate on one dataset, which holds no test image.

    The score is H of base and new classes, or few-shot accuracy where only protocols that tune on all classes are
    measured, averaged over shots (or long tails) and over seeds that are used for nothing else.
    """
    config = bench.config
    scores: dict[int, list[float]] = {i: [] for i in range(len(method.candidates))}
    # Under a constant rate, a shorter run is the beginning of a longer one.
    groups: dict[Any, list[int]] = {}
    for i, candidate in enumerate(method.candidates):
        described = {k: v for k, v in candidate.described.items() if k != "steps" or config.schedule != "constant"}
        groups.setdefault(tuple(described.items()), []).append(i)
    for protocol in selected_on(config):
        parts = measured_parts(config, protocol, learnable, "val")
        for shots, members in itertools.product(counts(config, protocol, select=True), groups.values()):
            longest = max((method.candidates[i] for i in members), key=lambda candidate: candidate.steps)
            report = [method.candidates[i].steps for i in members if longest.epochs is None]
            tuned = tune(bench, method, longest, learnable, protocol, shots, config.select_seeds, report)
            for i in members:
                step = method.candidates[i].steps if longest.epochs is None else max(tuned.prompts)
                found = accuracies(bench, method.tuning, tuned.prompts[step], parts)
                score = found[0] if len(found) == 1 else evaluation.harmonic_mean(*found)
                scores[i].append(float(np.mean(score)))
    return [float(np.mean(scores[i])) for i in range(len(method.candidates))]
