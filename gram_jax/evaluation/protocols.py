"""The field's protocols: which classes and images prompts are tuned on, and which images they are tested on."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from gram_jax.data import Dataset, base_and_new, restrict
from gram_jax.errors import InputError, nearest, require_int
from gram_jax.evaluation import draws

THIRDS = ("head", "middle", "tail")


class Part(NamedTuple):
    """Test images, classified among their own classes.

    `split` is the name of their class list in rows, such as "all" or "new"; `domain` that of the domain or dataset,
    None for the dataset that prompts are tuned on.
    """

    split: str
    domain: str | None
    dataset: Dataset


class Protocol:
    """Defines the classes and images that prompts are tuned on and tested on.

    Subclass it for a protocol of your own: give it a `name`, and override `splits` (the class lists), `draw` (the
    labeled images) or both. An instance can be passed to `gram_jax.evaluation.evaluate`.

    Attributes:
      name: the name in rows.
      elsewhere: what is tested besides the dataset: "domains" (its shifted versions), "datasets" or "" (nothing).
      transfer: whether prompts are tuned on source datasets only, to be tested elsewhere.
      has_new: whether the class lists are "base", which is tuned on, and "new".
      takes_labels: whether methods learn from labeled images.
      tuned_on: protocols with the same text tune on the same images, and share tuned prompts.
      take_all: whether all images of a class with fewer images than shots are taken, instead of an error.

    Example:
      >>> class EverySecondClass(Protocol):
      ...     name = "every_second_class"
      ...     def splits(self, dataset):
      ...         return {"even": np.arange(0, len(dataset.class_names), 2)}
      >>> from gram_jax.data import glyphs
      >>> EverySecondClass().support(glyphs.labeled("chess"), shots=2, seed=1).class_names[:2]
      ('white king', 'white rook')
    """

    name: str = ""
    elsewhere: ClassVar[str] = ""
    transfer: ClassVar[bool] = False
    has_new: ClassVar[bool] = False
    takes_labels: ClassVar[bool] = True
    tuned_on: ClassVar[str] = ""
    take_all: bool = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def splits(self, dataset: Dataset) -> dict[str, np.ndarray]:
        """Returns the labels of each class list, by its name in rows; the first list is tuned on."""
        return {"all": np.arange(len(dataset.class_names))}

    def draw(self, dataset: Dataset, shots: int, seed: int) -> np.ndarray:
        """Returns the positions of the labeled images; images of classes that are not tuned on are dropped later."""
        return draws.few_shot(dataset, shots, seed, take_all=self.take_all)

    def counts(self, shots: Sequence[int]) -> tuple[int | None, ...]:
        """Returns the numbers of labeled images per class that the protocol runs with, of those asked for."""
        return tuple(shots)

    def support(self, dataset: Dataset, shots: int, seed: int) -> Dataset:
        """Returns the labeled images of a run: drawn from all classes, then restricted and relabeled, as CoOp does."""
        return restrict(dataset.take(self.draw(dataset, shots, seed)), self._tuned_labels(dataset))

    def validation(self, dataset: Dataset, shots: int, seed: int) -> Dataset:
        """Returns the validation images that belong to a draw: min(shots, 4) per class, see `few_shot_and_val`."""
        return restrict(dataset.take(self._draw_val(dataset, shots, seed)), self._tuned_labels(dataset))

    def _draw_val(self, dataset: Dataset, shots: int, seed: int) -> np.ndarray:
        return draws.few_shot_and_val(dataset, shots, seed, take_all=self.take_all)[1]

    def taking_all(self) -> Protocol:
        """Returns the protocol that takes all images of a class with fewer images than shots, as Dassl does."""
        other = copy.copy(self)
        other.take_all = True
        return other

    def targets(self, datasets: Iterable[Dataset]) -> dict[str, Dataset]:
        """Returns datasets by the domain that rows name: the visual domain, or the name of the dataset."""
        datasets = list(datasets)
        by_domain = {dataset.domain or dataset.name: dataset for dataset in datasets}
        if self.elsewhere == "datasets" or len(by_domain) < len(datasets):
            return {dataset.name: dataset for dataset in datasets}
        return by_domain

    def parts(
        self, dataset: Dataset, split: str = "test", targets: Mapping[str, Dataset] | None = None, limit: int = 0
    ) -> list[Part]:
        """Returns the images that prompts are measured on, one part for each class list of each dataset.

        `split` is "test", or "val" for selecting settings; `targets` is what is measured besides the dataset that
        prompts are tuned on, by domain; `limit` is the most images per class, 0 for all.
        """
        parts = []
        for domain, tested in [(None, dataset), *(targets or {}).items()]:
            positions = tested.select(split)
            if limit:
                by_class = [positions[tested.labels[positions] == label] for label in range(len(tested.class_names))]
                positions = np.concatenate([members[:limit] for members in by_class])
            chosen = tested.take(positions)
            parts += [Part(name, domain, restrict(chosen, labels)) for name, labels in self.splits(tested).items()]
        return parts

    def groups(self, part: Part) -> dict[str, np.ndarray]:
        """Returns labels of a part by group: the accuracy within each group is reported as well."""
        return {}

    def tuning_key(self, shots: int | None) -> tuple[str, str]:
        """Returns what a run is tuned on; protocols with equal keys share tuned prompts."""
        return self.tuned_on or self.name, f"{shots} shots"

    def _tuned_labels(self, dataset: Dataset) -> np.ndarray:
        return next(iter(self.splits(dataset).values()))


class FewShot(Protocol):
    """Tuned and tested on all classes, also in shifted domains."""

    name, elsewhere, tuned_on = "few_shot", "domains", "all classes"


class AllShots(Protocol):
    """Tuned on every training image, however many a class has."""

    name = "all_shots"

    def draw(self, dataset: Dataset, shots: int, seed: int) -> np.ndarray:
        """Returns the positions of all training images."""
        return dataset.select("train")


class BaseToNew(Protocol):
    """Tuned on the first half of the classes; tested on each half, among its own classes."""

    name, has_new, tuned_on = "base_to_new", True, "base classes"

    def splits(self, dataset: Dataset) -> dict[str, np.ndarray]:
        return dict(zip(("base", "new"), base_and_new(len(dataset.class_names)), strict=True))


class CrossDataset(Protocol):
    """Tuned on all classes of a source dataset; tested on all classes of other datasets as well."""

    name, elsewhere, transfer, tuned_on = "cross_dataset", "datasets", True, "all classes"


class DomainGeneralization(Protocol):
    """Tuned on all classes of a source dataset; tested on its shifted versions, each with its own classes."""

    name, elsewhere, transfer, tuned_on = "domain_generalization", "domains", True, "all classes"


class TestTime(Protocol):
    """Nothing is learned from labeled images: each test image is tuned on alone and then classified."""

    __test__ = False  # not a test, whatever its name
    name, elsewhere, takes_labels = "test_time", "domains", False

    def counts(self, shots: Sequence[int]) -> tuple[int | None, ...]:
        return (None,)


@dataclasses.dataclass(frozen=True)
class Imbalanced(BaseToNew):
    """Base-to-new with a long tail of labeled images; also reports the head, middle and tail third of the base classes.

    The largest class has `largest` images, the smallest `tau` times as many.
    """

    tau: float = 1.0
    largest: int = 16

    @property
    def name(self) -> str:  # type: ignore[override]  # no protocol's name is ever set
        return f"imbalanced:{self.tau:g}"

    def counts(self, shots: Sequence[int]) -> tuple[int | None, ...]:
        return (self.largest,)

    def draw(self, dataset: Dataset, shots: int, seed: int) -> np.ndarray:
        return draws.long_tail_draw(dataset, self.tau, shots, seed, self._tuned_labels(dataset))

    def groups(self, part: Part) -> dict[str, np.ndarray]:
        return thirds(len(part.dataset.class_names)) if part.split == "base" else {}

    def tuning_key(self, shots: int | None) -> tuple[str, str]:
        images, count = super().tuning_key(shots)
        return images, count if self.tau == 1 else f"{count} {self.name}"


few_shot, base_to_new, cross_dataset = FewShot(), BaseToNew(), CrossDataset()
domain_generalization, test_time = DomainGeneralization(), TestTime()
_ALL: tuple[Protocol, ...] = (few_shot, base_to_new, cross_dataset, domain_generalization, test_time)
_PROTOCOLS = {protocol.name: protocol for protocol in _ALL}
LABELED = (*(name for name in _PROTOCOLS if name != test_time.name), "imbalanced")
PROTOCOLS = (*LABELED, test_time.name)
TRANSFER = tuple(name for name, protocol in _PROTOCOLS.items() if protocol.transfer)
TEST_TIME = test_time.name


def parse(name: str | Protocol) -> Protocol:
    """Returns the protocol that rows name: one of `PROTOCOLS`, "imbalanced:TAU" for a long tail, or a protocol itself.

    Example:
      >>> parse("base_to_new").has_new, parse("imbalanced:0.25").tau
      (True, 0.25)
    """
    if isinstance(name, Protocol):
        return name
    word, _, tau = name.partition(":")
    if word == "imbalanced":
        try:
            return Imbalanced(float(tau))
        except ValueError:
            raise InputError(f"protocol {name!r}: name a long tail by its tau, as in imbalanced:0.25") from None
    if name not in _PROTOCOLS:
        raise InputError(f"there is no protocol {name!r}{nearest(name, PROTOCOLS)}; choose from {', '.join(PROTOCOLS)}")
    return _PROTOCOLS[name]


def imbalance(name: str) -> float | None:
    """Returns the tau of a protocol that rows name, or None for protocols without a long tail."""
    protocol = parse(name) if name.startswith("imbalanced") else None
    return protocol.tau if isinstance(protocol, Imbalanced) else None


def has_new(name: str) -> bool:
    """Returns whether a protocol that rows name is tested on new classes as well."""
    return name.startswith("imbalanced") or (name in _PROTOCOLS and _PROTOCOLS[name].has_new)


def thirds(num_classes: int) -> dict[str, np.ndarray]:
    """Returns the labels of the head, middle and tail third, the head first; two classes have no middle.

    Example:
      >>> {name: labels.tolist() for name, labels in thirds(4).items()}
      {'head': [0], 'middle': [1, 2], 'tail': [3]}
    """
    require_int("num_classes", num_classes)
    ends = [round(num_classes * third / 3) for third in range(4)]
    groups = {name: np.arange(*ends[i : i + 2]) for i, name in enumerate(THIRDS)}
    return {name: labels for name, labels in groups.items() if len(labels)}


def without_test(dataset: Dataset) -> Dataset:
    """Returns the training and validation images, which are all that tuning and selection may read."""
    return dataset.take(np.flatnonzero(dataset.splits != "test"))


def selecting(protocols: Sequence[Protocol]) -> tuple[Any, ...]:
    """Returns the protocols whose validation score chooses between candidate settings."""
    if base_to_new in protocols:
        return (base_to_new,)
    if test_time in protocols or all(isinstance(protocol, Imbalanced) for protocol in protocols):
        return tuple(protocols)
    return (few_shot,)
