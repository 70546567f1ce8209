"""Converts image-text pairs in common layouts to one TFDS dataset in array_record format, without TensorFlow.

    python -m experiments.prepare_corpus --source="webdataset:/data/cc3m/{00000..00331}.tar" --workdir=runs/cc3m
    python -m experiments.prepare_corpus --source=csv:/data/pairs.csv --caption_column=title --drop_duplicates
    python -m experiments.prepare_corpus --source=folder:/data/photos

Sources are csv:FILE, tsv:FILE, webdataset:FILES (tar archives as img2dataset writes them), folder:PATH (images with a
.txt or .json of the same stem), tfds:NAME[:VERSION][:SPLIT] and glyphs; see `gram_jax.data.plan_units`. The dataset in
WORKDIR/dataset holds encoded images unchanged, captions and names of origin. Use it as `array_record:WORKDIR/dataset`
for any --corpus, or open it with `tfds.builder_from_directory`.

Every image is decoded once. Broken images, images above --max_pixels, rows with more fields than the header, repeated
or ambiguous members of archives, and entries without a caption are skipped, counted and listed in
WORKDIR/skipped.jsonl. If their share exceeds --max_broken, the program ends with an error and without a dataset, but
keeps its work. What belongs to no pair (columns, files, members of archives) is counted in WORKDIR/account.json. After
a kill at any moment the same command resumes and writes the same bytes.

One core reads, checks and writes 600 pairs per second (JPEG files of 512 x 384 pixels and 40 KB, from archives; 1,200
of the glyphs): half an hour per million pairs. A pair needs its encoded image and 280 bytes on disk. Memory does not
grow with the corpus: 85 MB per worker and 180 MB for the program; --drop_duplicates adds 80 bytes per pair at the end.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from gram_jax import runtime
from gram_jax.data.account import Account
from gram_jax.data.pairs.base import DAMAGED, Reading
from gram_jax.data.pairs.prepared import MANIFEST, publish, read_manifest
from gram_jax.data.pairs.reading import plan_units
from gram_jax.data.pairs.shards import Shard, read_shard, write_shard
from gram_jax.errors import InputError, differences
from gram_jax.io import atomic_path, is_remote, read_json, write_json

from ._launch import at_least, launch, setting

# Worker processes import this module, so its imports must not import JAX.

MAY_CHANGE = ("workers", "max_broken", "data_dir")  # settings that may differ in a resumed run
STATE, PLAN, SHARDS, SKIPPED, DATASET = "prepare.json", "plan.jsonl", "shards", "skipped.jsonl", "dataset"
ACCOUNT = "account.json"
_KEPT = "finished work is kept: fix the cause and run the same command again"


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of the conversion."""

    source: str = setting(
        "glyphs", "csv:FILE, tsv:FILE, webdataset:FILES, folder:PATH, tfds:NAME[:VERSION][:SPLIT], or glyphs"
    )
    image_column: str = setting(
        "", "column of paths (csv, tsv), feature (tfds) or suffix (webdataset) of images; empty: common names"
    )
    caption_column: str = setting("", "column, feature or JSON key of captions; empty: common names")
    data_dir: str = setting("", "folder of TFDS datasets; empty: TFDS's default")
    pairs: int = setting(20_000, "number of pairs to draw (glyphs)")
    seed: int = setting(0, "seed of drawn pairs (glyphs)")
    name: str = setting("pairs", "name of the TFDS dataset")
    drop_duplicates: bool = setting(False, "keep the first of pairs with the same bytes of image and caption")
    max_broken: float = setting(0.01, "largest allowed share of skipped entries, from 0 to 1")
    max_pixels: int = setting(178_956_970, "images with more pixels are broken", most=2**62)
    max_bytes: int = setting(64 << 20, "larger encoded images are refused; bytes", most=2**62)
    shard_pairs: int = setting(2000, "most entries in a shard; an archive is one shard whatever its size")
    workers: int = setting(0, "processes; 0: one per core")

    def __post_init__(self) -> None:
        at_least(self, 1, "pairs", "max_pixels", "max_bytes", "shard_pairs")
        at_least(self, 0, "workers")
        if not 0.0 <= self.max_broken <= 1.0:
            raise InputError(f"--max_broken={self.max_broken}: it must be a share, from 0 to 1")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise InputError(f"--name={self.name!r}: use lower case letters, digits and underscores, a letter first")


def plan(config: Config, workdir: Path) -> int:
    """Divides the source into units, one JSON line each, unless a plan exists; returns the number of units."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in MAY_CHANGE}
    if (workdir / STATE).exists():
        units = _planned(workdir, settings)
        _check_source(config, workdir, units)
        return units
    units = 0
    with atomic_path(workdir / PLAN) as part, part.open("w") as file:
        for line in _lines(config):
            file.write(line)
            units += 1
    write_json(workdir / STATE, {"settings": settings, "units": units})
    return units


def _lines(config: Config) -> Iterator[str]:
    names = ("image_column", "caption_column", "max_bytes", "data_dir", "pairs", "seed")
    reading = Reading(unit_pairs=config.shard_pairs, **{name: getattr(config, name) for name in names})
    return (json.dumps(unit) + "\n" for unit in plan_units(config.source, reading))


def _check_source(config: Config, workdir: Path, units: int) -> None:
    """Raises InputError if the source has changed since it was planned; what is read outlives its source.

    A source in another folder with equal content is accepted; its units are planned with the new paths.
    """
    try:
        with open(workdir / PLAN) as planned, atomic_path(workdir / PLAN) as part, part.open("w") as file:
            for ours, theirs in itertools.zip_longest(planned, _lines(config)):
                if ours is None or theirs is None or _content(ours) != _content(theirs):
                    changed = f"--source={config.source} has changed since {workdir} was planned"
                    raise InputError(f"{changed}; give another --workdir to begin anew")
                file.write(theirs)
    except FileNotFoundError:
        read = all(read_shard(_stem(workdir, number)) for number in range(units))
        if not read and not (workdir / DATASET / MANIFEST).exists():
            raise


def _content(line: str) -> dict[str, Any]:
    """Returns a unit without the places of files and folders."""
    return {name: value for name, value in json.loads(line).items() if name not in ("root", "path", "folder")}


def _planned(workdir: Path, settings: dict[str, Any]) -> int:
    """Returns the number of units of an existing plan; raises InputError if its settings differ."""
    try:
        state = read_json(workdir / STATE)
        before, units = dict(state["settings"]), int(state["units"])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{workdir / STATE} is damaged ({error!r}); give another --workdir") from error
    kinds = ({**each, "source": str(each.get("source")).partition(":")[0]} for each in (before, settings))
    if changed := differences(*kinds):
        raise InputError(f"{workdir} has other settings: {'; '.join(changed)}; use the same, or give another --workdir")
    return units


def write_shards(config: Config, workdir: Path, units: int) -> None:
    """Writes the missing shards in parallel."""
    (workdir / SHARDS).mkdir(exist_ok=True)
    for leftover in (workdir / SHARDS).glob("*.part"):
        leftover.unlink()
    finished = {number: shard for number in range(units) if (shard := read_shard(_stem(workdir, number))) is not None}
    workers = min(config.workers or os.cpu_count() or 1, max(1, units - len(finished)))
    pairs = sum(shard.pairs for shard in finished.values())
    skipped = sum(sum(shard.skipped.values()) for shard in finished.values())
    with runtime.Progress(units, "reading", initial=len(finished), unit="shard", every_seconds=10.0) as progress:
        if len(finished) == units:
            return
        with runtime.worker_pool(workers) as pool:
            for shard in _written(pool, config, workdir, set(finished), 2 * workers):
                pairs, skipped = pairs + shard.pairs, skipped + sum(shard.skipped.values())
                progress.update(pairs=f"{pairs:,}", skipped=f"{skipped:,}")


def _written(pool: ProcessPoolExecutor, config: Config, workdir: Path, done: set[int], ahead: int) -> Iterator[Shard]:
    """Yields shards as they are finished; at most `ahead` units are in memory at a time."""
    running: set[Future[Shard]] = set()
    try:
        with open(workdir / PLAN) as lines:
            submitted = (  # one after the other, when there is room
                pool.submit(write_shard, _stem(workdir, number), json.loads(line), config.max_pixels)
                for number, line in enumerate(lines)
                if number not in done
            )
            while running := running | set(itertools.islice(submitted, ahead - len(running))):
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in finished)
    except BrokenExecutor as error:
        raise InputError(f"a worker process was killed, possibly for lack of memory; {_KEPT}") from error
    except (OSError, InputError) as error:
        raise InputError(f"{error}; {_KEPT}") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _stem(workdir: Path, number: int) -> Path:
    return workdir / SHARDS / f"{number:05d}"


def check_broken(config: Config, workdir: Path, units: int) -> None:
    """Lists the skipped entries; raises InputError if their share exceeds --max_broken."""
    pairs, skipped = 0, Counter()
    with atomic_path(workdir / SKIPPED) as part, part.open("w") as listing:
        for number in range(units):
            shard = read_shard(_stem(workdir, number))
            pairs, skipped = pairs + shard.pairs, skipped + Counter(shard.skipped)
            with open(f"{_stem(workdir, number)}.skipped") as lines:
                entries = (dict(zip(("name", "reason", "detail"), json.loads(line), strict=True)) for line in lines)
                listing.writelines(json.dumps(entry) + "\n" for entry in entries)
    total = sum(skipped.values())
    # A damaged archive has lost an unknown number of pairs: it is compared with the number of archives.
    share = max(total / max(1, pairs + total), skipped[DAMAGED] / units)
    if share > config.max_broken:
        raise InputError(
            f"{total} of {pairs + total} entries are skipped ({_counts(skipped)}): {100 * share:.2g} % exceeds "
            f"--max_broken={config.max_broken}; {workdir / SKIPPED} lists them. Run the same command with "
            f"--max_broken={min(1.0, share + 0.01):.2f} to accept them, or delete {workdir / SHARDS} to read again"
        )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "none"


def run(config: Config, workdir: Any) -> None:
    """Prepares the corpus, or resumes its preparation, and prints what it holds."""
    if is_remote(workdir):
        raise InputError(f"--workdir={workdir}: array_record files need a local folder; copy the dataset afterwards")
    workdir, begin = Path(workdir), time.monotonic()
    units = plan(config, workdir)
    folder = workdir / DATASET
    if (folder / MANIFEST).exists():
        print(f"{folder} exists already, with the same settings: there is nothing to do")
        manifest = read_manifest(folder)
    else:
        write_shards(config, workdir, units)
        check_broken(config, workdir, units)
        with runtime.Progress(units, "publishing", unit="shard") as progress:
            stems = [_stem(workdir, number) for number in range(units)]
            settings = {name: getattr(config, name) for name in ("name", "source", "drop_duplicates")}
            manifest = publish(folder, stems, **settings, progress=progress.update)
    shutil.rmtree(workdir / SHARDS, ignore_errors=True)
    size = f"{manifest.record_bytes / manifest.pairs:,.0f} bytes each"
    print(f"{manifest.pairs:,} pairs, {size}, in {time.monotonic() - begin:.1f} s")
    print(f"skipped: {_counts(manifest.skipped)}; duplicates dropped: {manifest.duplicates}")
    if manifest.skipped:
        print(f"what was skipped, one by one: {workdir / SKIPPED}")
    account = manifest.account()
    write_json(workdir / ACCOUNT, account.to_json())
    print("\n".join([*Account.from_json(manifest.unused).lines(), ""]), end="")
    print(f"dataset in {folder}; to use it: --corpus=array_record:{folder}")


if __name__ == "__main__":
    launch(run, Config)
