"""The images of every step of a run, as they are or as augmented views, and what a loss holds prompts against."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

import gram_jax as gram
from gram_jax import objectives
from gram_jax import tuning as tuning_lib
from gram_jax.clip import Clip
from gram_jax.data import Dataset, augmented_view, coop, templates

if TYPE_CHECKING:
    from .bench import Bench

AUGMENTATIONS = ("none", "fresh", "stored")
STORED_SEED = 0  # of views that are kept: the runs of all seeds share them
# Regularizers whose reference text is the mean of many templates. The others use the dataset's own template, or the
# template that their public code has for the dataset (`CoopDataset.loss_templates`).
_ENSEMBLES = {"promptsrc": "promptsrc_60", "prometar": "promptsrc_60"}
_TEXTS, _TOKENS = 256, 8  # texts run in blocks of so many, padded to a multiple of so many tokens


class Pixels:
    """Images that are read and transformed when they are sliced."""

    def __init__(self, bench: Bench, dataset: Dataset):
        self._bench, self._dataset = bench, dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        positions = np.arange(len(self))[index].tolist()
        pixels = np.stack([self._bench.pixels(self._dataset, position) for position in positions])
        return self._bench.clip.transform.normalize(pixels)


def view_numbers(seed: int, order: np.ndarray, count: int, kept: int) -> np.ndarray:
    """Which view each place of each batch shows, int ``[steps, batch]``.

    Args:
      seed: the seed of the run.
      order: the items of every batch ``[steps, batch]``.
      count: the number of items.
      kept: how many views are kept; 0 for fresh ones.

    Returns:
      Of fresh views, how often the item was shown before: no view comes twice. Of views that are kept, a random one.
    """
    if kept:
        return np.random.default_rng((seed, kept)).integers(kept, size=order.shape)
    seen, numbers = np.zeros(count, np.int64), np.empty_like(order)
    for step, items in enumerate(order):
        for place, item in enumerate(items):
            numbers[step, place] = seen[item]
            seen[item] += 1
    return numbers


def run_inputs(bench: Bench, support: Dataset, order: np.ndarray, seed: int) -> Iterator[Any]:
    """The images of every step of one run, as the tuner takes them.

    Args:
      bench: what reads and encodes images.
      support: the labeled images of the run.
      order: the items of every batch ``[steps, batch]``.
      seed: the seed of the run.

    Yields:
      ``[batch, ...]``, features or pixels, step after step.
    """
    kept = _kept_views(bench)
    if kept is None:
        whole = bench.inputs(support)
        for items in order:
            yield whole[items]
        return
    numbers = view_numbers(seed, order, len(support), kept)
    if kept and not bench.tuner.needs_pixels:
        bank = _stored_features(bench, support, kept)
        for items, views in zip(order, numbers, strict=True):
            yield bank[items, views]
        return
    for items, views in zip(order, numbers, strict=True):
        shown = [(item, STORED_SEED if kept else seed, number) for item, number in zip(items, views, strict=True)]
        pixels = _views(bench, support, shown, keep=bool(kept))
        yield pixels if bench.tuner.needs_pixels else gram.encode_image(bench.clip, pixels)


def run_pairs(bench: Bench, support: Dataset, order: np.ndarray, seed: int, frozen: bool) -> Iterator[Any]:
    """What `run_inputs` yields, each with the frozen features of the same images, ``[batch, embed_dim]``.

    Args:
      bench: what reads and encodes images.
      support: the labeled images of the run.
      order: the items of every batch ``[steps, batch]``.
      seed: the seed of the run.
      frozen: whether features are wanted; None stands for them if not, and where the images are features already.

    Yields:
      Pairs, step after step.
    """
    kept = _kept_views(bench)
    frozen = frozen and bench.tuner.needs_pixels
    bank = None
    if frozen and kept is None:
        bank = bench.features(support)[:, None]
        numbers = np.zeros_like(order)
    elif frozen and kept:
        bank = _stored_features(bench, support, kept)
        numbers = view_numbers(seed, order, len(support), kept)
    for step, images in enumerate(run_inputs(bench, support, order, seed)):
        if bank is not None:
            yield images, bank[order[step], numbers[step]]
        else:
            yield images, gram.encode_image(bench.clip, images) if frozen else None


def templates_of(name: str, dataset: Dataset) -> tuple[str, ...]:
    """The templates whose text a regularizer holds the classes of a dataset to."""
    if name in _ENSEMBLES:
        return templates.ensemble(_ENSEMBLES[name])
    facts = coop.facts(dataset.name)
    return (facts.loss_templates.get(name, dataset.template) if facts else dataset.template,)


def class_reference(bench: Bench, dataset: Dataset, loss: objectives.BatchLoss) -> dict[str, Any]:
    """What a loss reads of the classes of a dataset, filled up to the shape that other class lists share.

    Args:
      bench: what encodes texts, each once.
      dataset: the labeled images; their classes are those that are tuned on.
      loss: the loss.

    Returns:
      "text_features" by regularizer and "clusters", as far as they are read.
    """
    names = dataset.class_names
    texts = {}
    for name in loss.texts:
        own = templates_of(name, dataset)
        texts[name] = bench.texts(names, own[0]) if len(own) == 1 else bench.diverse_texts(names, own)
    found: dict[str, Any] = {"text_features": {n: tuning_lib.pad_classes(bench.clip, t)[0] for n, t in texts.items()}}
    if "clusters" in loss.reads:
        clusters = objectives.class_clusters(bench.texts(names, dataset.template))
        found["clusters"] = tuning_lib.pad_classes(bench.clip, clusters)[0]
    return found


def class_counts(support: Dataset, size: int) -> np.ndarray:
    """The labeled images of each class, ``[size]``; 0 for classes that only fill up the shape."""
    return np.bincount(support.labels, minlength=size).astype(np.float32)


def diverse_texts(clip: Clip, names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """The features of classes under many templates, averaged before they are normalized, ``[classes, embed_dim]``."""
    found = [clip.class_tokens(list(names), each, allow_duplicates=True).token_ids for each in templates]
    width = min(-(-max(ids.shape[1] for ids in found) // _TOKENS) * _TOKENS, clip.config.text.context_length)
    eos = clip.tokenizer.eos_token_id  # what stands behind it cannot matter
    rows = np.concatenate([np.pad(ids, ((0, 0), (0, width - ids.shape[1])), constant_values=eos) for ids in found])
    filled = np.pad(rows, ((0, -len(rows) % _TEXTS), (0, 0)), mode="edge")
    blocks = [gram.encode_text(clip, filled[at : at + _TEXTS], normalize=False) for at in range(0, len(filled), _TEXTS)]
    features = np.concatenate([np.asarray(block) for block in blocks])[: len(rows)]
    return np.asarray(objectives.textual_diversity(features.reshape(len(templates), len(names), -1)))


def _kept_views(bench: Bench) -> int | None:
    """How many views of an image are kept: 0 where each is fresh, None without augmentation."""
    return {"none": None, "fresh": 0, "stored": bench.config.views}[bench.config.augmentation]


def _views(bench: Bench, support: Dataset, shown: Sequence[tuple[int, int, int]], keep: bool) -> np.ndarray:
    """Augmented views (item, seed, number), normalized, ``[views, height, width, 3]``."""

    def draw(item: int, seed: int, number: int) -> np.ndarray:
        reference = support.references[item]
        name = f"{support.name}, {reference}"
        image = support.read(reference)
        return augmented_view(bench.clip.transform, image, seed, support.item_number(item), number, name)

    found = []
    for item, seed, number in ((int(item), seed, int(number)) for item, seed, number in shown):
        make = functools.partial(draw, item, seed, number)
        found.append(bench.keep(support, item, f"view {seed} {number}", make) if keep else make())
    return bench.clip.transform.normalize(np.stack(found))


def _stored_features(bench: Bench, support: Dataset, kept: int) -> np.ndarray:
    """The features of the first views of every image, ``[images, views, embed_dim]``, computed once an image."""
    missing = [item for item in range(len(support)) if bench.key(support, item) not in bench.view_features]
    shown = [(item, STORED_SEED, number) for item in missing for number in range(kept)]
    size, found = bench.config.image_batch, []
    for start in range(0, len(shown), size):
        part = shown[start : start + size]
        filled = part + part[-1:] * (size - len(part))  # every call runs batches of the one compiled size
        features = gram.encode_image(bench.clip, _views(bench, support, filled, keep=False))
        found.append(np.asarray(features)[: len(part)])
    if found:
        each = np.concatenate(found).reshape(len(missing), kept, -1)
        bench.view_features |= {bench.key(support, item): own for item, own in zip(missing, each, strict=True)}
    return np.stack([bench.view_features[bench.key(support, item)] for item in range(len(support))])


def stacked(runs: Sequence[Any]) -> Any:
    """The images of all runs in one array, on the device where they already are there."""
    return (np if all(isinstance(each, np.ndarray) for each in runs) else jnp).stack(runs)
