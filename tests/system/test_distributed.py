"""Experiments in two processes that meet on loopback: equal to one process, and nothing lost where one is killed."""

import json
import os
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import gram_jax as gram
from gram_jax import runtime, tasks
from gram_jax.array_file import read_arrays
from gram_jax.data import open_store
from gram_jax.testing import tiny_clip
from tests.system.processes import finish, start

NAMES = ["cat", "dog", "bird", "fish", "oak", "elm", "ash", "fir"]
META = (
    "--regulator=affine",
    "--learn=prompt,phi",
    "--batch_size=4",
    *("--warmup_steps=0", "--shots=2", "--fewest_shots=0", "--queries=1", "--cohesive=1"),
    "--ways=2",
    "--cross_ways=2",
    "--cross_queries=1",
    "--max_tokens=0",
    "--inner_steps=2",
    "--inner_rate=0.5",
    "--learning_rate=0.01",
    "--steps=40",
    "--eval_every=1",  # so that a step takes long enough to be killed in
    "--eval_batches=4",
    "--save_every=5",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A clip and a hierarchy of eight classes whose images point, with noise, to their class's text."""
    folder = tmp_path_factory.mktemp("files")
    clip = tiny_clip(text_layers=1, vision_layers=1, text_context_length=32)
    gram.save_clip(clip, folder / "clip")
    texts = np.asarray(gram.encode_text(clip, clip.tokenize([f"a photo of a {name}." for name in NAMES])))
    labels = np.arange(96) % 8
    images = texts[labels] + 0.1 * np.random.default_rng(0).standard_normal(texts[labels].shape)
    images = (images / np.linalg.norm(images, axis=1, keepdims=True)).astype(np.float32)
    about = {"clip": gram.weights_hash(clip.params), "corpus": "none", "content_hash": "", "pairs": 96, "seed": 0}
    themes = ["animal" if label < 4 else "tree" for label in labels]
    hierarchy = tasks.from_groups(themes, [NAMES[label] for label in labels], images, texts[labels], about=about)
    tasks.save_hierarchy(folder / "hierarchy.safetensors", hierarchy)
    return folder


@pytest.fixture(scope="module")
def command(files):
    return ("meta_train", (f"--clip={files / 'clip'}", f"--tasks={files / 'hierarchy.safetensors'}", *META))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def alone(command, cache, tmp_path_factory):
    """The folder of a run of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone")
    experiment, flags = command
    finish(start(experiment, workdir, *flags, cache=cache))
    return workdir


def assert_same_learning(found: Path, expected: Path):
    learned, other = (read_arrays(folder / "meta.safetensors")[0] for folder in (found, expected))
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5), learned, other)
    ours, theirs = (runtime.read_metrics(folder / "metrics.jsonl") for folder in (found, expected))
    assert [record["step"] for record in ours] == [record["step"] for record in theirs]  # each written once
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    rows, others = (json.loads((folder / "results.json").read_text())["rows"] for folder in (found, expected))
    assert len(rows) == len(others) > 0


def kill_one(command, cache, workdir, victim):
    """Starts two processes, kills one behind the first checkpoint, and returns how the other ended."""
    experiment, flags = command
    started = start(experiment, workdir, *flags, processes=2, cache=cache)
    wait_for_checkpoint(workdir, started)
    started[victim].kill()
    killed, other = time.monotonic(), started[1 - victim]
    errors = other.communicate(timeout=100)[1]
    assert time.monotonic() - killed < 60
    assert not (workdir / "meta.safetensors").exists()
    assert started[victim].wait() == -signal.SIGKILL
    started[victim].communicate()
    return other.returncode, errors


def wait_for_checkpoint(workdir, started):
    while not (workdir / "checkpoints" / "5").exists():
        assert all(process.poll() is None for process in started), [process.communicate() for process in started]
        time.sleep(0.01)


def test_two_processes_of_which_one_is_killed_learn_what_one_does(command, cache, alone, tmp_path):
    status, errors = kill_one(command, cache, tmp_path, victim=1)
    # Where the other is in a barrier, JAX sees the loss first and ends the program itself.
    assert status in (1, -signal.SIGABRT)
    if status == 1:
        assert "process 0 of 2 lost another process of this run" in errors
        assert "resume" in errors
        assert "Traceback" not in errors
    else:
        assert "another task died" in errors
    experiment, flags = command
    printed, silent = finish(start(experiment, tmp_path, *flags, processes=2, cache=cache))
    assert "meta checkpoint in" in printed
    assert "meta checkpoint in" not in silent
    assert_same_learning(tmp_path, alone)


@pytest.mark.slow
def test_two_processes_of_two_devices_learn_what_one_does(command, cache, alone, tmp_path):
    experiment, flags = command
    finish(start(experiment, tmp_path, *flags, processes=2, devices=2, cache=cache))
    assert_same_learning(tmp_path, alone)


@pytest.mark.slow
def test_where_process_0_is_killed_the_other_ends_too_and_one_process_can_go_on(command, cache, alone, tmp_path):
    status, errors = kill_one(command, cache, tmp_path, victim=0)
    assert status in (1, -signal.SIGABRT)  # JAX ends processes whose coordinator is gone
    assert "process 1 of 2 lost another process" in errors or "another task died" in errors
    experiment, flags = command
    finish(start(experiment, tmp_path, *flags, cache=cache))
    assert_same_learning(tmp_path, alone)


@pytest.mark.slow
def test_sigterm_to_one_process_ends_both_in_good_order_and_the_run_goes_on(command, cache, alone, tmp_path):
    experiment, flags = command
    started = start(experiment, tmp_path, *flags, processes=2, cache=cache)
    wait_for_checkpoint(tmp_path, started)
    started[1].terminate()
    finish(started)
    assert not (tmp_path / "meta.safetensors").exists()
    finish(start(experiment, tmp_path, *flags, processes=2, cache=cache))
    assert_same_learning(tmp_path, alone)


@pytest.mark.slow
def test_two_processes_write_the_store_of_one(files, cache, tmp_path):
    flags = (f"--clip={files / 'clip'}", "--corpus=glyphs", "--pairs=40", "--batch_size=5", "--shard_rows=10")
    flags += ("--dtype=float32", "--workers=1")
    finish(start("embed_corpus", tmp_path / "one", *flags, cache=cache))
    printed, silent = finish(start("embed_corpus", tmp_path / "two", *flags, processes=2, cache=cache))
    assert "40 items of glyphs" in printed
    assert "items" not in silent
    one, two = (open_store(tmp_path / name / "store") for name in ("one", "two"))
    assert one.about == two.about
    for part in ("images", "texts"):
        np.testing.assert_array_equal(getattr(one, part)[:], getattr(two, part)[:])


EVALUATE = (
    "--dataset=glyphs:chess,glyphs:digits",
    "--protocol=base_to_new",
    "--shots=1",
    "--seeds=1,2",
    "--select_seeds=3",
    "--learning_rate=0.1,1",
    "--steps=2",
    "--report_steps=",
    "--max_test_images=4",
)


def rows(folder):
    return json.loads((folder / "results.json").read_text())["rows"]


@pytest.mark.slow
def test_two_processes_measure_what_one_does_each_its_own_units(files, cache, tmp_path):
    flags = (f"--clip={files / 'clip'}", *EVALUATE)
    finish(start("evaluate", tmp_path / "one", *flags, cache=cache))
    printed, silent = finish(start("evaluate", tmp_path / "two", *flags, processes=2, cache=cache))
    assert "on the validation split" in printed
    assert "validation" not in silent
    assert rows(tmp_path / "two") == rows(tmp_path / "one")
    kept = [[json.loads(line) for line in path.read_text().splitlines()] for path in unit_files(tmp_path / "two")]
    assert [len(lines) for lines in kept] == [5, 5]
    units = [tuple(line["unit"]) for lines in kept for line in lines]
    assert len(units) == len(set(units)) == 2 + 2 * 2 + 2 * 2  # selection, zero-shot with two templates, CoOp
    # One process takes over what two have found, and does the rest.
    first, second = unit_files(tmp_path / "two")
    second.write_text("".join(line + "\n" for line in second.read_text().splitlines()[:-2]))
    os.remove(tmp_path / "two" / "results.json")
    finish(start("evaluate", tmp_path / "two", *flags, cache=cache))
    assert rows(tmp_path / "two") == rows(tmp_path / "one")
    assert len(first.read_text().splitlines()) == len(kept[0]) + 2


def unit_files(folder):
    return [folder / "rows.jsonl", folder / "rows-1.jsonl"]


def test_flags_that_do_not_go_together_end_in_one_line(tmp_path):
    cases = {
        ("--process_id=1",): "--process_id=1: add --distributed, in every process",
        ("--distributed",): "--coordinator_address=HOST:PORT",
    }
    started = [start("embed_corpus", tmp_path / "one", "--corpus=glyphs", *flags)[0] for flags in cases]
    # Two processes of one run, with other settings.
    flags = ("--corpus=glyphs", "--batch_size=2")
    started += start(
        "embed_corpus", tmp_path / "two", *flags, processes=2, own=(("--seed=1",), ("--seed=2", "--pairs=9"))
    )
    messages = [*cases.values(), "process 1 has --pairs=9 instead of 20000, --seed=2 instead of 1 of process 0"]
    messages += ["process 0 has --pairs=20000 instead of 9, --seed=1 instead of 2 of process 1"]
    for process, message in zip(started, messages, strict=True):
        errors = process.communicate(timeout=100)[1]
        assert process.returncode == 2
        assert message in errors
        assert "Traceback" not in errors
