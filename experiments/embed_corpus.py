"""Encodes a corpus or datasets once and stores the frozen features.

    python -m experiments.embed_corpus --corpus=glyphs
    python -m experiments.build_tasks --features=runs/embed_corpus/store
    python -m experiments.embed_corpus --corpus=array_record:runs/prepare_corpus/dataset --pairs=0 --clip=CLIP
    python -m experiments.embed_corpus --dataset=glyphs:greek_small,glyphs:arabic --views=8 --workdir=runs/features
    python -m experiments.evaluate --dataset=glyphs:greek_small,glyphs:arabic --feature_store=runs/features/store

Writes WORKDIR/store. The store of a corpus holds image features and text features of the captions, for
experiments.build_tasks. For a dataset, WORKDIR/store/DATASET holds image features, and --views adds augmented views of
every image (random resized crop and flip), for experiments.evaluate. A store belongs to one clip, one image transform
and one source; opening it with others is an error.

--workers threads read and transform images while the devices of this host compute. With --distributed, each process
writes its own shards into the common --workdir (docs/launching.md). The program may be killed at any moment; rerun the
command to resume. A corpus store then has the same bytes as without the interruption.

Reading and transforming an image of 512 x 384 pixels (to 224) takes 5 ms of a core, a view the same; threads share the
work, because Python's lock is held for less than a tenth of it. 20,000 glyph pairs under the mini CLIP take 48 s on two
busy cores; memory stays below 1 GiB there, and is about 2 * --workers batches of pixels above the clip's. A pair takes
4 * embed_dim bytes in half precision: 2 GB for a million pairs at 512. The program prints the share of its time that it
waited for images.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lazy_loader
import numpy as np

import gram_jax as gram
from gram_jax import runtime
from gram_jax.batching import map_batches, pad_to, round_up
from gram_jax.data import Corpus, Dataset, feature_store, load_corpus, load_dataset, open_bank, ordered, store_name
from gram_jax.data.augmentation import augmented_view
from gram_jax.errors import InputError, require_int
from gram_jax.io import is_remote

from ._accounts import tell
from ._launch import launch, setting

# Loaded when used, so that --help answers at once.
jax = lazy_loader.load("jax")

STORE = "store"
_TOKENS = 8  # texts are padded to a multiple of this number of tokens, so that few shapes are compiled


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of `embed_corpus`."""

    clip: str = setting("mini", 'folder, file, hub name, OpenCLIP MODEL:TAG, or "mini"')
    corpus: str = setting("", "the corpus: glyphs or array_record:FOLDER")
    pairs: int = setting(20_000, "pairs of the corpus; 0 for all pairs of a prepared one")
    dataset: tuple[str, ...] = setting((), "datasets, instead of a corpus")
    seed: int = setting(0, "seed of drawn images and of splits that are made")
    views: int = setting(0, "augmented views of each image of a dataset, for --augmentation=stored of evaluate")
    dtype: str | None = setting(None, "precision of a corpus's files; default float16", choices=feature_store.DTYPES)
    batch_size: int = setting(256, "images a step, over all devices of this host")
    shard_rows: int = setting(8192, "images a file; a killed run may have to encode so many again")
    workers: int = setting(0, "threads that read images; 0 for one a core")
    compute_dtype: str = setting("float32", "precision of the frozen compute", choices=("float32", "bfloat16"))

    def __post_init__(self) -> None:
        if bool(self.corpus) == bool(self.dataset):
            raise InputError(f"--corpus={self.corpus!r} --dataset={','.join(self.dataset)!r}: give one of them")
        if self.corpus and self.views:
            raise InputError(f"--views={self.views}: views belong to --dataset; leave it out")
        if self.dataset and self.dtype not in (None, "float32"):
            raise InputError(f"--dtype={self.dtype}: features of datasets are float32; leave it out")
        for name, least in (("batch_size", 1), ("shard_rows", 1), ("pairs", 0), ("views", 0), ("workers", 0)):
            require_int(f"--{name}", getattr(self, name), least)


class Step(NamedTuple):
    """One batch: some of the (item, view) pairs of a group of items; view -1 is the image itself."""

    items: np.ndarray
    pairs: list[tuple[int, int]]


def pixels(step: Step, source: Corpus | Dataset, clip: gram.Clip, batch_size: int) -> np.ndarray:
    """Returns the transformed images of a step, filled up to a batch with black."""
    batch = np.zeros((batch_size, *clip.transform.output_size, 3), np.uint8)
    for place, (item, view) in enumerate(step.pairs):
        (image,) = source.images([item])
        name = f"image {item} of {source.name}"
        if view < 0:
            batch[place] = clip.transform.pixels(image, name)
        else:
            batch[place] = augmented_view(clip.transform, image, 0, source.item_number(item), view, name)
    return clip.transform.normalize(batch)


def texts(
    clip: gram.Clip, captions: Sequence[str], batch_size: int, sharding: jax.sharding.NamedSharding
) -> np.ndarray:
    """Returns the text features of captions; captions longer than the clip's context are cut."""
    tokens = clip.tokenizer.encode(captions, truncate=True)
    width = min(round_up(tokens.shape[1], _TOKENS), clip.tokenizer.context_length)
    tokens = pad_to(tokens, len(tokens), width, fill=clip.tokenizer.pad_token_id)
    return map_batches(lambda batch: gram.encode_text(clip, jax.device_put(batch, sharding)), tokens, batch_size)


def features(
    clip: gram.Clip, batches: Iterator[np.ndarray], sharding: jax.sharding.NamedSharding
) -> Iterator[np.ndarray]:
    """Yields image features batch by batch; the devices get the next batch before the host waits for the last one."""
    before = None
    for batch in batches:
        encoded = gram.encode_image(clip, jax.device_put(batch, sharding))
        if before is not None:
            yield np.asarray(before)
        before = encoded
    if before is not None:
        yield np.asarray(before)


def embed(
    config: Config,
    folder: Path,
    clip: gram.Clip,
    sharding: jax.sharding.NamedSharding,
    source: Corpus | Dataset,
    views: int = 0,
) -> float:
    """Adds the missing features of this process's items; returns the share of the time spent waiting for images."""
    dtype = config.dtype or ("float16" if config.corpus else "float32")
    bank = open_bank(clip, source, folder, views=views, dtype=dtype)
    # All devices get the same number of images. A group of items becomes one file.
    batch_size = round_up(min(config.batch_size, config.shard_rows, len(source)), sharding.mesh.size)
    missing, steps = bank.missing(), []
    shards = missing // config.shard_rows
    for shard in np.unique(shards):
        if shard % jax.process_count() == jax.process_index():
            items = missing[shards == shard]
            pairs = [(item, view) for item in items.tolist() for view in (range(views) if views else (-1,))]
            steps += [Step(items, pairs[at : at + batch_size]) for at in range(0, len(pairs), batch_size)]
    workers, parts = config.workers or os.cpu_count() or 1, []

    def read(index: int) -> np.ndarray:
        return pixels(steps[index], source, clip, batch_size)

    with (
        ordered(read, len(steps), workers=workers, prefetch=workers + 1) as batches,
        runtime.Progress(sum(len(step.pairs) for step in steps), "images", unit="image") as progress,
    ):
        for place, (step, encoded) in enumerate(zip(steps, features(clip, batches, sharding), strict=True)):
            parts.append(encoded[: len(step.pairs)])
            progress.update(len(step.pairs), waiting=batches.share)
            if place + 1 < len(steps) and steps[place + 1].items is step.items:
                continue
            rows, parts = np.concatenate(parts), []
            if isinstance(source, Corpus):
                captions = [source.captions[item] for item in step.items]
                rows = np.stack([rows, texts(clip, captions, batch_size, sharding)], axis=1)
            bank.keep(step.items, rows.reshape(len(step.items), *bank.shape))
        return batches.share


def run(config: Config, workdir: Any) -> None:
    """Embeds the corpus or the datasets, or resumes, and prints what the stores hold."""
    if is_remote(workdir):
        raise InputError(f"--workdir={workdir}: a store is mapped into memory and must be in a local or mounted folder")
    clip = gram.load_clip(config.clip, compute_dtype=config.compute_dtype)
    if clip.transform.output_size is None:
        raise InputError(f"--clip={config.clip}: the image transform has no output size; set a crop in its settings")
    mesh = runtime.make_mesh("batch", jax.local_devices())
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    frozen = jax.device_put(clip, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    folder = Path(workdir) / STORE
    if config.corpus:
        corpus = load_corpus(config.corpus, pairs=config.pairs, seed=config.seed)
        finish(folder, corpus, embed(config, folder, frozen, sharding, corpus))
    for spec in config.dataset:
        dataset = load_dataset(spec, seed=config.seed)
        tell([dataset])
        for views in dict.fromkeys((0, config.views)):
            waiting = embed(config, folder, frozen, sharding, dataset, views)
            finish(folder / store_name(dataset, views), dataset, waiting)


def finish(folder: Path, source: Corpus | Dataset, waiting: float) -> None:
    """Waits for all processes; the main one prints what a store holds."""
    runtime.barrier(f"embedded {folder.name}")
    if runtime.is_main():
        size = sum(file.stat().st_size for file in folder.glob("*.npy"))
        print(
            f"{len(source):,} items of {source.name} in {folder}: {size / len(source):,.0f} bytes each; "
            f"{100 * waiting:.0f} % of the time was spent waiting for images"
        )


if __name__ == "__main__":
    launch(run, Config, distributed="units")
