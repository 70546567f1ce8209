"""A new user's photos in folders: check them, tune a prompt, compare it to zero-shot, predict new photos."""

import csv
import random
import shutil

import numpy as np
import pytest
from etils import epath
from PIL import Image, ImageDraw
from sklearn.linear_model import LogisticRegression

import gram_jax as gram
from experiments import check_data, classify, predict
from experiments.evaluate import run as evaluate
from gram_jax.data import load_dataset
from gram_jax.testing import tiny_clip
from tests.unit.data import layouts

COLORS = {"blue_boat": (40, 70, 220), "green_tree": (30, 170, 60), "red_fish": (220, 40, 40), "white_cup": "white"}
NAMES = ("blue boat", "green tree", "red fish", "white cup")
COUNTS = {"train": 5, "val": 2, "test": 4}
ODD = {"train": 0, "val": 0, "test": 3}  # of the first class: grayscale, transparent, lying on its side


def draw(rng, color):
    """A colored shape somewhere on a pale ground, of any size."""
    width, height = rng.randrange(24, 60), rng.randrange(24, 60)
    photo = Image.new("RGB", (width, height), (rng.randrange(90, 256),) * 3)
    x, y, radius = rng.randrange(8, width - 8), rng.randrange(8, height - 8), rng.randrange(5, 12)
    ImageDraw.Draw(photo).ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    return photo


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photos as they come from a camera and a desktop, and a clip."""
    place, rng = tmp_path_factory.mktemp("my photos"), random.Random(0)
    for split, count in COUNTS.items():
        for name, color in COLORS.items():
            folder = place / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                draw(rng, color).save(folder / f"IMG_{number:04d}.JPG", "JPEG")
            (folder / ".DS_Store").write_bytes(b"\0")
        (place / "photos" / split / ".DS_Store").write_bytes(b"\0")
    odd = place / "photos" / "test" / "blue_boat"
    draw(rng, "blue").convert("L").save(odd / "grey.jpg")
    draw(rng, "blue").convert("RGBA").save(odd / "transparent.png")
    on_its_side = Image.Exif()
    on_its_side[0x0112] = 6
    draw(rng, "blue").save(odd / "turned.jpg", exif=on_its_side)
    (odd / "Thumbs.db").write_bytes(b"no image")
    gram.save_clip(tiny_clip(seed=2, text_layers=1, vision_layers=1, text_context_length=40), place / "clip")
    return place


@pytest.fixture(scope="module")
def evaluated(place):
    config = evaluate.Config(
        clip=str(place / "clip"),
        dataset=(f"folder:{place / 'photos'}",),
        protocol=("few_shot",),
        shots=(4,),
        seeds=(1, 2),
        select_seeds=(101, 102),
        learning_rate=(3.0, 30.0),
        steps=(20,),
        report_steps=(),
        save_prompts=True,
    )
    (place / "evaluate").mkdir()
    return evaluate.run(config, epath.Path(place / "evaluate"))


def check(place, dataset, **settings):
    workdir = epath.Path(place / "check_data")
    workdir.mkdir(exist_ok=True)
    check_data.run(check_data.Config(dataset=(f"folder:{dataset}",), **settings), workdir)


def test_first_the_photos_are_checked(place, tmp_path, capsys):
    check(place, place / "photos")
    said = capsys.readouterr().out
    for split, count in COUNTS.items():
        assert f"  {split:<7}  {4 * count + ODD[split]:>8}\n" in said
    assert f"class names: {', '.join(NAMES)}" in said
    assert "left out: 1 files that are no images ('test/blue_boat/Thumbs.db')" in said
    assert "47 of 47 images can be read" in said
    assert "  no problems found\n" in said
    assert (place / "check_data").is_dir()
    assert list((place / "check_data").glob("*photos.png"))
    # Few photos are all read: a broken one that the sheet does not show is found before anything is tuned on it.
    broken = shutil.copytree(place / "photos", tmp_path / "broken") / "train" / "red_fish" / "IMG_0004.JPG"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"problems: 1\n.*IMG_0004\.JPG"):
        check(place, tmp_path / "broken", images=4)


@pytest.mark.parametrize("method", ["zero_shot", "coop"])
def test_then_new_photos_are_predicted_as_well_as_was_measured(place, evaluated, tmp_path, method):
    (row, *_) = [row for row in evaluated.rows if row.method == method]
    assert (row.metric, row.split, row.seed) == ("accuracy", "all", None if method == "zero_shot" else 1)
    prompt = "" if method == "zero_shot" else place / "evaluate/prompts/folder_photos-few_shot-4-coop.safetensors"
    settings = {"images": str(place / "photos" / "test"), "clip": str(place / "clip"), "prompt": str(prompt)}
    tables = []
    for names in ({"classes_from": f"folder:{place / 'photos'}"}, {"classes": NAMES}):
        predict.run(predict.Config(**settings, **names), epath.Path(tmp_path))
        tables.append((tmp_path / "predictions.csv").read_text())
    assert tables[0] == tables[1]
    *lines, other = sorted(csv.DictReader(tables[0].splitlines()), key=lambda line: bool(line["error"]))
    assert other["file"] == "blue_boat/Thumbs.db"
    assert len(lines) == 4 * COUNTS["test"] + ODD["test"]
    assert not any(line["error"] for line in lines)
    right = [line["file"].partition("/")[0].replace("_", " ") == line["predicted"] for line in lines]
    assert sum(right) / len(right) == pytest.approx(row.value)


def test_zero_shot_and_the_tuned_prompt_are_compared(place, evaluated):
    said = (place / "evaluate" / "table.md").read_text()
    assert {row.method for row in evaluated.rows} == {"zero_shot", "zero_shot:own", "coop"}
    assert evaluated.config["selected"]["coop"]["chosen"]["learning_rate"] in (3.0, 30.0)
    assert [line for line in said.splitlines() if line.startswith("| zero-shot ")]
    assert [line for line in said.splitlines() if line.startswith("| CoOp ")]


def test_images_outside_class_folders_are_noted(tmp_path):
    layouts.write_folder(tmp_path / "photos")
    layouts.write_image(tmp_path / "photos" / "cover.jpg", 0, 0)
    dataset = load_dataset(f"folder:{tmp_path / 'photos'}")
    left_out = dataset.about["account"]["left_out"]
    assert left_out == {"images outside class folders": {"count": 1, "examples": ["cover.jpg"]}}
    assert len(dataset) == 16


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["photos/big_cat", "photos/dog"], r"'photos' .* give folder:.*/photos"),
        (["my_train/dog", "my_test/dog"], r"'my_test', 'my_train' look like splits"),
    ],
)
def test_folders_at_the_wrong_depth_are_named(tmp_path, folders, message):
    for folder in folders:
        layouts.write_image(tmp_path / folder / "a.jpg", 0, 0)
    with pytest.raises(ValueError, match=message):
        load_dataset(f"folder:{tmp_path}")


@pytest.fixture(scope="module")
def classified(place):
    (place / "classify").mkdir()
    config = classify.Config(
        images=str(place / "photos"), clip=str(place / "clip"), learning_rate=(3.0, 30.0), steps=20, batch_size=8
    )
    return classify.run(config, epath.Path(place / "classify"))


def test_one_command_makes_a_classifier_that_is_as_good_as_measured(place, classified, evaluated):
    values = {row.method: row.value for row in classified.rows}
    assert set(values) == {"zero_shot", "linear_probe", "coop"}
    # Zero-shot is that of evaluate, and the classifier, loaded with its clip, is as good on the files themselves.
    assert values["zero_shot"] == next(row.value for row in evaluated.rows if row.method == "zero_shot")
    files = sorted(path for path in (place / "photos" / "test").rglob("*.*") if path.suffix in (".JPG", ".jpg", ".png"))
    model = gram.PromptClassifier.load(place / "classify" / "classifier.safetensors")
    truth = [path.parent.name.replace("_", " ") for path in files]
    assert (model.predict(files) == np.array(truth)).mean() == pytest.approx(values["coop"])
    rows = list(csv.DictReader((place / "classify" / "predictions.csv").read_text().splitlines()))
    assert sorted(row["file"] for row in rows) == [str(path.relative_to(place / "photos")) for path in files]
    for method, value in values.items():
        assert np.mean([row[method] == row["class"] for row in rows]) == pytest.approx(value)
    page = (place / "classify" / "report.html").read_text()
    assert page.count("Confusion matrix.") == len(values)  # of each method, from its stored predictions
    assert page.count("data:image/") >= min(3, sum(row["coop"] != row["class"] for row in rows))
    assert classified.config["fitted"]["images"] == 4 * (COUNTS["train"] + COUNTS["val"])
    assert classified.config["datasets"]["folder:photos"]["account"]["left_out"]


def test_a_linear_probe_is_chosen_on_val_and_fitted_to_all_labeled_images(place, classified):
    clip = gram.load_clip(place / "clip")
    dataset = load_dataset(f"folder:{place / 'photos'}")
    features = classify.encoded(clip, dataset, 8).features(dataset)
    labeled, test = dataset.splits != "test", dataset.splits == "test"
    scores = [
        LogisticRegression(C=10.0**exponent, max_iter=1000)
        .fit(features[labeled], dataset.labels[labeled])
        .score(features[test], dataset.labels[test])
        for exponent in (-6, 0, 6)
    ]
    measured = next(row.value for row in classified.rows if row.method == "linear_probe")
    assert min(scores) - 0.1 <= measured <= max(scores) + 0.1


def test_photos_that_evaluate_refuses_are_not_tuned_on(place, tmp_path):
    photos = tmp_path / "photos" / "only_class"
    shutil.copytree(place / "photos" / "train" / "red_fish", photos)
    with pytest.raises(ValueError, match=r"problems: 1\n.*one class, 'only class'"):
        classify.run(classify.Config(images=str(photos.parent), clip=str(place / "clip")), epath.Path(tmp_path))
    assert not (tmp_path / "classifier.safetensors").exists()


def test_without_the_default_backbone_the_way_to_get_it_is_named(monkeypatch):
    def absent(name):
        raise FileNotFoundError(f"{name!r} is not a local folder")

    monkeypatch.setattr(gram, "load_clip", absent)
    with pytest.raises(ValueError, match=r"hf download openai/clip-vit-base-patch16.*--clip=FOLDER.*--clip=mini"):
        classify.load_backbone(classify.BACKBONE)
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        classify.load_backbone("elsewhere")
