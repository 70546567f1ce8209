"""The fifteen datasets in CoOp's layout: published splits, made splits, and everything that can be wrong."""

import json
import pickle
import random
import shutil
from collections import defaultdict

import numpy as np
import pytest
from scipy.io import savemat

from gram_jax import evaluation
from gram_jax.clip import ImageError, ImageTransform
from gram_jax.data import base_and_new, load_dataset, restrict
from gram_jax.data.readers import coop
from tests.unit.data import layouts

WITH_SPLIT_FILE = (
    "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "sun397", "dtd", "eurosat", "ucf101",
)  # fmt: skip


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """The root of small copies of all fifteen, which no test changes, and what was written."""
    root = tmp_path_factory.mktemp("data")
    return root, layouts.write_all(root)


def load(root, name, seed=0):
    return load_dataset(f"coop:{root}:{name}", seed=seed)


def listed(dataset):
    """What a dataset holds, in the form that the layouts say what was written."""
    found = defaultdict(list)
    for reference, label, split in zip(dataset.references, dataset.labels.tolist(), dataset.splits, strict=True):
        found[str(split)].append((reference, label, dataset.class_names[label]))
    return dict(found)


def readable(entries):
    """Published names have spaces for underscores."""
    return {
        split: [(path, label, name.replace("_", " ")) for path, label, name in listed]
        for split, listed in entries.items()
        if listed
    }


@pytest.mark.parametrize("name", coop.NAMES)
def test_every_layout_is_read_in_its_order(copies, name):
    root, written = copies
    dataset = load(root, name)
    assert listed(dataset) == readable(written[name].entries)
    assert dataset.name == f"coop:{name}"
    assert dataset.domain == (name if name in coop.VARIANTS else "")
    assert dataset.about["split"].startswith("as published")
    transform = ImageTransform(size=8, crop=(8, 8))
    assert transform(dataset.images([0, len(dataset) - 1])).shape == (2, 8, 8, 3)


def test_names():
    assert coop.NAMES == layouts.NAMES
    assert len(coop.NAMES) == 15
    assert coop.VARIANTS == ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")


def test_what_is_read_does_not_hang_on_the_place(copies, tmp_path):
    root, written = copies
    shutil.copytree(written["dtd"].folder, tmp_path / "elsewhere" / "dtd")
    here, there = load(root, "dtd"), load(tmp_path / "elsewhere", "dtd")
    assert here.content_hash == there.content_hash
    assert here.images([0]) != there.images([0])


def test_a_dataset_travels_to_other_processes(copies):
    dataset = load(copies[0], "sun397")
    again = pickle.loads(pickle.dumps(dataset))
    assert again.images([3]) == dataset.images([3])


@pytest.mark.parametrize("shots", [1, 2])
def test_few_shot_draws_are_those_of_the_public_code(copies, shots):
    """From the split file itself: the lists by label in order of appearance, sampled with one generator."""
    root, written = copies
    dataset = load(root, "eurosat")
    train = json.loads(written["eurosat"].split_file.read_text())["train"]
    tracker = defaultdict(list)
    for path, label, _ in train:
        tracker[label].append(f"2750/{path}")
    random.seed(3)
    expected = [path for paths in tracker.values() for path in random.sample(paths, shots)]
    drawn = evaluation.few_shot(dataset, shots, seed=3)
    assert [dataset.references[position] for position in drawn] == expected
    base, new = base_and_new(len(dataset.class_names))
    assert restrict(dataset, base).class_names == (
        "Annual Crop Land", "Forest", "Herbaceous Vegetation Land",
    )  # fmt: skip
    assert restrict(dataset, new).class_names == ("Highway or Road", "Sea or Lake")


def by_rule(name, entries, seed):
    """The published rules, restated over what was written: split, then [(path, label)]."""
    random.seed(seed)
    classes = defaultdict(list)
    if name in ("caltech101", "food101", "dtd", "eurosat", "oxford_flowers"):
        pile = sorted((path, label) for split in entries.values() for path, label, _ in split)
        for path, label in pile:
            classes[label].append((path, label))
        # Flowers come in the order in which their labels first appear; folders come sorted.
        order = list(classes) if name == "oxford_flowers" else sorted(classes)
        train, val, test = [], [], []
        for label in order:
            images = classes[label]
            random.shuffle(images)
            n_train, n_val = round(len(images) * 0.5), round(len(images) * 0.2)
            train += images[:n_train]
            val += images[n_train : n_train + n_val]
            test += images[n_train + n_val :]
        return {"train": train, "val": val, "test": test}
    trainval = sorted((path, label) for split in ("train", "val") for path, label, _ in entries[split])
    for path, label in trainval:
        classes[label].append((path, label))
    train, val = [], []
    for images in classes.values():
        random.shuffle(images)
        held = round(len(images) * 0.2)
        val += images[:held]
        train += images[held:]
    return {"train": train, "val": val, "test": sorted((path, label) for path, label, _ in entries["test"])}


@pytest.mark.parametrize("name", WITH_SPLIT_FILE)
def test_a_split_that_is_made_follows_the_rule_and_says_so(tmp_path, name):
    copy = layouts.write_coop(tmp_path, name, per_class=(5, 2, 4))
    published = load(tmp_path, name)
    file = copy.split_file.name
    copy.split_file.unlink()
    for seed in (0, 4):
        made = load(tmp_path, name, seed)
        found = {split: [entry[:2] for entry in entries] for split, entries in listed(made).items()}
        assert found == by_rule(name, copy.entries, seed)
        assert made.class_names == published.class_names
        assert made.about["split"].startswith(f"made, because {file} is missing: ")
        assert made.about["split"].endswith(f"; seed {seed}")
    assert made.content_hash != published.content_hash
    assert made.template == published.template


def test_excluded_folders_and_stray_files(tmp_path):
    copy = layouts.write_coop(tmp_path, "caltech101")
    copy.split_file.unlink()
    images = copy.folder / "101_ObjectCategories"
    (images / "Faces" / "Thumbs.db").write_bytes(b"")
    (images / "Faces" / ".directory").write_bytes(b"")
    made = load(tmp_path, "caltech101")
    assert not any("BACKGROUND_Google" in path or "Faces_easy" in path for path in made.references)
    left_out = made.about["account"]["left_out"]
    assert left_out["files that are no images"] == {"count": 1, "examples": ["101_ObjectCategories/Faces/Thumbs.db"]}
    assert left_out["hidden files and folders"]["examples"] == ["101_ObjectCategories/Faces/.directory"]
    assert left_out["folders that are no classes of this dataset"]["count"] == 2


def test_imagenet_without_its_training_images(tmp_path):
    copy = layouts.write_coop(tmp_path, "imagenet")
    shutil.rmtree(copy.folder / "images" / "train")
    dataset = load(tmp_path, "imagenet")
    assert set(dataset.splits) == {"test"}
    assert dataset.about["notes"][0] == "images/train is missing"
    with pytest.raises(ValueError, match="'train'"):
        dataset.select("train")


def test_variants_take_the_class_names_of_imagenet_where_they_have_none(copies, tmp_path):
    for name in ("imagenet", "imagenet_a"):
        layouts.write_coop(tmp_path, name)
    (tmp_path / "imagenet-adversarial" / "classnames.txt").unlink()
    dataset = load(tmp_path, "imagenet_a")
    assert dataset.class_names == ("goldfish", "sunglasses")  # of the folders that there are, no more
    assert dataset.content_hash == load(copies[0], "imagenet_a").content_hash


def test_imagenetv2_counts_its_folders_as_numbers(tmp_path):
    folder = tmp_path / "imagenetv2"
    for label in range(12):  # as text, 10 and 11 come before 2
        layouts.write_image(folder / "imagenetv2-matched-frequency-format-val" / str(label) / "a.jpeg", label, 0)
    (folder / "classnames.txt").write_text("".join(f"n{label:08d} thing {label}\n" for label in range(12)))
    dataset = load(tmp_path, "imagenetv2")
    assert dataset.labels.tolist() == list(range(12))
    for reference, label in zip(dataset.references, dataset.labels, strict=True):
        assert f"/{label}/" in reference
        assert dataset.class_names[label] == f"thing {label}"
    shutil.rmtree(folder / "imagenetv2-matched-frequency-format-val" / "7")
    with pytest.raises(ValueError, match=r"12 classes.*: '7'"):
        load(tmp_path, "imagenetv2")


def edit_split(change):
    """A mistake that is made in the split file's document."""

    def mistake(copy):
        document = json.loads(copy.split_file.read_text())
        change(document)
        copy.split_file.write_text(json.dumps(document))

    return mistake


def edit(file, change):
    """A mistake that is made in a text file, where there is no split file."""

    def mistake(copy):
        for split_file in copy.folder.glob("split_zhou_*.json"):
            split_file.unlink()
        path = copy.folder / file
        path.write_text(change(path.read_text()))

    return mistake


def remove(*files):
    def mistake(copy):
        for file in files:
            path = copy.folder / file
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return mistake


def write_bytes(file, content):
    def mistake(copy):
        copy.split_file.unlink()
        (copy.folder / file).write_bytes(content)

    return mistake


def another_split_file(copy):
    other = layouts.write_coop(copy.folder.parent, "food101")
    shutil.copy(other.split_file, copy.split_file)


ACTIONS = "ucfTrainTestlist/classInd.txt"
MISTAKES = {
    "dtd": {
        "no folder": (remove("."), r".*dtd"),
        "other split file": (another_split_file, r"36 of the 36 images of .*dtd"),
        "not JSON": (lambda copy: copy.split_file.write_text('{"train": ['), r"Textures\.json is no JSON"),
        "not UTF-8": (lambda copy: copy.split_file.write_bytes(b"\xff\xfe{"), r"Textures\.json is no UTF-8"),
        "no test": (edit_split(lambda d: d.pop("test")), r"holds \['train', 'val'\];"),
        "a list": (lambda copy: copy.split_file.write_text("[]"), r"holds list;"),
        "empty": (edit_split(lambda d: d.update(train=[], val=[], test=[])), r"Textures\.json"),
        "short entry": (edit_split(lambda d: d["val"][1].pop()), r"val entry 1 is \['.*', \d\]; expected \[path"),
        "odd label": (edit_split(lambda d: d["train"][0].__setitem__(1, -1)), r"train entry 0 has the label '-1'"),
        "no name": (edit_split(lambda d: d["train"][3].__setitem__(2, " ")), r"entry 3: the label \d has no class"),
        "two names": (edit_split(lambda d: d["train"][0].__setitem__(2, "x")), r"label \d .*'x' and '\S+'"),
        "gap": (
            edit_split(lambda d: [e.__setitem__(1, 9) for s in d.values() for e in s if e[1] == 2]),
            r"the label 2",
        ),
        "leads out": (edit_split(lambda d: d["test"][0].__setitem__(0, "../a.jpg")), r"'\.\./a\.jpg'"),
        "absolute": (edit_split(lambda d: d["test"][0].__setitem__(0, "/a.jpg")), r"'/a\.jpg'"),
        "leak": (edit_split(lambda d: d["test"].append(d["train"][0])), r"1 images: 'images/"),
        "lost image": (
            lambda copy: (copy.folder / copy.entries["test"][0][0]).unlink(),
            r"1 of the 36 images of .*dtd: 'images/",
        ),
        "empty class": (
            lambda copy: [copy.split_file.unlink(), (copy.folder / "images" / "crowded").mkdir()],
            r"crowded",
        ),
        "flat": (
            lambda copy: [
                copy.split_file.unlink(), shutil.rmtree(copy.folder / "images"),
                layouts.write_image(copy.folder / "images" / "a.jpg", 0, 0),
            ],
            r"images holds 1 images",
        ),
    },
    "oxford_pets": {
        "no annotations": (lambda copy: [copy.split_file.unlink(), remove("annotations")(copy)], r"no file .*trainval"),
        "bad number": (edit("annotations/test.txt", lambda t: t.replace(" 1 ", " x ", 1)), r"line 1 .* 'x'"),
        "short line": (edit("annotations/test.txt", lambda t: t + "Bengal_9\n"), r"line 13 is 'Bengal_9'"),
        "empty file": (edit("annotations/test.txt", lambda t: ""), r"test\.txt"),
    },
    "stanford_cars": {
        "broken": (write_bytes("devkit/cars_meta.mat", b"no matlab file"), r"cars_meta\.mat"),
        "missing": (lambda copy: [copy.split_file.unlink(), remove("devkit")(copy)], r"there is no file .*cars_meta"),
        "unnamed": (
            lambda copy: [
                copy.split_file.unlink(),
                savemat(copy.folder / "devkit/cars_meta.mat", {"class_names": np.array([["A B 1", "C 2"]], object)}),
            ],
            r"the class \d; cars_meta\.mat names 2",
        ),
    },
    "oxford_flowers": {
        "unnamed": (edit("cat_to_name.json", lambda t: t.replace('"3"', '"33"')), r"the label 3, .*cat_to_name"),
        "no table": (edit("cat_to_name.json", lambda t: "[]"), r"cat_to_name\.json"),
    },
    "fgvc_aircraft": {
        "unknown variant": (
            edit("variants.txt", lambda t: t.replace("DC-10\n", "")),
            r"images_variant_train\.txt, line \d+: 'DC-10' is none of the 3 classes",
        ),
        "no list": (remove("images_variant_val.txt"), r"there is no file .*images_variant_val\.txt"),
        "no image": (remove("images/0000003.jpg"), r"1 of the 36 images of images_variant_\*\.txt"),
    },
    "sun397": {
        "unknown class": (edit("ClassName.txt", lambda t: t.replace("/a/abbey\n", "")), r"'a/abbey' is none of the 3"),
        "other split": (edit("Testing_01.txt", lambda t: t.replace("sun_a", "sun_b")), r"12 of the 36 images"),
    },
    "ucf101": {
        "unknown action": (edit(ACTIONS, lambda t: t.replace("YoYo", "Yo")), r"'YoYo' is none of the 4 classes"),
        "bad number": (edit(ACTIONS, lambda t: "0" + t[1:]), r"line 1 .* '0'"),
    },
    "imagenet": {
        "no names": (remove("classnames.txt"), r"there is no file .*classnames\.txt"),
        "unnamed": (
            edit("classnames.txt", lambda t: t.replace("n01440764 tench\n", "")),
            r"classnames\.txt: 'n01440764'",
        ),
        "cut line": (edit("classnames.txt", lambda t: t + "n99999999\n"), r"line 6 is 'n99999999'"),
        "named twice": (edit("classnames.txt", lambda t: t + t), r"line 6 .*'n01440764'"),
        "other classes": (remove("images/val/n01443537"), r"'n01443537'"),
        "no images": (remove("images"), r"images/train; .*imagenet holds 'classnames\.txt'"),
        "flat val": (
            lambda copy: [
                remove("images/val")(copy), layouts.write_image(copy.folder / "images/val/ILSVRC_1.JPEG", 0, 0)
            ],
            r"images/val holds 1 images",
        ),
    },
    "imagenet_r": {"unnamed": (edit("classnames.txt", lambda t: t.replace("n04355933", "n1")), r"'n04355933'")},
}  # fmt: skip
CASES = [(name, case) for name, mistakes in MISTAKES.items() for case in mistakes]


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}: {case}" for name, case in CASES])
def test_mistakes_are_named(tmp_path, name, case):
    mistake, message = MISTAKES[name][case]
    mistake(layouts.write_coop(tmp_path, name))
    with pytest.raises(ValueError, match=f"^coop:{name}: .*{message}"):
        load(tmp_path, name)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("coop:{root}", "coop:ROOT:NAME.* imagenet, caltech101"),
        ("coop:{root}:mnist", "is no coop:ROOT:NAME"),
        ("coop::dtd", "is no coop:ROOT:NAME"),
        ("coop:", "'coop:'.*glyphs:NAME"),
        ("coop:{root}/nowhere:dtd", "nowhere; .* holds"),
        ("coop:gs://bucket/data:dtd", "'gs://bucket/data'"),
    ],
)
def test_specifications_that_name_nothing(copies, spec, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(spec.format(root=copies[0]))


def test_too_few_images_for_a_made_split(tmp_path):
    layouts.write_coop(tmp_path, "eurosat", per_class=(1, 1, 1)).split_file.unlink()
    with pytest.raises(ValueError, match="coop:eurosat: class 'AnnualCrop' has 3 images"):
        load(tmp_path, "eurosat")


def test_a_broken_image_is_named_when_it_is_read(tmp_path):
    copy = layouts.write_coop(tmp_path, "dtd")
    path = copy.folder / copy.entries["train"][0][0]
    path.write_bytes(path.read_bytes()[:200])
    dataset = load(tmp_path, "dtd")
    with pytest.raises(ImageError, match=f"{path} cannot be read"):
        ImageTransform()(dataset.images([0]))


def test_survey(tmp_path):
    copy = layouts.write_coop(tmp_path, "sun397")
    whole = coop.survey(tmp_path, "sun397")
    assert [part.exists for part in whole] == [True] * 3
    copy.split_file.unlink()
    (copy.folder / "Testing_01.txt").unlink()
    parts = {part.path: (part.exists, part.needed) for part in coop.survey(tmp_path, "sun397")}
    assert parts == {
        f"{copy.folder}/": (True, True),
        "SUN397/": (True, True),
        "split_zhou_SUN397.json": (False, False),
        "ClassName.txt": (True, True),
        "Training_01.txt": (True, True),
        "Testing_01.txt": (False, True),
    }
    with pytest.raises(ValueError, match="'mnist'"):
        coop.survey(tmp_path, "mnist")


def test_differences_from_the_published_sizes(copies):
    assert coop.differences(load(copies[0], "imagenet_a")) == [
        "2 classes, 200 are published",
        "6 test images, 7500 are published",
    ]
    assert load(copies[0], "imagenet_a").about["notes"] == coop.differences(load(copies[0], "imagenet_a"))
