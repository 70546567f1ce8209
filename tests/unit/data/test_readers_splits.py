"""The rules that make splits, against restatements; what a dataset refuses; templates and their hashes."""

import dataclasses
import hashlib
import json
import random

import numpy as np
import pytest

from gram_jax.data import Dataset, templates
from gram_jax.data.content import Files
from gram_jax.data.readers import coop
from gram_jax.data.splits import Item, assign_roles, build, divide, hold_out


def published_division(sizes, seed):
    """As the public code has it: indices 0, 1, ... of class after class, shuffled and cut."""
    random.seed(seed)
    train, val, test, start = [], [], [], 0
    for size in sizes:
        images = list(range(start, start + size))
        random.shuffle(images)
        n_train, n_val = round(size * 0.5), round(size * 0.2)
        train.extend(images[:n_train])
        val.extend(images[n_train : n_train + n_val])
        test.extend(images[n_train + n_val :])
        start += size
    return {"train": train, "val": val, "test": test}


@pytest.mark.parametrize("sizes", [(10, 10), (4, 5, 7, 31), (800,)])
@pytest.mark.parametrize("seed", [0, 3])
def test_divide_is_the_published_rule(sizes, seed):
    starts = np.cumsum((0, *sizes))
    classes = {f"class {i}": range(starts[i], starts[i + 1]) for i in range(len(sizes))}
    assert divide(classes, random.Random(seed), "toy") == published_division(sizes, seed)


@pytest.mark.parametrize(("size", "fits"), [(1, False), (2, False), (3, False), (4, True), (5, True), (6, True)])
def test_divide_refuses_classes_of_fewer_than_four(size, fits):
    if fits:
        assert all(divide({"cat": range(size)}, random.Random(0), "toy").values())
    else:
        with pytest.raises(ValueError, match=f"toy: class 'cat' has {size} images, too few to divide"):
            divide({"cat": range(size)}, random.Random(0), "toy")


def test_hold_out_is_the_published_rule():
    sizes, seed = (10, 13, 3), 5
    random.seed(seed)
    train, val, start, classes = [], [], 0, {}
    for label, size in enumerate(sizes):
        classes[label] = list(range(start, start + size))
        images = list(classes[label])
        random.shuffle(images)
        for place, image in enumerate(images):
            (val if place < round(size * 0.2) else train).append(image)
        start += size
    assert hold_out(classes, random.Random(seed), "toy") == (train, val)
    with pytest.raises(ValueError, match="class 'cat' has 2 training images"):
        hold_out({"cat": range(2)}, random.Random(0), "toy")


@pytest.mark.parametrize(
    ("found", "of", "divided"),
    [
        (["train", "val", "test"], {"train": "train", "val": "val", "test": "test"}, False),
        (["train", "test"], {"train": "train", "test": "test"}, False),
        (["test"], {"test": "test"}, False),
        (["train", "validation"], {"train": "train", "validation": "test"}, False),
        (["valid"], {"valid": "test"}, False),
        (["train"], {"train": "train"}, True),
    ],
)
def test_roles(found, of, divided):
    roles = assign_roles(found, "toy")
    assert (roles.of, roles.divided) == (of, divided)
    assert ("serves as test" in roles.remark) == (of.get(found[-1]) == "test" and found[-1] != "test")


def test_two_names_of_one_role():
    with pytest.raises(ValueError, match=r"toy .*val, validation"):
        assign_roles(["val", "validation"], "toy")


def test_build_orders_and_says_what_is_odd():
    items = {"test": [Item("c", 1)], "train": [Item("b", 2), Item("a", 0)], "val": []}
    about = {"source": "here", "notes": ["old"]}
    dataset = build("toy", items, ["big_cat", "dog", "big cat"], "{}", Files(str), about, domain="d", published=True)
    assert dataset.references == ("b", "a", "c")
    assert dataset.labels.tolist() == [2, 0, 1]
    assert dataset.labels.dtype == np.int32
    assert dataset.splits.tolist() == ["train", "train", "test"]
    assert dataset.class_names == ("big cat", "dog", "big cat")
    assert (dataset.domain, dataset.about["source"]) == ("d", "here")
    assert dataset.about["notes"] == [
        "old",
        "names of several classes: 'big cat'",
        "classes without a training image: 'dog'",
    ]


def test_a_dataset_refuses_what_does_not_fit_together():
    two = np.array([0, 1]), np.array(["train", "test"])
    with pytest.raises(ValueError, match="'toy' has 1 references, 2 labels and 2 splits"):
        Dataset("toy", ("a",), *two, ("x", "y"), "{}", str)
    with pytest.raises(ValueError, match="'toy' has labels from 0 to 1 and 1 class names; every label needs a name"):
        Dataset("toy", ("a", "b"), *two, ("x",), "{}", str)
    assert len(Dataset("empty", (), np.array([], int), np.array([], str), (), "{}", str)) == 0


def test_about_is_no_part_of_the_hash_and_images_are_read_when_indexed():
    reads = []
    dataset = Dataset(
        "toy",
        ("a", "b", "c"),
        np.array([0, 0, 0]),
        np.array(["test"] * 3),
        ("x",),
        "{}",
        lambda r: reads.append(r) or r,
    )
    content = ["toy", "", None, ["a", "b", "c"], [0, 0, 0], ["test"] * 3, ["x"], "{}"]
    assert dataset.content_hash == hashlib.sha256(json.dumps(content).encode()).hexdigest()
    assert dataclasses.replace(dataset, about={"notes": ["!"]}).content_hash == dataset.content_hash
    part = dataset.take(np.array([2, 0, 1]))
    assert (len(part), reads) == (3, [])
    assert (part[0], part[-1], list(part)) == ("c", "b", ["c", "a", "b"])
    assert reads == ["c", "b", "c", "a", "b"]


def test_published_sizes_add_up():
    """What is known of the archives: all their images are in one of the splits, and the rule that cut them."""
    sizes = {name: coop.facts(f"coop:{name}").counts[1:] for name in coop.NAMES}
    totals = {
        "caltech101": 8242, "oxford_pets": 7349, "stanford_cars": 16185, "oxford_flowers": 8189, "food101": 101000,
        "fgvc_aircraft": 10000, "sun397": 39700, "dtd": 5640, "eurosat": 27000, "ucf101": 13320, "imagenet": 1331167,
        "imagenetv2": 10000, "imagenet_sketch": 50889, "imagenet_a": 7500, "imagenet_r": 30000,
    }  # fmt: skip
    assert {name: sum(each) for name, each in sizes.items()} == totals
    for name, per_class in (("food101", 1000), ("dtd", 120)):
        parts = published_division([per_class] * coop.facts(f"coop:{name}").counts[0], 0)
        assert sizes[name] == tuple(map(len, parts.values()))
    assert sizes["sun397"] == (397 * 40, 397 * 10, 397 * 50)
    assert {name for name in coop.NAMES if not sizes[name][0]} == set(coop.VARIANTS)


def test_templates_of_datasets():
    own = {
        "oxford_pets": "a photo of a {}, a type of pet.",
        "oxford_flowers": "a photo of a {}, a type of flower.",
        "food101": "a photo of {}, a type of food.",
        "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
        "dtd": "{} texture.",
        "eurosat": "a centered satellite photo of {}.",
        "ucf101": "a photo of a person doing {}.",
    }
    published = {name: coop.facts(f"coop:{name}").template for name in coop.NAMES}
    assert published == {name: own.get(name, "a photo of a {}.") for name in coop.NAMES}
    # The same words as in every released version.
    lines = [f"{name}\t{template}" for name, template in published.items()]
    assert templates.digest(lines) == "c37d701569f7d27b9d1564d89d544215bc23e4208f6ac4f0a01db36a5845b4df"
    assert coop.facts("glyphs:chess") is coop.facts("coop:mnist") is coop.facts("dtd") is None


def test_templates_of_regularizers():
    assert coop.facts("coop:dtd").loss_templates["kgcoop"] == "a photo of a {}, a type of texture."
    assert coop.facts("coop:dtd").loss_templates["distillation"] == "a texture of {}."
    typed = {
        "food101": "a type of food, a photo of {}.",
        "oxford_pets": "a type of pet, a photo of a {}.",
        "oxford_flowers": "a type of flower, a photo of a {}.",
        "fgvc_aircraft": "a type of aircraft, a photo of a {}.",
    }
    for name, template in typed.items():
        assert coop.facts(f"coop:{name}").loss_templates == {"distillation": template}
    others = [coop.facts(f"coop:{name}") for name in coop.NAMES if name not in ("dtd", *typed)]
    assert not any(entry.loss_templates for entry in others)


def test_ensembles_hold_to_each_other_and_to_their_hashes():
    seven, sixty, eighty = (templates.ensemble(name) for name in ("clip_7", "promptsrc_60", "clip_80"))
    assert templates.ENSEMBLES == ("clip_7", "promptsrc_60", "clip_80")
    assert (len(seven), len(sixty), len(set(eighty))) == (7, 60, 80)
    assert set(seven) < set(eighty)
    # PromptSRC's list is the beginning of CLIP's, with the plain template in front.
    assert sixty == ("a photo of a {}.", *(each for each in eighty[:60] if each != "a photo of a {}."))
    assert all(each.count("{}") == 1 for each in eighty)
    for name, lines in (("clip_7", seven), ("promptsrc_60", sixty), ("clip_80", eighty)):
        assert templates.ENSEMBLE_HASHES[name] == hashlib.sha256("\n".join(lines).encode()).hexdigest()
    with pytest.raises(ValueError, match="'clip_81'"):
        templates.ensemble("clip_81")


def test_changed_templates_are_refused(tmp_path, monkeypatch):
    tables = json.loads(templates.FILE.read_text())
    tables["ensembles"]["clip_7"][0] = "itap of an {}."
    changed = tmp_path / "templates.json"
    changed.write_text(json.dumps(tables))
    monkeypatch.setattr(templates, "FILE", changed)
    templates._ensembles.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"templates\.json: the templates 'clip_7' are not the published ones"):
            templates.ensemble("clip_80")
    finally:
        templates._ensembles.cache_clear()
