"""A prepared corpus: one folder that is a TFDS dataset, with a manifest that vouches for its content.

The folder holds NAME-train.array_record-*-of-* (features image, caption, source), TFDS's features.json and
dataset_info.json, captions.jsonl (so that no image is read for its caption), and manifest.json, which is written last.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gram_jax.data.pairs import shards as pair_shards
from gram_jax.errors import InputError

MANIFEST, CAPTIONS = "manifest.json", "captions.jsonl"
FORMAT = 1
SPLIT = "train"
_KEY_BYTES = 16  # of a digest, to tell pairs apart


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a prepared corpus is.

    Attributes:
      content_hash: SHA-256 over the digests of all pairs, in order.
      pairs: how many there are.
      record_bytes: the size of its shards on disk.
      source: the specification that they were read from.
      skipped: entries that were no pairs, by reason.
      duplicates: pairs that were dropped because an equal one stands before them.
    """

    content_hash: str
    pairs: int
    record_bytes: int
    source: str
    skipped: dict[str, int]
    duplicates: int


def publish(
    folder: str | os.PathLike[str],
    stems: Sequence[str | os.PathLike[str]],
    *,
    name: str,
    source: str,
    drop_duplicates: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> Manifest:
    """Makes a prepared corpus of finished shards, whose records are moved; an interrupted call may be repeated.

    Args:
      folder: where the dataset will be; made if need be.
      stems: the shards, in order, see `pair_shards.write_shard`.
      name: the name of the TFDS dataset: lower case letters, digits and underscores.
      source: the specification that the pairs were read from, for the manifest.
      drop_duplicates: of equal pairs (image and caption, to the byte), keep the first; 16 bytes of memory a pair.
      progress: called after every shard.

    Returns:
      The manifest.

    Raises:
      InputError: there is no pair at all.
      OSError: a file cannot be written.

    Example:
      >>> import tempfile
      >>> from gram_jax.data.pairs.reading import Reading, plan_units
      >>> folder = tempfile.mkdtemp()
      >>> for number, unit in enumerate(plan_units("glyphs", Reading(pairs=5, unit_pairs=3))):
      ...     _ = pair_shards.write_shard(f"{folder}/{number}", unit, max_pixels=10_000)
      >>> publish(f"{folder}/dataset", [f"{folder}/0", f"{folder}/1"], name="pairs", source="glyphs").pairs
      5

    Reference:
      The names of files are TFDS's; the rest is our own choice.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = [pair_shards.read_shard(stem) for stem in stems]
    counts = [shard.pairs for shard in shards]
    keeps = list(_first_ones(stems, counts)) if drop_duplicates else [np.ones(count, bool) for count in counts]
    filled = [number for number, keep in enumerate(keeps) if keep.any()]
    if not filled:
        raise InputError(f"{source} has no pair that could be read; see which entries were skipped, and why")
    hasher, record_bytes = hashlib.sha256(), 0
    part = folder / f"{CAPTIONS}.part"
    with open(part, "w", encoding="utf-8", newline="\n") as captions:
        for place, number in enumerate(filled):
            stem, keep = Path(stems[number]), keeps[number]
            target = folder / f"{name}-{SPLIT}.array_record-{place:05d}-of-{len(filled):05d}"
            _move_records(stem.parent / f"{stem.name}.array_record", target, keep)
            record_bytes += target.stat().st_size
            with open(f"{stem}.captions", encoding="utf-8", newline="\n") as lines:
                captions.writelines(itertools.compress(lines, keep))
            hasher.update(_digests(stem)[keep].tobytes())
            progress()
    part.replace(folder / CAPTIONS)
    lengths = [int(keeps[number].sum()) for number in filled]
    _write_metadata(folder, name, lengths, record_bytes)
    reasons = sorted({reason for shard in shards for reason in shard.skipped})
    manifest = Manifest(
        content_hash=hasher.hexdigest(),
        pairs=sum(lengths),
        record_bytes=record_bytes,
        source=source,
        skipped={reason: sum(shard.skipped.get(reason, 0) for shard in shards) for reason in reasons},
        duplicates=sum(counts) - sum(lengths),
    )
    pair_shards.write_json(folder / MANIFEST, {"format": FORMAT, **dataclasses.asdict(manifest)})
    return manifest


def _digests(stem: str | os.PathLike[str]) -> np.ndarray:
    return np.fromfile(f"{os.fspath(stem)}.digests", np.uint8).reshape(-1, pair_shards.DIGEST_BYTES)


def _first_ones(stems: Sequence[Any], counts: Sequence[int]) -> Iterator[np.ndarray]:
    """Which pairs of each shard no earlier pair equals."""
    keys = np.concatenate([_digests(stem)[:, :_KEY_BYTES] for stem in stems])
    keys = np.ascontiguousarray(keys).view(f"S{_KEY_BYTES}").ravel()
    keep = np.zeros(len(keys), bool)
    keep[np.unique(keys, return_index=True)[1]] = True
    yield from np.split(keep, np.cumsum(counts)[:-1])


def _move_records(source: Path, target: Path, keep: np.ndarray) -> None:
    """Brings the kept records to their place, where an interrupted call may have brought them already."""
    if keep.all() and source.exists():
        source.replace(target)
        return
    if not target.exists():
        pair_shards.copy_records(source, target, keep)
    source.unlink(missing_ok=True)


def _write_metadata(folder: Path, name: str, lengths: list[int], size: int) -> None:
    """TFDS's own description of the files."""
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
        check_data=False,  # it would need TensorFlow
        description="Image-text pairs, images encoded as they were found.",
        disable_shuffling=True,  # record i is pair i
    )


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """The manifest of a prepared corpus.

    Args:
      folder: the folder of the dataset.

    Returns:
      The manifest.

    Raises:
      FileNotFoundError: no prepared corpus is there, or its preparation has not come to its end.
      InputError: the manifest is damaged, or of another version.
    """
    path = Path(folder).expanduser() / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent} holds no prepared corpus ({MANIFEST} is missing); give the dataset folder that "
            "experiments.prepare_corpus wrote, or run it again until it is done"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise InputError("it is of another version")
        manifest = Manifest(**content)
        if type(manifest.pairs) is not int or manifest.pairs < 1 or not isinstance(manifest.content_hash, str):
            raise InputError(f"it counts {manifest.pairs!r} pairs")
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} cannot be used ({error}); prepare the corpus again") from error


def read_captions(folder: str | os.PathLike[str], pairs: int) -> tuple[str, ...]:
    """The captions of the first pairs of a prepared corpus.

    Args:
      folder: the folder of the dataset.
      pairs: how many.

    Returns:
      So many texts.

    Raises:
      InputError: the captions are damaged.
    """
    path = Path(folder).expanduser() / CAPTIONS
    try:
        with open(path, encoding="utf-8", newline="\n") as lines:
            captions = tuple(json.loads(line) for line in itertools.islice(lines, pairs))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); prepare the corpus again") from error
    if not all(isinstance(caption, str) for caption in captions):
        raise InputError(f"{path} holds lines that are no texts; prepare the corpus again")
    if len(captions) != pairs:
        raise InputError(f"{path} holds {len(captions)} captions of {pairs}; prepare the corpus again")
    return captions


def image_reader(folder: str | os.PathLike[str]) -> Callable[[int], np.ndarray]:
    """What reads the images of a prepared corpus by number; threads may share it.

    Args:
      folder: the folder of the dataset.

    Returns:
      `read(number) -> uint8 [height, width, 3]`; it raises `ImageError`, naming folder and number, for an image that
      cannot be read.

    Raises:
      InputError: shards are missing or hold another number of pairs than the manifest says.
    """
    from gram_jax.clip.images import ImageTransform
    from gram_jax.data.pairs.records import open_source

    folder = Path(folder).expanduser()
    source = open_source(os.fspath(folder), SPLIT, "image")
    missing = [path for path in source.dataset_info.splits[SPLIT].filepaths if not os.path.exists(path)]
    pairs = read_manifest(folder).pairs
    if missing or len(source) != pairs:
        raise InputError(
            f"{folder} lacks {len(missing)} of its shards, or its dataset_info.json counts {len(source)} pairs and its "
            f"manifest {pairs}; copy it again"
        )
    decode = ImageTransform(size=None, crop=None)

    def read(number: int) -> np.ndarray:
        return decode.pixels(source[number]["image"], f"image {number} of {folder}")

    return read
