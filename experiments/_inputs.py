"""The images of every step of a run: as they are, as fresh augmented views, or as views that are kept."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

import gram_jax as gram
from gram_jax.data import Dataset, view

if TYPE_CHECKING:
    from experiments._bench import Bench

AUGMENTATIONS = ("none", "fresh", "stored")
STORED_SEED = 0  # of views that are kept: the runs of all seeds share them


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


def item_number(dataset: Dataset, position: int) -> int:
    """What stands for an image where its views are drawn: the same number in every subset of a dataset."""
    text = json.dumps([dataset.name, dataset.references[position]])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "little")


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
      support: the labelled images of the run.
      order: the items of every batch ``[steps, batch]``.
      seed: the seed of the run.

    Yields:
      ``[batch, ...]``, features or pixels, step after step.
    """
    kept = {"none": None, "fresh": 0, "stored": bench.config.views}[bench.config.augmentation]
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


def _views(bench: Bench, support: Dataset, shown: Sequence[tuple[int, int, int]], keep: bool) -> np.ndarray:
    """Augmented views (item, seed, number), normalised, ``[views, height, width, 3]``."""

    def draw(item: int, seed: int, number: int) -> np.ndarray:
        reference = support.references[item]
        name = f"{support.name}, {reference}"
        image = support.read(reference)
        return view(bench.clip.transform, image, seed, item_number(support, item), number, name)

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
