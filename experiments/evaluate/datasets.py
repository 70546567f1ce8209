"""The datasets of an evaluation: the flags' texts, opened, with the targets of every protocol."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from gram_jax.data import Dataset, glyphs, load_datasets
from gram_jax.data.augmentation import VERSION as VIEWS
from gram_jax.data.readers import coop
from gram_jax.data.readers.sources import READERS, forms
from gram_jax.errors import InputError
from gram_jax.evaluation import draws as drawing
from gram_jax.evaluation.checks import require_usable, scarce
from gram_jax.evaluation.protocols import Protocol

from .config import UNSEEN
from .settings import Settings


class Opened(NamedTuple):
    """A dataset that is tuned on, and for each protocol, what is tested besides, by domain."""

    dataset: Dataset
    targets: dict[Protocol, dict[str, Dataset]]


def open_datasets(settings: Settings) -> dict[str, Opened]:
    """Opens every dataset that is tuned on and its targets; returns them by name."""
    datasets = coop.expand(settings.dataset)
    sources = datasets if settings.source is None else coop.expand(settings.source)
    texts = {
        text: {
            protocol: _target_texts(settings, text, protocol)
            for protocol in settings.protocols
            if text in (sources if protocol.transfer else datasets)
        }
        for text in dict.fromkeys((*datasets, *sources))
    }
    tuned_on = {text: targets for text, targets in texts.items() if targets}
    named = itertools.chain(tuned_on, *(each for targets in tuned_on.values() for each in targets.values()))
    scaled = settings.image_reading == "upright"  # the plain reading of published recipes scales nothing
    loaded = load_datasets(named, seed=settings.dataset_seed, gray_range=settings.gray_range, scale_gray=scaled)
    for dataset in loaded.values():
        require_usable(dataset)
    if settings.few_images == "take_all":
        loaded = {text: _with_scarce(settings, dataset) for text, dataset in loaded.items()}
    return {
        loaded[text].name: Opened(
            loaded[text],
            {protocol: protocol.targets(map(loaded.__getitem__, each)) for protocol, each in targets.items()},
        )
        for text, targets in tuned_on.items()
    }


def _with_scarce(settings: Settings, dataset: Dataset) -> Dataset:
    """Returns a dataset with a note on classes that have fewer images than shots, all of which are taken."""
    counts = [shots for protocol in settings.protocols for shots in settings.counts(protocol) if shots is not None]
    notes = [*dataset.about.get("notes", ()), *scarce(dataset, max(counts, default=0))]
    return dataclasses.replace(dataset, about={**dataset.about, "notes": notes})


def _target_texts(settings: Settings, text: str, protocol: Protocol) -> list[str]:
    """Returns the texts of what a protocol tests besides a dataset."""
    if protocol.elsewhere == "datasets":
        targets = [target for target in coop.expand(settings.targets or settings.dataset) if target != text]
        if not targets:
            raise InputError(f"--protocol={protocol.name} tunes on {text!r}; name datasets to test with --targets")
        return targets
    if protocol.elsewhere != "domains":
        return []
    domains = settings.domains or ((UNSEEN,) if protocol.transfer else ())
    targets = [each for domain in domains for each in shifted(text, domain)]
    if protocol.transfer and not targets:
        raise InputError(
            f"--protocol={protocol.name}: no shifted version of {text!r} is known; name datasets of the same classes "
            "with --domains, or what to tune on with --source"
        )
    return [each for each in dict.fromkeys(targets) if each != text]


def shifted(text: str, domain: str) -> list[str]:
    """Returns the texts of the shifted versions of a dataset that the name of a domain stands for.

    Example:
      >>> shifted("glyphs:chess/noise", "rotated"), shifted("folder:/photos", "unseen")
      (['glyphs:chess/rotated'], [])
    """
    prefix, _, rest = text.partition(":")
    if domain.partition(":")[0] in READERS:
        return [domain]
    if prefix == "glyphs":
        name, _, own = rest.partition("/")
        names = glyphs.unseen_domains(glyphs.catalog(name)) if domain == UNSEEN else (domain,)
        return [f"glyphs:{name}/{each}" for each in names if each != own]
    if prefix == "coop" and (where := coop.split_spec(rest))[1] == "imagenet":
        if domain not in (UNSEEN, *coop.VARIANTS):
            raise InputError(
                f"{domain!r} is no shifted version of {text!r}, which has {', '.join(coop.VARIANTS)}; give these, or a "
                f"dataset of the same classes ({forms()})"
            )
        return [f"coop:{where[0]}:{each}" for each in (coop.VARIANTS if domain == UNSEEN else (domain,))]
    if domain == UNSEEN:
        return []
    raise InputError(f"{text!r} has no domain {domain!r}; give a dataset of the same classes ({forms()})")


def all_datasets(opened: Mapping[str, Opened]) -> Iterator[Dataset]:
    """Yields every dataset that is tuned on or tested, once."""
    groups = ((own, *group.values()) for own, targets in opened.values() for group in targets.values())
    yield from {each.name: each for group in groups for each in group}.values()


def about(opened: Mapping[str, Opened]) -> dict[str, Any]:
    """Returns what results tell of every dataset: the sources of its classes and splits, and notes."""
    return {dataset.name: dict(dataset.about) for dataset in all_datasets(opened)}


def draw_hashes(
    opened: Mapping[str, Opened], seeds: tuple[int, ...], counts: Callable[[Protocol], tuple[int | None, ...]]
) -> dict[str, str]:
    """Returns a hash of the labeled images of each run, and the rule by which they, or views, are drawn."""
    if not all(protocol.takes_labels for each in opened.values() for protocol in each.targets):
        return {"rule": VIEWS}
    hashes = {"rule": drawing.RULE}
    for name, (dataset, targets) in opened.items():
        runs = [(protocol, shots, seed) for protocol in targets for shots in counts(protocol) for seed in seeds]
        for protocol, shots, seed in runs:
            key = ", ".join((name, *protocol.tuning_key(shots), f"seed {seed}"))
            if key not in hashes:
                drawn = protocol.support(dataset, shots, seed)
                text = json.dumps([drawn.references, drawn.labels.tolist()])
                hashes[key] = hashlib.sha256(text.encode()).hexdigest()
    return hashes
