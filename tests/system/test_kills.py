"""Programs that are killed and started again by the same command end with the bytes of a run that nobody touched.

Each program is told to stop (SIGTERM, status 0), started again, killed without a warning when it has finished so many
of its pieces, drawn by a seed, and started again. The slow tests kill each many times, also while a checkpoint is being
written and at any moment from the start on. `test_prepare_corpus` and `test_embed_corpus` hold short ones of their own.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gram_jax as gram
from gram_jax import tasks
from gram_jax.data import load_corpus
from tests.system.test_evaluate import spread_clip

ROOT = Path(__file__).parents[2]
WAIT = 900.0  # seconds for what takes a few on an idle machine, and minutes on a busy one
PAIRS, IMAGES = 96, 48


@dataclasses.dataclass(frozen=True)
class Program:
    """An experiment in a tiny configuration.

    Attributes:
      flags: its command line, relative to the folder of inputs.
      pieces: how many pieces of work are finished and on disk in a work directory.
      total: how many there are in the end.
      results: the files, by pattern, that must come out the same.
    """

    flags: tuple[str, ...]
    pieces: Callable[[Path], int]
    total: int
    results: tuple[str, ...]


def lines(name: str) -> Callable[[Path], int]:
    return lambda workdir: (workdir / name).read_bytes().count(b"\n") if (workdir / name).exists() else 0


def matching(pattern: str) -> Callable[[Path], int]:
    return lambda workdir: len(list(workdir.glob(pattern)))


PROGRAMS = {
    "meta_train": Program(
        (
            *("--tasks=hierarchy.safetensors", "--clip=clip", "--regulator=gated_low_rank(rank=2, hidden=3)"),
            *("--steps=40", "--batch_size=2", "--ways=2", "--cross_ways=2", "--cross_queries=1", "--max_tokens=0"),
            *("--warmup_steps=6", "--shots=2", "--fewest_shots=0", "--queries=1", "--cohesive=1", "--inner_steps=1"),
            *("--eval_every=10", "--eval_batches=1", "--save_every=4", "--devices=1"),
        ),
        lines("metrics.jsonl"),
        40 + 5,
        ("meta.safetensors", "metrics.jsonl", "results.json"),
    ),
    "evaluate": Program(
        (
            *("--clip=clip", "--dataset=glyphs:chess", "--shots=1,2,3,4", "--seeds=1,2", "--select_seeds=3,4"),
            *("--learning_rate=0.1,1", "--steps=2", "--report_steps=0", "--batch_size=12", "--max_test_images=2"),
            *("--protocol=few_shot,base_to_new", "--schedule=constant"),
        ),
        lines("rows.jsonl"),
        1 + 2 * (2 + 2 * 4),
        ("rows.jsonl", "results.json", "table.md", "table.csv"),
    ),
    "pretrain_clip": Program(
        (
            *("--steps=20", "--batch_size=8", "--warmup=1", "--decay=2", "--ramp=1", "--vocabulary=560"),
            *("--vocabulary_pairs=200", "--embed_dim=16", "--vision_width=32", "--vision_layers=1", "--text_width=32"),
            *("--text_layers=1", "--save_every=4", "--eval_every=20", "--probe_images=2", "--datasets=chess"),
        ),
        matching("checkpoints/[0-9]*[0-9]"),
        4,  # as many are kept
        ("clip/*", "metrics.jsonl", "results.json"),
    ),
    "prepare_corpus": Program(
        ("--source=folder:images", "--shard_pairs=4", "--workers=1", "--drop_duplicates"),
        matching("shards/*.json"),
        IMAGES // 4,
        ("dataset/*",),
    ),
    "embed_corpus": Program(
        (
            *("--clip=clip", "--corpus=glyphs", "--pairs=400", "--batch_size=5", "--shard_rows=10"),
            "--workers=1",
        ),
        matching("store/rows-*.npy"),
        40,
        ("store/*",),
    ),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What the programs read: a clip, a hierarchy of eight planted classes, a folder of pairs."""
    folder = tmp_path_factory.mktemp("inputs")
    clip = spread_clip()
    gram.save_clip(clip, folder / "clip")
    names = ["cat", "dog", "bird", "fish", "oak", "elm", "ash", "fir"]
    labels = np.arange(PAIRS) % 8
    text = np.asarray(gram.encode_text(clip, clip.tokenize([f"a photo of a {name}." for name in names])))[labels]
    image = text + 0.1 * np.random.default_rng(0).standard_normal(text.shape)
    image = (image / np.linalg.norm(image, axis=1, keepdims=True)).astype(np.float32)
    about = {
        "clip": gram.weights_hash(clip.params),
        "corpus": "glyphs",
        "content_hash": load_corpus("glyphs", pairs=PAIRS).content_hash,
        "pairs": PAIRS,
        "seed": 0,
    }
    themes = ["animal" if label < 4 else "tree" for label in labels]
    hierarchy = tasks.from_groups(themes, [names[label] for label in labels], image, text, about=about)
    tasks.save_hierarchy(folder / "hierarchy.safetensors", hierarchy)
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        noise = rng.integers(0, 256, (400, 400, 3), np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{number:02d}.png", compress_level=0)
        (folder / "images" / f"{number:02d}.txt").write_text(f"caption {number}")
    return folder


def start(inputs: Path, name: str, workdir: Path) -> subprocess.Popen:
    """Types the command."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": paths,
        # All runs share what is compiled, however little.
        "JAX_COMPILATION_CACHE_DIR": str(inputs / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", f"experiments.{name}", f"--workdir={workdir}", *PROGRAMS[name].flags]
    with open(f"{workdir}.log", "a") as log:
        return subprocess.Popen(
            command, cwd=inputs, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )


def finish(process: subprocess.Popen, workdir: Path) -> None:
    assert process.wait(timeout=WAIT) == 0, log_of(workdir)


def log_of(workdir: Path) -> str:
    return Path(f"{workdir}.log").read_text()[-4000:]


def stop_when(process: subprocess.Popen, ready: Callable[[], bool], how: signal.Signals, workdir: Path) -> bool:
    """Sends a signal at a moment, and waits for the end; False where the program came to its end before."""
    deadline = time.monotonic() + WAIT
    try:
        while not ready() and process.poll() is None:
            assert time.monotonic() < deadline, log_of(workdir)
            time.sleep(0.001)
    except BaseException:
        process.kill()
        raise
    process.send_signal(how)
    status = process.wait(timeout=WAIT)
    if how == signal.SIGKILL:
        assert status in (-signal.SIGKILL, 0), log_of(workdir)
        return status != 0
    assert status == 0, log_of(workdir)
    return "asked to stop" in log_of(workdir)


def results(name: str, workdir: Path) -> dict[str, bytes]:
    paths = [path for pattern in PROGRAMS[name].results for path in sorted(workdir.glob(pattern))]
    found = {str(path.relative_to(workdir)): path.read_bytes() for path in paths}
    assert len(found) >= len(PROGRAMS[name].results)
    if "results.json" in found:  # the revision may change while the tests run
        found["results.json"] = re.sub(rb'"git": .*', b"", found["results.json"])
    return found


_WHOLE: dict[str, dict[str, bytes]] = {}


def whole(inputs: Path, name: str) -> dict[str, bytes]:
    """The results of a run that nobody touched."""
    if name not in _WHOLE:
        workdir = inputs / f"{name}_whole"
        finish(start(inputs, name, workdir), workdir)
        _WHOLE[name] = results(name, workdir)
    return _WHOLE[name]


def is_over(name: str, workdir: Path) -> bool:
    if name == "embed_corpus":
        return PROGRAMS[name].pieces(workdir) == PROGRAMS[name].total
    return (workdir / ("dataset/manifest.json" if name == "prepare_corpus" else "results.json")).exists()


@pytest.mark.parametrize("name", ["meta_train", "evaluate", "pretrain_clip"])
def test_stopped_and_killed_and_started_again_it_ends_with_the_same_bytes(inputs, name):
    expected, program, workdir = whole(inputs, name), PROGRAMS[name], inputs / f"{name}_killed"
    assert stop_when(start(inputs, name, workdir), lambda: program.pieces(workdir) >= 1, signal.SIGTERM, workdir)
    count = program.pieces(workdir) + random.Random(name).randrange(1, max(2, program.total // 3))
    logging.getLogger(__name__).warning("killed after %d of %d", count, program.total)  # shown where a test fails
    killed = start(inputs, name, workdir)
    assert stop_when(killed, lambda: program.pieces(workdir) >= count, signal.SIGKILL, workdir)
    assert not is_over(name, workdir)
    finish(start(inputs, name, workdir), workdir)
    assert results(name, workdir) == expected


@pytest.mark.slow
def test_told_to_stop_meta_training_saves_the_step_that_it_is_at(inputs):
    expected, program, workdir = whole(inputs, "meta_train"), PROGRAMS["meta_train"], inputs / "meta_train_told"
    told = start(inputs, "meta_train", workdir)
    assert stop_when(told, lambda: program.pieces(workdir) >= 5, signal.SIGTERM, workdir)
    assert not is_over("meta_train", workdir)
    logged = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    saved = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    assert max(saved) == max(logged)
    finish(start(inputs, "meta_train", workdir), workdir)
    assert results("meta_train", workdir) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_told_to_stop_it_ends_with_status_0_and_continues(inputs, name):
    expected, program, workdir = whole(inputs, name), PROGRAMS[name], inputs / f"{name}_stopped"
    count = program.total // 3
    assert stop_when(start(inputs, name, workdir), lambda: program.pieces(workdir) >= count, signal.SIGTERM, workdir)
    assert not is_over(name, workdir)
    assert "Traceback" not in log_of(workdir)
    finish(start(inputs, name, workdir), workdir)
    assert results(name, workdir) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_killed_many_times_at_any_moment_it_ends_with_the_same_bytes(inputs, name):
    expected, program, workdir = whole(inputs, name), PROGRAMS[name], inputs / f"{name}_many"
    rng, landed = random.Random(f"many {name}"), 0
    for number in range(12):
        if is_over(name, workdir):
            break
        process, begun = start(inputs, name, workdir), time.monotonic()
        if number % 3 == 2:  # at any moment of the first seconds, imports and what is read again included
            seconds = rng.uniform(0.1, 3.0)
            ready = lambda begun=begun, seconds=seconds: time.monotonic() - begun > seconds  # noqa: E731
        else:  # a moment after the next pieces
            more = program.pieces(workdir) + rng.randrange(1, 3)
            ready = lambda more=more: program.pieces(workdir) >= more  # noqa: E731
        landed += stop_when(process, ready, signal.SIGKILL, workdir)
    assert landed >= 3
    finish(start(inputs, name, workdir), workdir)
    assert results(name, workdir) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["meta_train", "pretrain_clip"])
def test_killed_while_a_checkpoint_is_being_written(inputs, name):
    expected, workdir = whole(inputs, name), inputs / f"{name}_writing"
    caught = 0
    for number in range(5):
        deepest = ("*tmp*", "*tmp*/*", "*tmp*/*/*", "*tmp*/*/*/*", "*tmp*/state*/*")[number]
        process, left = start(inputs, name, workdir), set(workdir.glob(f"checkpoints/{deepest}"))
        ready = lambda left=left, deepest=deepest: bool(set(workdir.glob(f"checkpoints/{deepest}")) - left)  # noqa: E731
        caught += stop_when(process, ready, signal.SIGKILL, workdir) and bool(list(workdir.glob("checkpoints/*tmp*")))
        if is_over(name, workdir):
            break
    assert caught >= 2
    finish(start(inputs, name, workdir), workdir)
    assert results(name, workdir) == expected
    assert not list(workdir.glob("checkpoints/*tmp*"))


def test_a_run_in_a_folder_where_another_is_at_work_changes_nothing(inputs):
    name, workdir = "embed_corpus", inputs / "shared"
    first = start(inputs, name, workdir)
    deadline = time.monotonic() + WAIT
    while not PROGRAMS[name].pieces(workdir) and time.monotonic() < deadline:
        assert first.poll() is None, log_of(workdir)
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # so that it is still at work when the second one comes
    try:
        second = start(inputs, name, workdir)
        assert second.wait(timeout=WAIT) == 2, log_of(workdir)
        assert f"error: another run (process {first.pid} on " in log_of(workdir)
        assert "Traceback" not in log_of(workdir)
    finally:
        first.kill()
        first.wait()
    assert not is_over(name, workdir)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of a size that can be changed."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(kilobytes: int, option: str = "remount,") -> None:
        command = ["mount", "-t", "tmpfs", "-o", f"{option}size={kilobytes}k", "tmpfs", str(folder)]
        subprocess.run(command, check=True, capture_output=True)

    try:
        resize(1 << 20, "")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root may mount a file system")
    yield folder, resize
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_on_a_full_disk_it_says_so_and_continues_once_there_is_room(inputs, small_disk, name):
    (disk, resize), expected = small_disk, whole(inputs, name)
    used = sum(path.stat().st_size for path in (inputs / f"{name}_whole").rglob("*") if path.is_file())
    told = 0
    for share in (0.1, 0.4, 0.8):
        resize(max(16, int(share * used / 1024)))
        process = start(inputs, name, disk)
        status = process.wait(timeout=WAIT)
        assert status in (0, 2), log_of(disk)
        told += status == 2
    assert "Traceback" not in log_of(disk)
    assert told
    assert "No space left on device" in log_of(disk)
    resize(1 << 20)
    finish(start(inputs, name, disk), disk)
    assert results(name, disk) == expected
