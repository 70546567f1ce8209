"""From a corpus or a dataset to a feature store: frozen features, computed once.

    python -m experiments.embed_corpus --corpus=glyphs
    python -m experiments.build_tasks --features=runs/embed_corpus/store
    python -m experiments.embed_corpus --corpus=array_record:runs/prepare_corpus/dataset --pairs=0 --clip=CLIP
    python -m experiments.embed_corpus --dataset=glyphs:greek_small --views=8 --workdir=runs/greek_small

Writes WORKDIR/store: image features, text features of the captions (of a corpus), and --views augmented views of every
image (random resized crop and flip). The store belongs to one clip, one image transform, one source: opened with
others, it is refused (`gram_jax.data.open_store`).

Images are read and transformed by --workers threads while the devices of this host compute. With --distributed each
process writes its own shards into the common --workdir (docs/launching.md). The program may be killed at any moment:
the same command continues behind the last finished shard, to the same bytes.

Reading and transforming an image of 512 x 384 pixels (to 224) takes 5 ms of a core, a view the same; threads share the
work, since Python's lock is held for less than a tenth of it. 20,000 glyph pairs under the mini CLIP take 48 s on two
busy cores; memory stays below 1 GiB there, and is about 2 * --workers batches of pixels above the clip's. An item takes
2 * (2 + views) * embed_dim bytes in half precision: 2 GB for a million pairs at 512. The program says which share of
its time it waited for images.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import gram_jax as gram
from gram_jax import runtime
from gram_jax.clip import Clip
from gram_jax.data import Corpus, Dataset, load_corpus, load_dataset
from gram_jax.data import feature_store as store
from gram_jax.data import prefetch as loading
from gram_jax.data.augmentation import augmented_view
from gram_jax.errors import InputError

from ._launch import at_least, launch, setting

STORE = "store"
_TOKENS = 8  # texts are padded to a multiple of so many tokens: few shapes are compiled


@dataclasses.dataclass(frozen=True)
class Config:
    """What is embedded, and how it is kept."""

    clip: str = setting("mini", 'a folder, a hub name, or "mini"')
    corpus: str = setting("", "the corpus: glyphs or array_record:FOLDER")
    pairs: int = setting(20_000, "pairs of the corpus; 0 for all of a prepared one")
    dataset: str = setting("", "the dataset, instead of a corpus")
    seed: int = setting(0, "seed of what is drawn")
    views: int = setting(0, "augmented views of each image")
    view_seed: int = setting(0, "seed of the views")
    dtype: str = setting("float16", "precision of the files", choices=store.DTYPES)
    batch_size: int = setting(256, "images a step, over all devices of this host")
    shard_rows: int = setting(8192, "items of a shard; what a killed run may have to do again")
    workers: int = setting(0, "threads that read images; 0 for one a core")
    compute_dtype: str = setting("float32", "precision of the frozen compute", choices=("float32", "bfloat16"))

    def __post_init__(self) -> None:
        if bool(self.corpus) == bool(self.dataset):
            raise InputError(f"--corpus={self.corpus!r} --dataset={self.dataset!r}: give one of them")
        at_least(self, 1, "batch_size", "shard_rows")
        at_least(self, 0, "pairs", "views", "workers")


@dataclasses.dataclass(frozen=True)
class Job:
    """One step: a run of items, as they are (view -1) or as one of their views."""

    shard: int
    items: range
    view: int


def jobs(about: dict[str, Any], shards: list[int], batch_size: int) -> list[Job]:
    """The steps that make so many shards, shard after shard."""
    count = about["views"]["count"] if about["views"] else 0
    found = []
    for shard in shards:
        items = store.shard_range(about, shard)
        for view in range(-1, count):
            found += [Job(shard, items[start : start + batch_size], view) for start in range(0, len(items), batch_size)]
    return found


def pixels(job: Job, source: Corpus | Dataset, clip: Clip, batch_size: int, view_seed: int) -> np.ndarray:
    """The images of a step, transformed, filled up to a batch with black."""
    batch = np.zeros((batch_size, *clip.transform.output_size, 3), np.uint8)
    for place, item in enumerate(job.items):
        (image,) = source.images([item])
        name = f"image {item} of {source.name}"
        if job.view < 0:
            batch[place] = clip.transform.pixels(image, name)
        else:
            batch[place] = augmented_view(clip.transform, image, view_seed, item, job.view, name)
    return clip.transform.normalize(batch)


def texts(clip: Clip, captions: Sequence[str], batch_size: int, sharding: NamedSharding) -> np.ndarray:
    """Text features of captions; those longer than the clip's context are cut."""
    tokens = clip.tokenizer.encode(captions, truncate=True)
    width = min(-(-tokens.shape[1] // _TOKENS) * _TOKENS, clip.tokenizer.context_length)
    padding = ((0, 0), (0, width - tokens.shape[1]))
    tokens = np.pad(tokens, padding, constant_values=clip.tokenizer.pad_token_id)
    found = []
    for start in range(0, len(tokens), batch_size):
        part = tokens[start : start + batch_size]
        filled = np.pad(part, ((0, batch_size - len(part)), (0, 0)), mode="edge")
        found.append(np.asarray(gram.encode_text(clip, jax.device_put(filled, sharding)))[: len(part)])
    return np.concatenate(found)


def features(clip: Clip, batches: Iterator[np.ndarray], sharding: NamedSharding) -> Iterator[np.ndarray]:
    """Image features batch by batch; the next batch is handed to the devices before the last one is asked for."""
    before = None
    for batch in batches:
        found = gram.encode_image(clip, jax.device_put(batch, sharding))
        if before is not None:
            yield np.asarray(before)
        before = found
    if before is not None:
        yield np.asarray(before)


def embed(config: Config, folder: Path, clip: Clip, source: Corpus | Dataset) -> float:
    """Writes the shards of this process that are missing; returns the share of the time spent waiting for input."""
    if clip.transform.output_size is None:
        raise InputError("the clip's image transform makes images of any size; set a crop in its configuration")
    about = store.describe_store(
        clip,
        source,
        dtype=config.dtype,
        num_views=config.views,
        view_seed=config.view_seed,
        shard_rows=config.shard_rows,
    )
    missing = store.begin_store(folder, about)
    mine = [number for number in missing if number % jax.process_count() == jax.process_index()]
    mesh = runtime.make_mesh("batch", jax.local_devices())
    frozen = jax.device_put(clip, NamedSharding(mesh, PartitionSpec()))
    sharding = NamedSharding(mesh, PartitionSpec("batch"))
    # All devices get the same number of images; more than a shard's are never together.
    batch_size = -(-min(config.batch_size, config.shard_rows, len(source)) // mesh.size) * mesh.size
    steps = jobs(about, mine, batch_size)
    captions = source.captions if isinstance(source, Corpus) else None
    workers = config.workers or os.cpu_count() or 1
    with (
        loading.ordered(
            lambda index: pixels(steps[index], source, clip, batch_size, config.view_seed),
            len(steps),
            workers=workers,
            prefetch=workers + 1,
        ) as batches,
        runtime.Progress(sum(len(step.items) for step in steps), "images", unit="image") as progress,
    ):
        for number, group in itertools.groupby(
            zip(steps, features(frozen, batches, sharding), strict=True), lambda s: s[0].shard
        ):
            found: dict[int, list[np.ndarray]] = {}
            for step, array in group:
                found.setdefault(step.view, []).append(array[: len(step.items)])
                progress.update(len(step.items), waiting=batches.share)
            arrays = {"images": np.concatenate(found.pop(-1))}
            if found:
                arrays["views"] = np.stack([np.concatenate(found[view]) for view in sorted(found)], axis=1)
            if captions is not None:
                items = store.shard_range(about, number)
                arrays["texts"] = texts(frozen, captions[items.start : items.stop], batch_size, sharding)
            store.write_store_shard(folder, about, number, arrays)
        return batches.share


def run(config: Config, workdir: Any) -> None:
    """Embeds the corpus or dataset, or continues, and says what the store holds."""
    if "://" in os.fspath(workdir):
        raise InputError(f"--workdir={workdir}: a store is mapped into memory and must be in a local or mounted folder")
    clip = gram.load_clip(config.clip, compute_dtype=config.compute_dtype)
    if config.corpus:
        source = load_corpus(config.corpus, pairs=config.pairs, seed=config.seed)
    else:
        source = load_dataset(config.dataset, seed=config.seed)
    folder = Path(workdir) / STORE
    waiting = embed(config, folder, clip, source)
    runtime.barrier("embedded")
    if runtime.is_main():
        size = sum(file.stat().st_size for file in folder.glob("*.npy"))
        print(
            f"{len(source):,} items of {source.name} in {folder}: {size / len(source):,.0f} bytes each; "
            f"{100 * waiting:.0f} % of the time was spent waiting for images"
        )


if __name__ == "__main__":
    launch(run, Config, distributed="units")
