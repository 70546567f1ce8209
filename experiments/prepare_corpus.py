"""From image-text pairs as they lie on disk to one canonical TFDS dataset (array_record files, no TensorFlow).

    python -m experiments.prepare_corpus --source="webdataset:/data/cc3m/{00000..00331}.tar" --workdir=runs/cc3m
    python -m experiments.prepare_corpus --source=csv:/data/pairs.csv --caption_column=title --drop_duplicates
    python -m experiments.prepare_corpus --source=folder:/data/photos

Sources are csv:FILE, tsv:FILE, webdataset:FILES (tar archives as img2dataset writes them), folder:PATH (images with a
.txt or .json of the same stem), tfds:NAME[:VERSION][:SPLIT] and glyphs; `gram_jax.data.plan_units` says more. The
dataset in WORKDIR/dataset holds encoded images untouched, captions and names of origin. Read it as
``array_record:WORKDIR/dataset`` wherever a corpus is asked for, or with ``tfds.builder_from_directory``.

Every image is decoded once: broken ones, those above --max_pixels, and entries without a caption are skipped, counted
and listed in WORKDIR/skipped.jsonl. If they are more than --max_broken of all, the program ends with an error and
without a dataset, but loses nothing. It may be killed at any moment: the same command continues, to the same bytes.

One core reads, checks and writes 600 pairs a second (JPEG files of 512 x 384 pixels and 40 KB, from archives; 1,200 of
the glyphs), so that a million pairs take half an hour of one core. A pair takes its encoded image and 280 bytes on
disk. Memory does not grow with the corpus: 85 MB a worker and 180 MB for the program; --drop_duplicates takes another
80 bytes a pair at the end.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from gram_jax import runtime
from gram_jax.errors import InputError

from ._launch import at_least, launch, setting

MAY_CHANGE = ("workers", "max_broken")  # what an interrupted run may be continued with
STATE, PLAN, SHARDS, SKIPPED, DATASET = "prepare.json", "plan.jsonl", "shards", "skipped.jsonl", "dataset"
_KEPT = "what is finished is kept: once that is mended, the same command continues"


@dataclasses.dataclass(frozen=True)
class Config:
    """What is read, and what is let in."""

    source: str = setting(
        "glyphs", "csv:FILE, tsv:FILE, webdataset:FILES, folder:PATH, tfds:NAME[:VERSION][:SPLIT], or glyphs"
    )
    image_column: str = setting("", "column of paths (csv, tsv), feature of images (tfds); empty: by its usual names")
    caption_column: str = setting("", "column, feature or JSON key of captions; empty: by its usual names")
    data_dir: str = setting("", "folder of TFDS datasets; empty: TFDS's own")
    pairs: int = setting(20_000, "pairs that are drawn (glyphs)")
    seed: int = setting(0, "seed of what is drawn (glyphs)")
    name: str = setting("pairs", "name of the TFDS dataset")
    drop_duplicates: bool = setting(False, "of pairs with the same image and caption, to the byte, keep the first")
    max_broken: float = setting(0.01, "share of entries that may be broken or without a caption")
    max_pixels: int = setting(178_956_970, "images with more pixels are broken")
    max_bytes: int = setting(64 << 20, "encoded images with more bytes are refused")
    shard_pairs: int = setting(2000, "entries of a shard, at most; an archive is one shard whatever its size")
    workers: int = setting(0, "processes; 0 for one a core")

    def __post_init__(self) -> None:
        at_least(self, 1, "pairs", "max_pixels", "max_bytes", "shard_pairs")
        at_least(self, 0, "workers")
        if not 0.0 <= self.max_broken <= 1.0:
            raise InputError(f"--max_broken={self.max_broken}: it must be a share, from 0 to 1")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise InputError(f"--name={self.name!r}: lower case letters, digits and underscores, a letter first")


def plan(config: Config, workdir: Path) -> int:
    """Divides the source into units, a JSON line each, unless that is done; returns their number."""
    from gram_jax.data.pairs import shards as pair_shards
    from gram_jax.data.pairs.reading import Reading, plan_units

    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in MAY_CHANGE}
    path = workdir / STATE
    if path.exists():
        try:
            state = json.loads(path.read_text())
            begun, units = dict(state["settings"]), int(state["units"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"{path} is damaged ({error!r}); give another --workdir") from error
        differing = [
            f"--{name}={begun.get(name)!r}, this run has {value!r}"
            for name, value in settings.items()
            if begun.get(name) != value
        ]
        if differing:
            raise InputError(
                f"{workdir} was begun with {'; with '.join(differing)}; give the same settings, or another --workdir"
            )
        return units
    reading = Reading(
        image_column=config.image_column,
        caption_column=config.caption_column,
        max_bytes=config.max_bytes,
        unit_pairs=config.shard_pairs,
        data_dir=config.data_dir,
        pairs=config.pairs,
        seed=config.seed,
    )
    part, units = workdir / f"{PLAN}.part", 0
    with open(part, "w") as file:
        for unit in plan_units(config.source, reading):
            file.write(json.dumps(unit) + "\n")
            units += 1
    part.replace(workdir / PLAN)
    pair_shards.write_json(path, {"settings": settings, "units": units})
    return units


def write_shards(config: Config, workdir: Path, units: int) -> None:
    """Writes the shards that are not there yet, in as many processes as there are workers."""
    from gram_jax.data.pairs import shards as pair_shards

    folder = workdir / SHARDS
    folder.mkdir(exist_ok=True)
    for left in folder.glob("*.part"):
        left.unlink()
    done = [number for number in range(units) if pair_shards.read_shard(folder / f"{number:05d}") is not None]
    workers = min(config.workers or os.cpu_count() or 1, max(1, units - len(done)))
    totals = Counter()
    for number in done:
        _count(totals, pair_shards.read_shard(folder / f"{number:05d}"))
    with runtime.Progress(units, "shards", initial=len(done), unit="shard", every_seconds=10.0) as progress:
        if len(done) == units:
            return
        with runtime.worker_pool(workers) as pool:
            for shard in _written(pool, config, workdir, set(done), 2 * workers):
                _count(totals, shard)
                progress.update(pairs=f"{totals['pairs']:,}", skipped=f"{totals['skipped']:,}")


def _written(pool: ProcessPoolExecutor, config: Config, workdir: Path, done: set[int], ahead: int) -> Iterator[Any]:
    """Shards as they are finished; only so many units are in memory at a time."""
    from gram_jax.data.pairs.shards import write_shard

    running = set()
    try:
        with open(workdir / PLAN) as lines:
            for number, line in enumerate(lines):
                if number in done:
                    continue
                stem = workdir / SHARDS / f"{number:05d}"
                running.add(pool.submit(write_shard, stem, json.loads(line), config.max_pixels))
                if len(running) >= ahead:
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in finished)
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in finished)
    except BrokenExecutor as error:
        raise InputError(f"a worker process was ended, by a lack of memory perhaps; {_KEPT}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{error}. {_KEPT[0].upper()}{_KEPT[1:]}") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _count(totals: Counter, shard: Any) -> None:
    totals["pairs"] += shard.pairs
    totals["skipped"] += sum(shard.skipped.values())


def check_broken(config: Config, workdir: Path, units: int) -> None:
    """Lists what was skipped, and refuses a corpus of which too much is broken."""
    from gram_jax.data.pairs import shards as pair_shards
    from gram_jax.data.pairs.reading import DAMAGED

    pairs, skipped = 0, Counter()
    part = workdir / f"{SKIPPED}.part"
    with open(part, "w") as listed:
        for number in range(units):
            stem = workdir / SHARDS / f"{number:05d}"
            shard = pair_shards.read_shard(stem)
            pairs, skipped = pairs + shard.pairs, skipped + Counter(shard.skipped)
            with open(f"{stem}.skipped") as lines:
                entries = (dict(zip(("name", "reason", "detail"), json.loads(line), strict=True)) for line in lines)
                listed.writelines(json.dumps(entry) + "\n" for entry in entries)
    part.replace(workdir / SKIPPED)
    total = sum(skipped.values())
    # Nobody knows how many pairs a damaged archive has lost: archives are compared with archives.
    share = max(total / max(1, pairs + total), skipped[DAMAGED] / units)
    if share > config.max_broken:
        raise InputError(
            f"{total} of {pairs + total} entries are no pairs ({_told(skipped)}), {100 * share:.2g} % where "
            f"--max_broken={config.max_broken} allows {100 * config.max_broken:.2g} %; {workdir / SKIPPED} lists them. "
            f"All that was read is kept: the same command with --max_broken={min(1.0, share + 0.01):.2f} accepts it at "
            f"once; remove {workdir / SHARDS} to have everything read anew"
        )


def _told(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "none"


def run(config: Config, workdir: Any) -> None:
    """Prepares the corpus, or continues, and says what it holds."""
    from gram_jax.data.pairs import prepared as pair_dataset

    if "://" in os.fspath(workdir):
        raise InputError(f"--workdir={workdir}: array_record files are written to a local folder; copy them from there")
    workdir, started = Path(workdir), time.monotonic()
    units = plan(config, workdir)
    folder = workdir / DATASET
    if (folder / pair_dataset.MANIFEST).exists():
        print(f"{folder} is there already, of the same settings: nothing to do")
        manifest = pair_dataset.read_manifest(folder)
    else:
        write_shards(config, workdir, units)
        check_broken(config, workdir, units)
        stems = [workdir / SHARDS / f"{number:05d}" for number in range(units)]
        with runtime.Progress(units, "publishing", unit="shard") as progress:
            manifest = pair_dataset.publish(
                folder,
                stems,
                name=config.name,
                source=config.source,
                drop_duplicates=config.drop_duplicates,
                progress=progress.update,
            )
    shutil.rmtree(workdir / SHARDS, ignore_errors=True)
    seconds = time.monotonic() - started
    print(
        f"{manifest.pairs:,} pairs, {manifest.record_bytes / manifest.pairs:,.0f} bytes each, in {folder} "
        f"({seconds:.1f} s); skipped: {_told(manifest.skipped)}; duplicates dropped: {manifest.duplicates}"
    )
    print(f"read it as array_record:{folder}")


if __name__ == "__main__":
    launch(run, Config)
