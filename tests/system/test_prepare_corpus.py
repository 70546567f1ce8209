"""experiments.prepare_corpus: content of the dataset, skipped entries, kills."""

import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from experiments import prepare_corpus
from gram_jax.clip.images import ImageError
from gram_jax.data import load_corpus, plan_units
from gram_jax.data.pairs import shards as pair_shards

Config = prepare_corpus.Config
ROOT = Path(__file__).parents[2]


def encoded(seed: int, kind: str = "JPEG", side: int = 12) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (side, side + seed % 5, 3), np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


def fill(folder: Path, pairs: list[tuple[bytes, str]]) -> str:
    """A folder of images and captions, as a source."""
    folder.mkdir()
    for number, (image, caption) in enumerate(pairs):
        (folder / f"{number:04d}.jpg").write_bytes(image)
        (folder / f"{number:04d}.txt").write_text(caption)
    return f"folder:{folder}"


def prepare(config: Config, workdir: Path) -> Path:
    workdir.mkdir(exist_ok=True)
    prepare_corpus.run(config, workdir)
    return workdir / "dataset"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def pairs():
    return [(encoded(seed, "PNG" if seed % 3 == 0 else "JPEG"), f"caption {seed} é\nline") for seed in range(11)]


@pytest.fixture(scope="module")
def config(pairs, tmp_path_factory):
    return Config(source=fill(tmp_path_factory.mktemp("source") / "images", pairs), shard_pairs=4, workers=2)


@pytest.fixture(scope="module")
def dataset(config, tmp_path_factory):
    return prepare(config, tmp_path_factory.mktemp("prepared"))


def test_tfds_opens_it_and_finds_every_byte(dataset, pairs):
    builder = tfds.builder_from_directory(dataset)
    assert (builder.info.name, builder.info.splits["train"].shard_lengths) == ("pairs", [4, 4, 3])
    raw = builder.as_data_source(split="train", decoders={"image": tfds.decode.SkipDecoding()})
    assert [(record["image"], record["caption"].decode()) for record in raw] == pairs
    assert raw[7]["source"] == b"0007.jpg"
    decoded = builder.as_data_source(split="train")[5]["image"]
    np.testing.assert_array_equal(decoded, np.asarray(Image.open(io.BytesIO(pairs[5][0]))))
    names = sorted(path.name for path in dataset.iterdir())
    shards = [f"pairs-train.array_record-{number:05d}-of-00003" for number in range(3)]
    assert names == ["captions.jsonl", "dataset_info.json", "features.json", "manifest.json", *shards]


def test_it_is_a_corpus(dataset, pairs):
    corpus = load_corpus(f"array_record:{dataset}", pairs=0)
    assert corpus.captions == tuple(caption for _, caption in pairs)
    assert corpus.references == tuple(range(11))
    for number in (0, 3, 10):
        (image,) = corpus.images([number])
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(pairs[number][0])).convert("RGB")))
    first = load_corpus(f"array_record:{dataset}", pairs=5)
    assert (len(first), first.captions) == (5, corpus.captions[:5])
    assert load_corpus(corpus.name, pairs=0).content_hash == corpus.content_hash != first.content_hash


def test_the_hash_is_that_of_the_content_wherever_it_lies_and_however_it_is_cut(config, dataset, pairs, tmp_path):
    digests = [
        hashlib.sha256(len(image).to_bytes(8, "little") + image + caption.encode()).digest() for image, caption in pairs
    ]
    manifest = json.loads((dataset / "manifest.json").read_text())
    assert manifest["content_hash"] == hashlib.sha256(b"".join(digests)).hexdigest()
    other = prepare(dataclasses.replace(config, shard_pairs=6, workers=1, name="others"), tmp_path)
    corpora = [load_corpus(f"array_record:{folder}", pairs=0) for folder in (dataset, other)]
    assert corpora[0].content_hash == corpora[1].content_hash
    assert len(list(other.glob("others-train.array_record-*-of-00002"))) == 2


def test_the_same_command_does_nothing_and_other_settings_are_refused(config, dataset, capsys, monkeypatch):
    before = files(dataset)
    monkeypatch.setattr(prepare_corpus, "write_shards", lambda *_: pytest.fail("read again"))
    prepare(dataclasses.replace(config, workers=1, max_broken=0.5), dataset.parent)
    assert "exists already" in capsys.readouterr().out
    assert files(dataset) == before
    several = r"name was 'pairs' and is 'others'; shard_pairs was 4 and is 5"
    with pytest.raises(ValueError, match=several):
        prepare(dataclasses.replace(config, shard_pairs=5, name="others"), dataset.parent)
    assert files(dataset) == before
    state = dataset.parent / "prepare.json"
    whole = state.read_bytes()
    state.write_bytes(whole[:40])
    with pytest.raises(ValueError, match=r"prepare\.json is damaged"):
        prepare(config, dataset.parent)
    state.write_bytes(whole)


def test_what_is_broken_is_skipped_counted_and_listed(pairs, tmp_path, capsys):
    whole = encoded(3)
    icon = io.BytesIO()
    Image.new("RGB", (2000, 3)).save(icon, "PNG")
    broken = {
        2: (whole[: len(whole) * 2 // 3], "truncated", "truncated or damaged"),
        4: (b"%!PS-Adobe-3.0 EPSF-3.0\n", "a program", "no image of a known format"),
        5: (encoded(4, "PNG", side=100), "large", "the limit is 5000"),
        7: (icon.getvalue(), "a line", "2000 x 3 pixels"),
        8: (b"", "an empty file", "its file is empty"),
        9: (encoded(5), " \n", "it is empty"),
    }
    entries = [broken[number][:2] if number in broken else pairs[number] for number in range(11)]
    source = fill(tmp_path / "images", entries)
    (tmp_path / "images" / "0010.txt").unlink()
    config = Config(source=source, shard_pairs=3, workers=1, max_pixels=5000, max_broken=0.01)
    message = r"7 of 11 entries .*\(4 broken image, 2 no caption, 1 no image\).* 64 %"
    with pytest.raises(ValueError, match=message) as refused:
        prepare(config, tmp_path / "run")
    assert "--max_broken=0.65" in str(refused.value)
    assert not (tmp_path / "run" / "dataset").exists()
    listed = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert [entry["name"] for entry in listed] == [f"{number:04d}.jpg" for number in (*broken, 10)]
    for entry, (_, _, detail) in zip(listed, broken.values(), strict=False):
        assert detail in entry["detail"]
    # Nothing is read a second time.
    (tmp_path / "images").rename(tmp_path / "gone")
    dataset = prepare(dataclasses.replace(config, max_broken=0.65), tmp_path / "run")
    assert "skipped: 4 broken image, 2 no caption, 1 no image" in capsys.readouterr().out
    corpus = load_corpus(f"array_record:{dataset}", pairs=0)
    assert corpus.captions == tuple(pairs[number][1] for number in (0, 1, 3, 6))


def test_of_equal_pairs_the_first_is_kept(pairs, tmp_path):
    # The third shard holds nothing new; the same image under another caption is another pair.
    order = [0, 1, 2, 1, 3, 0, 1, 0, 1, 4]
    entries = [pairs[number] for number in order]
    entries[5] = (pairs[0][0], "other words")
    config = Config(source=fill(tmp_path / "images", entries), shard_pairs=3, workers=1, drop_duplicates=True)
    dataset = prepare(config, tmp_path / "run")
    corpus = load_corpus(f"array_record:{dataset}", pairs=0)
    kept = [0, 1, 2, 4, 5, 9]
    assert corpus.captions == tuple(entries[number][1] for number in kept)
    source = tfds.builder_from_directory(dataset).as_data_source(split="train")
    assert [int(record["source"][:4]) for record in source] == kept
    assert len(list(dataset.glob("*array_record*-of-00003"))) == 3
    assert json.loads((dataset / "manifest.json").read_text())["duplicates"] == 4
    plain = prepare(dataclasses.replace(config, drop_duplicates=False), tmp_path / "plain")
    assert len(load_corpus(f"array_record:{plain}", pairs=0)) == 10


@pytest.mark.parametrize("drop_duplicates", [False, True])
def test_publishing_may_be_interrupted_between_any_two_files(pairs, tmp_path, monkeypatch, drop_duplicates):
    entries = [pairs[number] for number in (0, 1, 1, 2, 3, 4, 5, 5, 6)]
    source = fill(tmp_path / "images", entries)
    config = Config(source=source, shard_pairs=3, workers=1, drop_duplicates=drop_duplicates)
    expected = files(prepare(config, tmp_path / "whole"))
    replace, moved = os.replace, []

    def interrupted(source, target, **settings):
        if Path(target).parent.name == "dataset":
            moved.append(target)
            if len(moved) == 2:
                raise KeyboardInterrupt
        return replace(source, target, **settings)

    for _ in range(4):  # before the second shard, the third one, the captions, the manifest
        moved.clear()
        monkeypatch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, tmp_path / "stopped")
        monkeypatch.undo()
    assert files(prepare(config, tmp_path / "stopped")) == expected


def test_a_damaged_archive_counts_as_a_whole_one(pairs, tmp_path):
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            for key, (image, caption) in enumerate(pairs):
                for suffix, part in ((".jpg", image), (".txt", caption.encode())):
                    header = tarfile.TarInfo(f"{key:03d}{suffix}")
                    header.size = len(part)
                    archive.addfile(header, io.BytesIO(part))
    whole = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[: whole.index(b"010.txt") + 100])
    config = Config(source=f"webdataset:{tmp_path}/{{0..1}}.tar", workers=1, max_broken=0.2)
    with pytest.raises(ValueError, match=r"1 of 22 entries .*\(1 damaged archive\).* 50 %"):
        prepare(config, tmp_path / "run")
    dataset = prepare(dataclasses.replace(config, max_broken=0.5), tmp_path / "run")
    assert len(load_corpus(f"array_record:{dataset}", pairs=0)) == 11 + 10


def test_a_source_that_changes_is_refused(tmp_path, pairs):
    fill(tmp_path / "images", pairs)
    table = tmp_path / "pairs.csv"
    table.write_text("path,caption\n" + "".join(f"images/{number:04d}.jpg,x\n" for number in range(9)))
    config = Config(source=f"csv:{table}", shard_pairs=5, workers=1)
    (tmp_path / "run").mkdir()
    assert prepare_corpus.plan(config, tmp_path / "run") == 2
    table.write_text("path,caption\nimages/0003.jpg,another\n")
    with pytest.raises(ValueError, match=r"pairs\.csv has changed since"):
        prepare(config, tmp_path / "run")


def test_replaced_photos_are_noticed_also_by_a_finished_corpus(tmp_path, pairs):
    source = fill(tmp_path / "images", pairs)
    config = Config(source=source, shard_pairs=5, workers=1)
    prepare(config, tmp_path / "run")
    prepare(config, tmp_path / "run")
    (tmp_path / "images" / "0003.jpg").write_bytes(encoded(99))
    with pytest.raises(ValueError, match="images has changed since"):
        prepare(config, tmp_path / "run")


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    class Full:
        def __init__(self, *_):
            pass

        def write(self, record):
            raise RuntimeError("write() failed: No space left on device")

        def close(self):
            raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr("array_record.python.array_record_module.ArrayRecordWriter", Full)
    unit = next(plan_units("glyphs"))
    with pytest.raises(OSError, match="No space left on device"):
        pair_shards.write_shard(tmp_path / "shard", unit, 10_000)
    assert pair_shards.read_shard(tmp_path / "shard") is None


def test_a_name_that_is_no_text_is_kept_readable(tmp_path):
    spec = fill(tmp_path / "images", [])
    for suffix, content in ((".png", encoded(0, "PNG")), (".txt", b"a")):
        (tmp_path / "images" / f"x\udcff{suffix}").write_bytes(content)
    dataset = prepare(Config(source=spec, workers=1), tmp_path / "run")
    (record,) = tfds.builder_from_directory(dataset).as_data_source(split="train")
    assert record["source"] == rb"x\udcff.png"


def test_nothing_at_all_is_an_error(tmp_path):
    config = Config(source=fill(tmp_path / "images", [(b"no image", "a")]), workers=1, max_broken=1.0)
    with pytest.raises(ValueError, match=r"folder:.*/images"):
        prepare(config, tmp_path / "run")


def test_a_dataset_that_is_incomplete_or_damaged_is_no_corpus(dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no prepared corpus"):
        load_corpus(f"array_record:{tmp_path}")
    with pytest.raises(ValueError, match=r"pairs=20000: .*11"):
        load_corpus(f"array_record:{dataset}")
    copy = tmp_path / "copy"
    for remove, message in (
        ("pairs-train.array_record-00001-of-00003", "1 of 3 files of split train are missing"),
        ("captions.jsonl", r"captions\.jsonl"),
    ):
        copy.mkdir(exist_ok=True)
        for name, whole in files(dataset).items():
            (copy / name).write_bytes(whole)
        (copy / remove).unlink()
        with pytest.raises(ValueError, match=message):
            load_corpus(f"array_record:{copy}", pairs=0)
    (copy / "captions.jsonl").write_text('"a"\n')
    with pytest.raises(ValueError, match="1 captions of 11"):
        load_corpus(f"array_record:{copy}", pairs=0)
    (copy / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"manifest\.json"):
        load_corpus(f"array_record:{copy}", pairs=0)


def test_an_image_that_was_not_checked_is_named_when_it_is_read(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(pair_shards, "check_image", lambda pair, _: pair)
    (unit,) = plan_units(fill(tmp_path / "images", [(b"no image", "a")]))
    pair_shards.write_shard(tmp_path / "0", unit, 1)
    from gram_jax.data.pairs import prepared as pair_dataset

    pair_dataset.publish(tmp_path / "dataset", [tmp_path / "0"], name="pairs", source="a folder")
    with pytest.raises(ImageError, match=rf"image 0 of {tmp_path}/dataset is no image"):
        load_corpus(f"array_record:{tmp_path}/dataset", pairs=0).images([0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_broken": 1.5}, "--max_broken=1.5"),
        ({"shard_pairs": 0}, "--shard_pairs=0"),
        ({"workers": -1}, "--workers=-1"),
        ({"name": "My Pairs"}, "--name='My Pairs'"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


def start(workdir: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments.prepare_corpus", f"--workdir={workdir}", *flags]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_run_that_was_killed_continues_to_the_same_bytes(tmp_path):
    # Large enough that eight shards take more than a moment.
    images = [encoded(seed, side=1000) for seed in range(4)]
    source = fill(tmp_path / "images", [(images[number % 4], f"caption {number % 14}") for number in range(32)])
    flags = (f"--source={source}", "--shard_pairs=4", "--workers=1", "--drop_duplicates")
    workdir = tmp_path / "killed"
    killed, deadline = start(workdir, *flags), time.monotonic() + 60
    while not list(workdir.glob("shards/*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.kill()
    killed.communicate(timeout=30)  # ends when the last worker has closed its end: they do not outlive the program
    finished = len(list(workdir.glob("shards/*.json")))
    assert 0 < finished < 8
    again = start(workdir, *flags)
    printed, errors = again.communicate(timeout=100)
    assert again.returncode == 0, errors
    assert "28 pairs" in printed  # pairs repeat after 28
    config = Config(source=source, shard_pairs=4, workers=2, drop_duplicates=True)
    assert files(workdir / "dataset") == files(prepare(config, tmp_path / "whole"))
    assert not (workdir / "shards").exists()


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"letter {number}")
    return folder


def test_a_source_that_was_moved_has_not_changed(photos, tmp_path, capsys, monkeypatch):
    config = Config(source=f"folder:{photos}", workers=1)
    prepare(config, tmp_path / "run")
    moved = photos.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    for source in (str(moved), "elsewhere", "./elsewhere/"):
        prepare(dataclasses.replace(config, source=f"folder:{source}"), tmp_path / "run")
        assert "exists already" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["caption", "image", "new", "gone", "renamed", "no caption"])
def test_a_folder_that_changes_is_noticed(photos, tmp_path, change):
    config = Config(source=f"folder:{photos}", workers=1, max_broken=1.0)
    prepare(config, tmp_path / "run")
    match change:
        case "caption":
            (photos / "1.txt").write_text("another")
        case "image":
            Image.new("RGB", (9, 9)).save(photos / "1.png")
        case "new":
            Image.new("RGB", (8, 8)).save(photos / "3.png")
        case "gone":
            (photos / "1.png").unlink()
        case "renamed":
            (photos / "1.png").rename(photos / "4.png")
        case "no caption":
            (photos / "1.txt").unlink()
    with pytest.raises(ValueError, match=r"has changed since .* give another --workdir"):
        prepare(config, tmp_path / "run")
