"""What each protocol of `experiments.evaluate` tunes on, and what it is tested on.

* few_shot: all classes; tested on all classes, and in the shifted domains that are asked for.
* base_to_new: tuned on the first half of the classes; tested on each half, among its own classes.
* cross_dataset: all classes of a source; tested on all classes of other datasets as well.
* domain_generalization: all classes of a source; tested on its shifted versions as well, each with its own classes.
* test_time: nothing is learned from labeled images; each test image, here or in the shifted domains that are asked
  for, is tuned on alone and then classified.
* imbalanced: as base_to_new, from a long tail of base classes: "imbalanced:0.25" is that of tau = 0.25.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gram_jax import evaluation
from gram_jax.data import Dataset, base_and_new, glyphs, load_dataset, restrict
from gram_jax.data.augmentation import VERSION as VIEWS
from gram_jax.data.readers import coop
from gram_jax.data.readers.sources import READERS, forms
from gram_jax.errors import InputError

LABELED = ("few_shot", "base_to_new", "cross_dataset", "domain_generalization", "imbalanced")
TEST_TIME = "test_time"
PROTOCOLS = (*LABELED, TEST_TIME)
TRANSFER = ("cross_dataset", "domain_generalization")
UNSEEN = "unseen"
THIRDS = ("head", "middle", "tail")


class Part(NamedTuple):
    """Images that prompts are measured on, among their own classes; the domain is None where prompts are tuned."""

    split: str
    domain: str | None
    dataset: Dataset


class Opened(NamedTuple):
    """A dataset that is tuned on, under which protocols, and what each of them is tested on beside it, by domain."""

    dataset: Dataset
    others: dict[str, dict[str, Dataset]]


def expand(config: Any) -> tuple[str, ...]:
    """The protocols as rows name them: one imbalanced protocol for each tau."""
    each = {name: (name,) for name in config.protocol}
    if "imbalanced" in each:
        each["imbalanced"] = tuple(f"imbalanced:{tau:g}" for tau in config.tau)
    return tuple(protocol for names in each.values() for protocol in names)


def imbalance(protocol: str) -> float | None:
    """The tau of an imbalanced protocol, None of the others."""
    name, _, tau = protocol.partition(":")
    if name != "imbalanced":
        return None
    try:
        return float(tau)
    except ValueError:
        raise InputError(f"protocol {protocol!r}: rows name a long tail by its tau, as imbalanced:0.25") from None


def has_new(protocol: str) -> bool:
    """Whether a protocol is tuned on base classes and tested on new ones as well."""
    return protocol == "base_to_new" or imbalance(protocol) is not None


def counts(config: Any, protocol: str, select: bool = False) -> tuple[int | None, ...]:
    """The numbers of labeled images a class that a protocol is run, or selected, with; None where there are none."""
    if protocol == TEST_TIME:
        return (None,)
    if imbalance(protocol) is not None:
        return (config.largest,)
    return (config.select_shots if select else None) or config.shots


def selected_on(config: Any) -> tuple[str, ...]:
    """The protocols whose validation score chooses among settings: the first of what is measured."""
    if "base_to_new" in config.protocol:
        return ("base_to_new",)
    return expand(config) if config.protocol == ("imbalanced",) else ("few_shot",)


def same_tuning(protocol: str, shots: int) -> tuple[str, str]:
    """What a run is tuned on: protocols that tune on the same images have the same."""
    tail = "" if imbalance(protocol) in (None, 1.0) else f" {protocol}"
    return "base classes" if has_new(protocol) else "all classes", f"{shots} shots{tail}"


def class_splits(protocol: str, dataset: Dataset) -> dict[str, np.ndarray]:
    """The class lists of a protocol, by the name that results show; the first is the one that is tuned on."""
    if has_new(protocol):
        return dict(zip(("base", "new"), base_and_new(len(dataset.class_names)), strict=True))
    return {"all": np.arange(len(dataset.class_names))}


def thirds(num_classes: int) -> dict[str, np.ndarray]:
    """Labels from 0 in head, middle and tail thirds, the first label being the head's; two classes have no middle."""
    ends = [round(num_classes * third / 3) for third in range(4)]
    groups = {name: np.arange(*ends[i : i + 2]) for i, name in enumerate(THIRDS)}
    return {name: labels for name, labels in groups.items() if len(labels)}


def without_test(dataset: Dataset) -> Dataset:
    """The training and validation images: all that tuning and selection are given."""
    return dataset.take(np.flatnonzero(dataset.splits != "test"))


def support(dataset: Dataset, protocol: str, shots: int, seed: int) -> Dataset:
    """The labeled images that a run is tuned on; drawn from all classes before any are left out, as CoOp does."""
    labels = next(iter(class_splits(protocol, dataset).values()))
    tau = imbalance(protocol)
    if tau is None:
        drawn = evaluation.few_shot(dataset, shots, seed)
    else:
        drawn = evaluation.long_tail_draw(dataset, tau, shots, seed, labels)
    return restrict(dataset.take(drawn), labels)


def measured_parts(
    config: Any, protocol: str, dataset: Dataset, split: str, others: Mapping[str, Dataset] | Sequence = ()
) -> list[Part]:
    """The images of a split, by the protocol's class lists, in the dataset itself and in others, by domain."""
    parts = []
    for domain, found in {None: dataset, **dict(others)}.items():
        positions = found.select(split)
        if config.max_test_images:
            kept = [positions[found.labels[positions] == label] for label in range(len(found.class_names))]
            positions = np.concatenate([of_class[: config.max_test_images] for of_class in kept])
        chosen = found.take(positions)
        parts += [
            Part(name, domain, restrict(chosen, labels)) for name, labels in class_splits(protocol, found).items()
        ]
    return parts


def open_datasets(config: Any) -> dict[str, Opened]:
    """Every dataset that is tuned on, with what its protocols are tested on beside it, by its name.

    Raises:
      InputError: a dataset cannot be opened, has one class, shares its name with another, or has nothing that a
        protocol could be tested on; the message says which.
    """
    loaded: dict[str, Dataset] = {}
    named: dict[str, str] = {}

    def load(spec: str) -> Dataset:
        if spec not in loaded:
            found = loaded[spec] = load_dataset(spec, seed=config.dataset_seed)
            if len(found.class_names) < 2:
                raise InputError(f"dataset {spec!r} has one class, {found.class_names[0]!r}; it takes two to classify")
            if (other := named.setdefault(found.name, spec)) != spec:
                raise InputError(f"{other!r} and {spec!r} are both called {found.name!r} in results; rename one")
        return loaded[spec]

    datasets = coop.expand(config.dataset)
    sources = datasets if config.source is None else coop.expand(config.source)
    opened = {}
    for spec in dict.fromkeys((*datasets, *sources)):
        others: dict[str, dict[str, Dataset]] = {}
        for protocol in expand(config):
            if spec in (sources if protocol in TRANSFER else datasets):
                others[protocol] = _by_domain(protocol, [load(each) for each in _others(config, spec, protocol)])
        if others:
            opened[load(spec).name] = Opened(load(spec), others)
    return opened


def _others(config: Any, spec: str, protocol: str) -> list[str]:
    """The specifications of what a protocol is tested on beside the dataset."""
    if protocol == "cross_dataset":
        targets = [target for target in coop.expand(config.targets or config.dataset) if target != spec]
        if not targets:
            raise InputError(f"--protocol=cross_dataset tunes on {spec!r}; name datasets to test on with --targets")
        return targets
    if protocol not in ("few_shot", "domain_generalization", TEST_TIME):
        return []
    wanted = config.domains or ((UNSEEN,) if protocol == "domain_generalization" else ())
    found = [each for domain in wanted for each in shifted(spec, domain)]
    if protocol == "domain_generalization" and not found:
        raise InputError(
            f"--protocol=domain_generalization: {spec!r} has no shifted versions that are known; name datasets of the "
            "same classes with --domains, or what to tune on with --source"
        )
    return [each for each in dict.fromkeys(found) if each != spec]


def shifted(spec: str, domain: str) -> list[str]:
    """The specifications of the shifted versions of a dataset that a domain's name stands for."""
    prefix, _, rest = spec.partition(":")
    if domain.partition(":")[0] in READERS:
        return [domain]
    if prefix == "glyphs":
        name, _, own = rest.partition("/")
        names = glyphs.unseen_domains(glyphs.catalog(name)) if domain == UNSEEN else (domain,)
        return [f"glyphs:{name}/{each}" for each in names if each != own]
    if prefix == "coop" and (where := coop.split_spec(rest))[1] == "imagenet":
        if domain not in (UNSEEN, *coop.VARIANTS):
            raise InputError(
                f"{domain!r} is no shifted version of {spec!r}, which has {', '.join(coop.VARIANTS)}; give these, or "
                f"a dataset of the same classes ({forms()})"
            )
        return [f"coop:{where[0]}:{each}" for each in (coop.VARIANTS if domain == UNSEEN else (domain,))]
    if domain == UNSEEN:
        return []
    raise InputError(f"{spec!r} has no domain {domain!r}; give a dataset of the same classes ({forms()})")


def _by_domain(protocol: str, datasets: Sequence[Dataset]) -> dict[str, Dataset]:
    """Datasets by the domain that rows name: that of a shifted version, the name of another dataset."""
    names = [dataset.name if protocol == "cross_dataset" else dataset.domain or dataset.name for dataset in datasets]
    if len(set(names)) < len(names):
        names = [dataset.name for dataset in datasets]
    return dict(zip(names, datasets, strict=True))


def all_datasets(opened: Mapping[str, Opened]) -> Iterator[Dataset]:
    """Every dataset that anything is tuned or tested on, once."""
    found = {}
    for dataset, others in opened.values():
        for each in (dataset, *(other for group in others.values() for other in group.values())):
            found[each.name] = each
    yield from found.values()


def about(opened: Mapping[str, Opened]) -> dict[str, Any]:
    """What is told of every dataset: where its classes and splits come from, and what is odd about it."""
    return {dataset.name: dict(dataset.about) for dataset in all_datasets(opened)}


def draws(config: Any, opened: Mapping[str, Opened]) -> dict[str, str]:
    """A hash of the references that each run is tuned on, and the rule by which they, or views, are drawn."""
    if TEST_TIME in config.protocol:
        return {"rule": VIEWS}
    found = {"rule": evaluation.draws.RULE}
    for name, (dataset, others) in opened.items():
        for protocol in others:
            for shots in counts(config, protocol):
                for seed in config.seeds:
                    key = ", ".join((name, *map(str, same_tuning(protocol, shots)), f"seed {seed}"))
                    if key not in found:
                        drawn = support(dataset, protocol, shots, seed)
                        text = json.dumps([drawn.references, drawn.labels.tolist()])
                        found[key] = hashlib.sha256(text.encode()).hexdigest()
    return found
