"""The encoder: a frozen clip that reads, transforms, augments and encodes each image and each class name once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gram_jax import runtime
from gram_jax.batching import map_batches, pad_to
from gram_jax.clip import Clip, ImageTransform, encode_image
from gram_jax.data import Dataset, FeatureBank, augmented_view, augmented_views, open_bank
from gram_jax.data.augmentation import SCALE
from gram_jax.errors import InputError, require_int
from gram_jax.evaluation.features import averaged_class_features, class_features
from gram_jax.io import PathLike
from gram_jax.tuners import Tuner
from gram_jax.tuning import pad_classes
from gram_jax.tuning.batches import CLASS_MULTIPLE

PHOTO = "a photo of a {}."
PIXEL_BYTES = 2 << 30  # transformed images are kept up to this many bytes; the rest is read again
STORED_SEED = 0  # the seed of stored views, which the runs of all seeds share


class Encoder:
    """A frozen clip with a memory: features, transformed pixels and views of images, and features of class names.

    Pass one encoder to several calls of `gram_jax.evaluation.evaluate` to encode the images of a dataset once.

    Args:
      clip: the frozen clip.
      batch_size: images that the image transformer sees at once.
      shard_classes: whether class lists are spread over the devices of this process.
      store: a local folder that keeps image features for later runs; None keeps them in memory only.
      separate: keep features of other weights, transforms or images in stores of their own, instead of refusing them.
      log: is called with lines of text, such as the memory that a step needs; None drops them.

    Example:
      >>> from gram_jax.data import load_dataset
      >>> from gram_jax.testing import tiny_clip
      >>> encoder = Encoder(tiny_clip(), batch_size=8)
      >>> encoder.features(load_dataset("glyphs:chess").take([3, 5])).shape
      (2, 16)
    """

    def __init__(
        self,
        clip: Clip,
        batch_size: int = 64,
        *,
        shard_classes: bool = False,
        store: PathLike | None = None,
        separate: bool = False,
        log: Callable[[str], None] | None = None,
    ):
        require_int("batch_size", batch_size)
        devices = jax.local_devices() if shard_classes else jax.local_devices()[:1]
        if CLASS_MULTIPLE % len(devices):
            raise InputError(
                f"shard_classes: class lists are filled up to a multiple of {CLASS_MULTIPLE}, which {len(devices)} "
                "devices cannot share evenly; show fewer of them to this process"
            )
        self._mesh = runtime.make_mesh("classes", devices) if shard_classes else None
        self.clip, self.batch_size, self.devices = self.place(clip), batch_size, len(devices)
        self.log = log or (lambda line: None)
        self._store, self._separate = store, separate
        self._whole: dict[str, Dataset] = {}
        self._banks: dict[tuple[str, int], FeatureBank] = {}
        self._kept: dict[tuple[str, str, str], np.ndarray] = {}
        self._room = PIXEL_BYTES
        self._classes: dict[Any, tuple[Any, np.ndarray]] = {}
        self._texts: dict[Any, np.ndarray] = {}
        self._announced: dict[str, int] = {}

    def add(self, dataset: Dataset) -> None:
        """Announces a whole dataset, so that its parts share features; opens its store, or raises StoreError."""
        known = self._whole.get(dataset.name)
        if known is None or (known is not dataset and known.content_hash != dataset.content_hash):
            self._whole[dataset.name] = dataset
            self._banks = {key: bank for key, bank in self._banks.items() if key[0] != dataset.name}
            self._bank(dataset, 0)

    def features(self, dataset: Dataset) -> np.ndarray:
        """Returns frozen features of all images of a dataset, or of a part of one, `[images, embed_dim]`."""
        bank, positions = self._bank(dataset, 0)
        pixels = _Pixels(self.clip.transform, bank.source, self._transformed)
        return bank.rows(positions, self._encode, self.batch_size, read=pixels.__getitem__, log=self.log)

    def inputs(self, tuner: Tuner, dataset: Dataset) -> Any:
        """Returns the images in the form that the tuner requires: features, or a lazy sequence of pixels."""
        if not tuner.needs_pixels:
            return self.features(dataset)

        def kept(dataset: Dataset, position: int) -> np.ndarray:
            return self.keep(dataset, position, "as it is", lambda: self._transformed(dataset, position))

        return _Pixels(self.clip.transform, dataset, kept)

    def keep(self, dataset: Dataset, position: int, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Returns an array that is made of an image, from memory if it is there; keeps it if there is room."""
        key = dataset.name, json.dumps(dataset.references[position]), name
        if key in self._kept:
            return self._kept[key]
        if (array := make()).nbytes <= self._room:
            self._kept[key] = array
            self._room -= array.nbytes
        return array

    def views(self, dataset: Dataset, shown: Sequence[tuple[int, int, int]], keep: bool = False) -> np.ndarray:
        """Returns augmented views, normalized, ``[views, height, width, 3]``.

        `shown` holds the position of the image, the seed and the number of each view; `keep` keeps them in memory.
        """

        def draw(item: int, seed: int, number: int) -> np.ndarray:
            image, name = _read(dataset, item)
            return augmented_view(self.clip.transform, image, seed, dataset.item_number(item), number, name)

        def kept(item: int, seed: int, number: int) -> np.ndarray:
            return self.keep(dataset, item, f"view {seed} {number}", lambda: draw(item, seed, number))

        return self.clip.transform.normalize(np.stack([(kept if keep else draw)(*each) for each in shown]))

    def view_features(self, dataset: Dataset, count: int) -> np.ndarray:
        """Returns the features of the stored views of every image, `[images, views, embed_dim]`."""
        bank, positions = self._bank(dataset, count)

        def read(positions: np.ndarray) -> np.ndarray:
            shown = [(item, STORED_SEED, number) for item in positions.tolist() for number in range(count)]
            return self.views(bank.source, shown)

        def encode(views: np.ndarray) -> np.ndarray:
            return np.asarray(self._encode(views)).reshape(len(views) // count, count, -1)

        return bank.rows(positions, encode, max(1, self.batch_size // count), read=read, log=self.log)

    def augmented_features(
        self, dataset: Dataset, count: int, seed: int, scale: tuple[float, float] = SCALE
    ) -> np.ndarray:
        """Returns features of `count` augmented views of every image, not normalized, `[images, views, embed_dim]`.

        `scale` is the share of the image's area that a view shows.
        """

        def draw(item: int, number: int) -> np.ndarray:
            image, name = _read(dataset, item)
            number_of_item = dataset.item_number(item)
            return augmented_view(self.clip.transform, image, seed, number_of_item, number, name, scale)

        shown = [(item, number) for item in range(len(dataset)) for number in range(count)]
        chunks = [shown[begin : begin + self.batch_size] for begin in range(0, len(shown), self.batch_size)]
        parts = []
        for chunk in chunks:  # padded, so that one compiled program serves all of them
            pixels = pad_to(np.stack([draw(*each) for each in chunk]), self.batch_size)
            features = encode_image(self.clip, self.clip.transform.normalize(pixels), normalize=False)
            parts.append(np.asarray(features)[: len(chunk)])
        return np.concatenate(parts).reshape(len(dataset), count, -1)

    def test_views(self, dataset: Dataset, position: int, seed: int, count: int) -> np.ndarray:
        """Returns a test image and views of it, uint8 ``[count, height, width, 3]``."""
        image, name = _read(dataset, position)
        return augmented_views(self.clip.transform, image, seed, dataset.item_number(position), count, name)

    def test_view_features(self, dataset: Dataset, position: int, seed: int, count: int) -> np.ndarray:
        """Returns the frozen features of `test_views`, `[count, embed_dim]`."""

        def make() -> np.ndarray:
            pixels = self.test_views(dataset, position, seed, count)
            size = min(count, self.batch_size)
            return map_batches(lambda each: encode_image(self.clip, self.clip.transform.normalize(each)), pixels, size)

        return self.keep(dataset, position, f"features {seed} {count}", make)

    def texts(self, names: Sequence[str], templates: str | Sequence[str] = PHOTO) -> np.ndarray:
        """Returns frozen text features of classes, `[classes, embed_dim]`; several templates are averaged first."""
        key = tuple(names), templates if isinstance(templates, str) else tuple(templates)
        if key not in self._texts:
            if isinstance(templates, str):
                self._texts[key] = np.asarray(class_features(self.clip, names, [templates]))
            else:
                self._texts[key] = averaged_class_features(self.clip, names, templates)
        return self._texts[key]

    def classes(self, tuner: Tuner, names: tuple[str, ...], template: str = PHOTO) -> tuple[Any, np.ndarray]:
        """Returns classes in the form that the tuner requires, padded to a shared shape; see `pad_classes`.

        The template, that of the dataset, counts for tuners that read it.
        """
        template = template if tuner.reads_template else PHOTO
        key = tuner.init, tuple(names), template
        if key not in self._classes:
            if tuner.needs_names:
                classes: Any = self.clip.class_tokens(list(names), template, allow_duplicates=True)
            else:
                classes = self.texts(names)
            shapes = jax.eval_shape(lambda key: tuner.init(key, self.clip, classes), jax.random.key(0))
            padded, valid = pad_classes(self.clip, classes, shapes, self.devices)
            self._classes[key] = self.place(padded, "classes"), valid
        return self._classes[key]

    def place(self, tree: Any, *axes: str) -> Any:
        """Returns arrays on all devices, whole or with their first axis spread, if classes are spread over devices."""
        return tree if self._mesh is None else jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec(*axes)))

    def announce(self, name: str, where: str, needed: int) -> None:
        """Logs the memory that a step needs, if it is more than an earlier step of the same name needed."""
        if needed > self._announced.get(name, 0):
            self._announced[name] = needed
            self.log(f"{name}, {where}: {runtime.memory_line(needed, self.devices, runtime.available_memory())}")

    def _encode(self, pixels: np.ndarray) -> jax.Array:
        return encode_image(self.clip, jax.device_put(pixels))

    def _transformed(self, dataset: Dataset, position: int) -> np.ndarray:
        return self.clip.transform.pixels(*_read(dataset, position))

    def _bank(self, part: Dataset, views: int) -> tuple[FeatureBank, np.ndarray]:
        """Returns the features of the dataset that a part belongs to, and the positions of the part."""
        key, whole = (part.name, views), self._whole.get(part.name)
        if whole is not None and key not in self._banks:
            self._banks[key] = open_bank(
                self.clip, whole, self._store, views=views, view_seed=STORED_SEED, separate=self._separate
            )
        try:
            return self._banks[key], self._banks[key].positions(part)
        except KeyError:  # a dataset that was not added, or another part of it
            self._banks[key] = open_bank(self.clip, part, views=views)
            return self._banks[key], np.arange(len(part))


def view_numbers(seed: int, order: np.ndarray, count: int, stored: int) -> np.ndarray:
    """Returns the number of the view that each place of each batch shows, int ``[steps, batch]``.

    A fresh view has the number of times that its item was shown before, so no view comes twice. One of several stored
    views is random; with ``stored=0``, views are fresh. `order` holds the items of every batch, of `count` in all.
    """
    if stored:
        return np.random.default_rng((seed, stored)).integers(stored, size=order.shape)
    seen, numbers = np.zeros(count, np.int64), np.empty_like(order)
    for place, item in np.ndenumerate(order):
        numbers[place] = seen[item]
        seen[item] += 1
    return numbers


def training_images(
    encoder: Encoder,
    tuner: Tuner,
    support: Dataset,
    order: np.ndarray,
    seed: int,
    *,
    augmentation: str = "none",
    stored: int = 8,
    frozen: bool = False,
) -> Iterator[tuple[Any, Any]]:
    """Yields the images of every step of one run, from its labeled images and the items of batches `[steps, batch]`.

    For each step, images ``[batch, ...]`` as the tuner requires, and frozen features ``[batch, embed_dim]``; None if
    these are not wanted (`frozen`), or if the images are features already. `augmentation` is one of
    `choices.AUGMENTATIONS`, and `stored` the number of views with "stored".
    """
    pixels, keep = tuner.needs_pixels, augmentation == "stored"
    encoded = frozen or not pixels  # whether features are needed
    if augmentation == "none":
        images, features = encoder.inputs(tuner, support), encoder.features(support) if encoded else None
        for items in order:
            yield images[items], features[items] if features is not None and pixels else None
        return
    numbers = view_numbers(seed, order, len(support), stored if keep else 0)
    features = encoder.view_features(support, stored) if keep and encoded else None
    for items, views in zip(order, numbers, strict=True):
        known = None if features is None else features[items, views]
        if pixels or known is None:
            seeds = np.full(len(items), STORED_SEED if keep else seed)
            images = encoder.views(support, np.stack([items, seeds, views], axis=1).tolist(), keep)
        if encoded and known is None:
            known = encode_image(encoder.clip, images)
        yield (images, known) if pixels else (known, None)


class _Pixels:
    """Images that are read, transformed and normalized when they are sliced."""

    def __init__(self, transform: ImageTransform, dataset: Dataset, read: Callable[[Dataset, int], np.ndarray]):
        self._transform, self._dataset, self._read = transform, dataset, read

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        positions, place = np.unique(np.arange(len(self))[index], return_inverse=True)  # reads repeated images once
        pixels = [self._read(self._dataset, position) for position in positions.tolist()]
        if len(sizes := sorted({each.shape[:2] for each in pixels})) > 1:
            raise InputError(
                f"images of {self._dataset.name} have the sizes {sizes[0]} and {sizes[1]} after the transform; set "
                "ImageTransform.crop"
            )
        return self._transform.normalize(np.stack(pixels)[place])


def _read(dataset: Dataset, position: int) -> tuple[Any, str]:
    """Returns an image and its name in messages."""
    reference = dataset.references[position]
    return dataset.read(reference), f"{dataset.name}, {reference}"
