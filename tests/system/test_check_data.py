"""experiments.check_data: what it finds, what it shows, and how it ends."""

import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from PIL import Image

from experiments import check_data
from gram_jax.data import coop
from tests.unit.data import layouts


def run(tmp_path, *specs, **settings):
    """The problems that a check, one a line; "" if there are none."""
    config = check_data.Config(dataset=specs, **settings)
    workdir = tmp_path / "out"
    workdir.mkdir(exist_ok=True)
    try:
        check_data.run(config, epath.Path(workdir))
    except ValueError as error:
        return str(error)
    return ""


def start(*flags):
    command = [sys.executable, "-m", "experiments.check_data", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_good_datasets(tmp_path, capsys):
    root = layouts.write_folder(tmp_path / "photos")
    assert run(tmp_path, f"folder:{root}", "glyphs:chess", images=6, read_all=True) == ""
    said = capsys.readouterr().out
    assert said.count("no problems found") == 2
    for line in ("train           8\n", "val             4\n", "test            4\n", "classes         2\n"):
        assert f"  {line}" in said
    assert "published" not in said
    assert "split: made, because none is given: each class divided 50/20/30 into train, val and test; seed 0" in said
    assert "template: a photo of a {}." in said
    assert "class names: big cat, dog" in said
    assert "16 of 16 images can be read" in said
    sheets = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert [name for name in sheets if name.endswith("photos.png")]
    assert "glyphs-chess.png" in sheets


def test_the_sheet_shows_every_class(tmp_path):
    layouts.write_coop(tmp_path, "eurosat")
    run(tmp_path, f"coop:{tmp_path}:eurosat", images=5, columns=5)
    (path,) = (tmp_path / "out").glob("*.png")
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert pixels.shape[:2] == (96 + 3 * 11 + 8, 5 * (96 + 8))
    # The middle of every cell has the color of its class: one after the other, in label order.
    for label in range(5):
        shown = pixels[40:60, label * 104 + 40 : label * 104 + 60].mean((0, 1))
        written = np.asarray(Image.open(layouts_image(tmp_path, label))).mean((0, 1))
        assert np.abs(shown - written).max() < 15


def layouts_image(tmp_path, label):
    folders = sorted(path for path in (tmp_path / "eurosat" / "2750").iterdir())
    return min(folders[label].iterdir())


def test_published_sizes_are_shown(tmp_path, capsys):
    layouts.write_coop(tmp_path, "dtd", per_class=(4, 2, 3))
    spec = f"coop:{tmp_path}:dtd"
    problems = run(tmp_path, spec)
    said = capsys.readouterr().out
    rows = {
        words[0]: words[1:] for words in map(str.split, said.splitlines()) if len(words) == 3 and words[1].isdigit()
    }
    assert rows == {
        "train": ["16", "2820"], "val": ["8", "1128"], "test": ["12", "1692"], "classes": ["4", "47"],
    }  # fmt: skip
    assert "found    split_zhou_DescribableTextures.json  the published split" in said
    assert problems.splitlines() == [
        "problems: 1",
        f"  {spec}: 4 classes, 47 are published; 16 train images, 2820 are published; 8 val images, 1128 are "
        "published; 12 test images, 1692 are published (--nocounts accepts this)",
    ]
    assert run(tmp_path, spec, counts=False) == ""


def test_missing_files_are_listed(tmp_path, capsys):
    copy = layouts.write_coop(tmp_path, "sun397")
    copy.split_file.unlink()
    (copy.folder / "ClassName.txt").unlink()
    (copy.folder / "Testing_01.txt").unlink()
    spec = f"coop:{tmp_path}:sun397"
    assert run(tmp_path, spec).splitlines() == [
        "problems: 2", f"  {spec}: ClassName.txt is missing", f"  {spec}: Testing_01.txt is missing",
    ]  # fmt: skip
    said = capsys.readouterr().out
    for line in (
        "absent   split_zhou_SUN397.json",
        "missing  ClassName.txt",
        "found    Training_01.txt",
        "missing  Testing_01.txt",
        "cannot be read: coop:sun397: there is no file",
    ):
        assert line in said


def test_a_missing_split_file_is_no_problem(tmp_path, capsys):
    layouts.write_coop(tmp_path, "eurosat").split_file.unlink()
    assert run(tmp_path, f"coop:{tmp_path}:eurosat", counts=False) == ""
    said = capsys.readouterr().out
    assert "absent   split_zhou_EuroSAT.json" in said
    assert "split: made, because split_zhou_EuroSAT.json is missing: each class divided 50/20/30" in said


def test_missing_images_are_problems(tmp_path):
    copy = layouts.write_coop(tmp_path, "food101")
    (copy.folder / copy.entries["train"][0][0]).unlink()
    problems = run(tmp_path, f"coop:{tmp_path}:food101")
    assert "1 of the 36 images of split_zhou_Food101.json" in problems
    assert "problems: 1\n" in problems


def test_imagenet_without_training_images_fails_but_is_described(tmp_path, capsys):
    copy = layouts.write_coop(tmp_path, "imagenet", per_class=(0, 0, 2))
    spec = f"coop:{tmp_path}:imagenet"
    assert not (copy.folder / "images" / "train").exists()
    assert f"{spec}: images/train/ is missing" in run(tmp_path, spec, counts=False)
    said = capsys.readouterr().out
    assert "note: images/train is missing" in said
    assert "note: names of several classes: 'sunglasses'" in said
    assert "class names: tench, goldfish" in said


def test_broken_images_are_named(tmp_path):
    root = layouts.write_folder(tmp_path / "photos", sizes={"train": 9, "test": 9})
    broken = [root / "train" / "dog" / f"{number:03d}.jpg" for number in (0, 8)]
    for path in broken:
        path.write_bytes(b"no image")
    spec = f"folder:{root}"
    on_the_sheet = run(tmp_path, spec, images=2, read_all=False)
    assert str(broken[0]) in on_the_sheet
    assert str(broken[1]) not in on_the_sheet
    assert run(tmp_path, spec, images=0, read_all=False) == ""
    whole = run(tmp_path, spec, images=0, read_all=True).splitlines()
    assert [line.split(" is no image")[0] for line in whole] == [
        "problems: 2", *(f"  {spec}: {path}" for path in broken),
    ]  # fmt: skip


def test_few_images_in_files_are_all_read_without_being_asked_for(tmp_path, monkeypatch, capsys):
    root = layouts.write_folder(tmp_path / "photos", sizes={"train": 9, "test": 9})
    broken = [root / "train" / "dog" / f"{number:03d}.jpg" for number in (0, 8)]
    for path in broken:
        path.write_bytes(b"no image")
    found = run(tmp_path, f"folder:{root}", images=2).splitlines()
    assert found[0] == "problems: 2"  # the one that is on the sheet as well is named once
    assert all(str(path) in line for path, line in zip(broken, found[1:], strict=True))
    assert "not all images were read" not in capsys.readouterr().out
    monkeypatch.setattr(check_data, "_FEW", 35)
    assert run(tmp_path, f"folder:{root}", images=0) == ""
    assert run(tmp_path, "glyphs:chess", images=0) == ""  # drawn, so that none can be broken
    assert capsys.readouterr().out.count("--read_all") == 1


def test_many_broken_images_are_counted(tmp_path):
    root = layouts.write_folder(tmp_path / "photos", sizes={"test": 8})
    for path in root.rglob("*.jpg"):
        path.write_bytes(b"no image")
    problems = run(tmp_path, f"folder:{root}", images=0, read_all=True).splitlines()
    assert (problems[0], len(problems)) == ("problems: 11", 12)
    assert problems[-1].endswith("6 more images cannot be read")


def test_a_root_stands_for_all_fifteen():
    found = coop.expand(["coop:/data", "coop:/data:dtd", "coop:/x/eurosat/", "csv:/a.csv"], coop.NAMES)
    named = tuple(f"coop:/data:{name}" for name in layouts.NAMES)
    assert found == (*named, "coop:/data:dtd", "coop:/x/eurosat/", "csv:/a.csv")
    assert [spec.rpartition(":")[2] for spec in coop.expand(["coop:/data"])] == [
        "imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft",
        "sun397", "dtd", "eurosat", "ucf101",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("/data:dtd", ("/data", "dtd")),
        ("/data/food-101", ("/data", "food101")),
        ("data/imagenet-adversarial/", ("data", "imagenet_a")),
        ("sun397", (".", "sun397")),
        ("/dtd", ("/", "dtd")),
    ],
)
def test_two_ways_to_name_a_dataset(rest, expected):
    assert coop.split_spec(rest) == expected


@pytest.mark.parametrize("count", [1, 3, 7, 40])
@pytest.mark.parametrize("sizes", [(5, 1, 3), (2,), (4, 4, 4, 4, 4, 4)])
def test_spread(sizes, count):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    positions = check_data.spread(labels, count)
    assert len(positions) == len(set(positions)) == min(count, len(labels))
    # As many classes as possible, and the first images of each.
    assert len(set(labels[positions])) == min(count, len(sizes))
    for position in positions:
        earlier = [other for other in np.flatnonzero(labels == labels[position]) if other < position]
        assert set(earlier) <= set(positions)


def test_as_a_program(tmp_path):
    root = layouts.write_folder(tmp_path / "photos")
    good = start(f"--dataset=folder:{root}", f"--workdir={tmp_path / 'good'}")
    assert good.returncode == 0, good.stderr
    assert f"16 images in {tmp_path / 'good'}" in good.stdout
    bad = start(f"--dataset=folder:{root},coop:{tmp_path}:dtd", f"--workdir={tmp_path / 'bad'}")
    assert bad.returncode == 2
    assert "no problems found" in bad.stdout
    assert f"error: problems: 1\n  coop:{tmp_path}:dtd: {tmp_path}/dtd/ is missing" in bad.stderr
    assert "Traceback" not in bad.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": ()}, "--dataset"),
        ({"images": -1}, "--images=-1"),
        ({"columns": 0}, "--columns=0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        check_data.Config(**settings)
