"""A prepared corpus: a folder that is a TFDS dataset, with a manifest.

The folder holds NAME-train.array_record-*-of-* (features image, caption, source), TFDS's features.json and
dataset_info.json, captions.jsonl (so that captions are read without images), and manifest.json, which is written last.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gram_jax.data.account import Account, LeftOut
from gram_jax.data.pairs.shards import DIGEST_BYTES, Shard, copy_records, read_shard
from gram_jax.data.readers.tfds import open_source
from gram_jax.errors import InputError
from gram_jax.io import PathLike, atomic_path, read_json, write_json

MANIFEST, CAPTIONS = "manifest.json", "captions.jsonl"
FORMAT = 1
SPLIT = "train"
_KEY_BYTES = 16  # of a digest, to compare pairs
_REMEDY = "prepare the corpus again"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The identity of a prepared corpus."""

    content_hash: str  # SHA-256 over the digests of all pairs, in order
    pairs: int
    record_bytes: int  # the size of the records on disk
    source: str  # the specification that the pairs were read from
    skipped: dict[str, int]  # the number of skipped entries, by reason
    duplicates: int  # the number of pairs that were dropped because an equal one precedes them
    unused: dict[str, Any] = dataclasses.field(default_factory=lambda: Account().to_json())  # what belongs to no pair

    def account(self) -> Account:
        """Returns what was read and what was left out: skipped entries, duplicates and what belongs to no pair."""
        account = Account({"pairs": self.pairs})
        account.left_out = {f"entries: {reason}": LeftOut(count, []) for reason, count in self.skipped.items()}
        if self.duplicates:
            account.left_out["duplicates of earlier pairs"] = LeftOut(self.duplicates, [])
        account.add(Account.from_json(self.unused))
        return account


def publish(
    folder: PathLike,
    stems: Sequence[PathLike],
    *,
    name: str,
    source: str,
    drop_duplicates: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> Manifest:
    """Makes a prepared corpus of complete shards and moves their records; an interrupted call can be repeated.

    The name of the TFDS dataset may have lower case letters, digits and underscores. `drop_duplicates` keeps the first
    of equal pairs (same bytes of image and caption) and needs 16 bytes of memory per pair.
    """
    folder = Path(folder)
    shards = [shard for stem in stems if (shard := read_shard(stem))]
    if len(shards) < len(stems):
        raise InputError(f"{len(stems) - len(shards)} of {len(stems)} shards are incomplete; write them first")
    counts = [shard.pairs for shard in shards]
    keeps = list(_first_ones(stems, counts)) if drop_duplicates else [np.ones(count, bool) for count in counts]
    filled = [number for number, keep in enumerate(keeps) if keep.any()]
    if not filled:
        raise InputError(f"{source} has no readable pair; see the list of skipped entries for the reasons")
    hasher, record_bytes = hashlib.sha256(), 0
    with atomic_path(folder / CAPTIONS) as part, part.open("wb") as captions:
        for place, number in enumerate(filled):
            stem, keep = os.fspath(stems[number]), keeps[number]
            target = folder / f"{name}-{SPLIT}.array_record-{place:05d}-of-{len(filled):05d}"
            _move_records(Path(f"{stem}.array_record"), target, keep)
            record_bytes += target.stat().st_size
            with open(f"{stem}.captions", "rb") as lines:
                captions.writelines(itertools.compress(lines, keep))
            hasher.update(_digests(stem)[keep].tobytes())
            progress()
    lengths = [int(keeps[number].sum()) for number in filled]
    _write_metadata(folder, name, lengths, record_bytes)
    skipped = sum((Counter(shard.skipped) for shard in shards), Counter())
    manifest = Manifest(
        content_hash=hasher.hexdigest(),
        pairs=sum(lengths),
        record_bytes=record_bytes,
        source=source,
        skipped=dict(sorted(skipped.items())),
        duplicates=sum(counts) - sum(lengths),
        unused=_unused(shards).to_json(),
    )
    write_json(folder / MANIFEST, {"format": FORMAT, **dataclasses.asdict(manifest)})
    return manifest


def _unused(shards: Sequence[Shard]) -> Account:
    total = Account()
    for shard in shards:
        total.add(Account.from_json(shard.unused))
    return total


def _digests(stem: PathLike) -> np.ndarray:
    return np.fromfile(f"{os.fspath(stem)}.digests", np.uint8).reshape(-1, DIGEST_BYTES)


def _first_ones(stems: Sequence[PathLike], counts: Sequence[int]) -> Iterator[np.ndarray]:
    """Yields, for each shard, which pairs equal no earlier pair."""
    keys = np.concatenate([_digests(stem)[:, :_KEY_BYTES] for stem in stems])
    keys = np.ascontiguousarray(keys).view(f"S{_KEY_BYTES}").ravel()
    keep = np.zeros(len(keys), bool)
    keep[np.unique(keys, return_index=True)[1]] = True
    yield from np.split(keep, np.cumsum(counts)[:-1])


def _move_records(source: Path, target: Path, keep: np.ndarray) -> None:
    """Moves the kept records; an interrupted call may have moved them already."""
    if keep.all() and source.exists():
        source.replace(target)
        return
    if not target.exists():
        copy_records(source, target, keep)
    source.unlink(missing_ok=True)


def _write_metadata(folder: Path, name: str, lengths: list[int], size: int) -> None:
    """Writes TFDS's description of the files."""
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, split=SPLIT, filetype_suffix="array_record"
    )
    split = tfds.core.SplitInfo(name=SPLIT, shard_lengths=lengths, num_bytes=size, filename_template=template)
    features = {"image": tfds.features.Image(), "caption": tfds.features.Text(), "source": tfds.features.Text()}
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=tfds.features.FeaturesDict(features),
        split_infos=[split],
        version="1.0.0",
        check_data=False,  # it requires TensorFlow
        description="Image-text pairs, images encoded as they were found.",
        disable_shuffling=True,  # record i is pair i
    )


def read_manifest(folder: PathLike) -> Manifest:
    """Reads the manifest in the folder of a prepared corpus; raises FileNotFoundError if there is none."""
    path = Path(folder).expanduser() / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent} holds no prepared corpus ({MANIFEST} is missing); give the dataset folder that "
            "experiments.prepare_corpus wrote, or run it again until it is complete"
        )
    try:
        content = read_json(path)
        if content.pop("format") != FORMAT:
            raise InputError("it has another version")
        manifest = Manifest(**content)
        if type(manifest.pairs) is not int or manifest.pairs < 1 or not isinstance(manifest.content_hash, str):
            raise InputError(f"it counts {manifest.pairs!r} pairs")
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}); {_REMEDY}") from error


def read_captions(folder: PathLike, pairs: int) -> tuple[str, ...]:
    """Reads the captions of the first pairs of a prepared corpus; raises InputError if they are damaged."""
    path = Path(folder).expanduser() / CAPTIONS
    try:
        with open(path, encoding="utf-8", newline="\n") as lines:
            captions = tuple(json.loads(line) for line in itertools.islice(lines, pairs))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); {_REMEDY}") from error
    if not all(isinstance(caption, str) for caption in captions):
        raise InputError(f"{path} holds lines that are not texts; {_REMEDY}")
    if len(captions) != pairs:
        raise InputError(f"{path} holds {len(captions)} captions of {pairs}; {_REMEDY}")
    return captions


def image_reader(folder: PathLike) -> Callable[[int], np.ndarray]:
    """Returns a function that reads the images of a prepared corpus: `read(number) -> uint8 [height, width, 3]`.

    Threads may share it. It raises `ImageError`, which names folder and number, if an image cannot be decoded. As pairs
    come from many sources, grayscale with more than 8 bits is scaled image by image, not by one range.
    """
    from gram_jax.clip.images import ImageTransform

    folder = Path(folder).expanduser()
    source = open_source(os.fspath(folder), SPLIT, "image")
    pairs = read_manifest(folder).pairs
    if len(source) != pairs:
        raise InputError(f"{folder}: dataset_info.json counts {len(source)} pairs, {MANIFEST} {pairs}; copy it again")
    decode = ImageTransform(size=None, crop=None)

    def read(number: int) -> np.ndarray:
        return decode.pixels(source[number]["image"], f"image {number} of {folder}")

    return read
