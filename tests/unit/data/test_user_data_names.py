"""Users' data, principle 2: names are compared as the clip reads them, and ids are no part of a prompt."""

import csv
import json
import unicodedata
from collections import Counter

import pytest
from etils import epath

from experiments import predict
from gram_jax.data import load_dataset
from gram_jax.data.readers.files import read_name_list
from gram_jax.data.spellings import class_key, equal_names, merge_spellings, without_ids
from gram_jax.errors import InputError
from tests.unit.data import layouts

# Pairs that OpenAI's tokenizer turns into the same tokens, and pairs that it does not.
SAME = [
    ("Black King", "black king"), ("black_king", "black king"), ("black  king", "black king"), (" cat ", "cat"),
    ("caf\u00e9", "cafe\u0301"), ("Geoffroy\u2019s cat", "Geoffroy's cat"), ("R&amp;B", "R&B"), ("a\u00a0b", "a b"),
    ("\ufb01ne", "fine"), ("\u201cquoted\u201d", '"quoted"'), ("STRASSE", "strasse"), ("cat\t", "cat"),
]  # fmt: skip
OTHER = [
    ("cafe", "caf\u00e9"),
    ("cat", "cats"),
    ("black-king", "black king"),
    ("\u0430", "a"),
    ("stra\u00dfe", "strasse"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_names_with_the_same_tokens_are_equal(one, other):
    assert class_key(one) == class_key(other)


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_names_with_other_tokens_are_not(one, other):
    assert class_key(one) != class_key(other)


def write_table(folder, labels):
    for number, label in enumerate(labels):
        layouts.write_image(folder / f"{number}.jpg", sorted(set(labels)).index(label), number)
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "label"), *((f"{n}.jpg", label) for n, label in enumerate(labels))])
    return f"csv:{folder}/table.csv"


@pytest.mark.parametrize(("one", "other"), SAME)
def test_labels_of_two_spellings_are_one_class(tmp_path, one, other):
    spec = write_table(tmp_path, [*5 * [one], *3 * [other], *4 * ["dog"]])
    dataset = load_dataset(spec)
    assert len(dataset.class_names) == 2
    assert Counter(dataset.labels.tolist()).most_common()[0][1] == 8


def test_the_most_frequent_spelling_is_the_name_and_a_note_tells(tmp_path):
    dataset = load_dataset(write_table(tmp_path, [*5 * ["cat"], *3 * ["Cat"], *4 * ["dog"]]))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.about["notes"] == ["spellings that a clip cannot tell apart are one class: 'Cat = cat'"]


def test_folders_of_two_spellings_are_one_class_also_across_splits(tmp_path):
    root = layouts.write_folder(tmp_path / "photos", ["Cat", "cat", "dog"], 4)
    dataset = load_dataset(f"folder:{root}")
    assert Counter(dataset.class_names[label].lower() for label in dataset.labels) == {"cat": 8, "dog": 4}
    split = tmp_path / "split"
    layouts.write_folder(split, ["Big_Cat", "dog"], {"train": 3})
    layouts.write_folder(split, ["big cat", "dog"], {"test": 3})
    assert len(load_dataset(f"folder:{split}").class_names) == 2


def test_equal_names_of_a_names_file_are_an_error_with_the_pairs(tmp_path):
    root = layouts.write_folder(tmp_path / "photos", ["n01", "n02", "n03"])
    (root / "classnames.txt").write_text("n01 crane\nn02 Crane\nn03 dog\n")
    with pytest.raises(InputError, match="'crane = Crane'; rename"):
        load_dataset(f"folder:{root}")


def test_names_of_tfds_that_are_equal_are_an_error(tmp_path):
    layouts.write_tfds(tmp_path, "toy", {"train": [0, 1], "test": [0, 1]}, ["Cat", "cat"])
    with pytest.raises(InputError, match="'Cat = cat'"):
        load_dataset(f"tfds:{tmp_path}:toy")


def test_published_lists_may_repeat_names(tmp_path):
    layouts.write_coop(tmp_path, "imagenet")
    dataset = load_dataset(f"coop:{tmp_path}:imagenet")
    assert equal_names(dataset.class_names)


def test_the_form_of_unicode_makes_no_difference_between_a_list_and_the_disk(tmp_path):
    """macOS stores names decomposed, editors write them composed."""
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        stored, listed = (unicodedata.normalize(each, "caf\u00e9") for each in (form, other))
        root = layouts.write_folder(tmp_path / form / "photos", [stored, "tea"])
        (root / "classnames.txt").write_text(f"{listed}\tcoffee\ntea\ttea\n", encoding="utf-8")
        assert set(load_dataset(f"folder:{root}").class_names) == {"coffee", "tea"}
        lines = [f"{listed}/{n:03d}.jpg,a\ntea/{n:03d}.jpg,b\n" for n in range(8)]
        (root / "table.csv").write_text("image,label\n" + "".join(lines), encoding="utf-8")
        assert len(load_dataset(f"csv:{root}/table.csv").images(range(16))) == 16


def test_merging_counts_spellings():
    assert merge_spellings({"A b": 1, "a_b": 2, "c": 1}).name_of == {"A b": "a_b", "a_b": "a_b", "c": "c"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["n01440764 tench", "n01443537 goldfish"], ["tench", "goldfish"]),
        (["n02085620-Chihuahua", "n02085782-Japanese_spaniel"], ["Chihuahua", "Japanese_spaniel"]),
        (["001.Black_footed_Albatross", "002.Laysan_Albatross"], ["Black_footed_Albatross", "Laysan_Albatross"]),
        (["0 black king", "1 white king"], ["black king", "white king"]),
        (["1: cat", "2: dog"], ["cat", "dog"]),
        (["1 001.Black_Albatross", "2 002.Laysan_Albatross"], ["Black_Albatross", "Laysan_Albatross"]),
        (["01_cat", "07_dog"], ["cat", "dog"]),
        (["5 euro", "10 euro"], None), (["2012 BMW", "2007 Tesla"], None), (["7 up", "cola"], None), (["0", "1"], None),
        (["1 cat", "1 dog"], None), (["3d printer", "2d plot"], None), (["0 1", "1 2"], None),
    ],
)  # fmt: skip
def test_ids_in_front_of_names(names, expected):
    assert without_ids(names) == ((expected, True) if expected else (names, False))


@pytest.mark.parametrize(
    "text",
    [
        "n01440764 tench\nn01443537 goldfish\n", "0\ttench\r\n1\tgoldfish\r\n", "tench\n\ngoldfish\n",
        "\ufeffn01440764\ttench\nn01443537\tgoldfish", "n01440764_tench\nn01443537_goldfish\n",
        "1. tench\n2. goldfish\n",
        "my folder\ttench\nother\tgoldfish\n",
    ],
)  # fmt: skip
def test_one_format_of_name_files(tmp_path, text):
    (tmp_path / "names.txt").write_text(text, encoding="utf-8")
    assert read_name_list(tmp_path / "names.txt", "names") == ["tench", "goldfish"]
    config = predict.Config(images="x", classes_file=str(tmp_path / "names.txt"))
    assert predict.class_names(config) == ["tench", "goldfish"]


@pytest.mark.parametrize(
    "document",
    [
        {"0": "tench", "1": "goldfish"}, {"1": "goldfish", "0": "tench"}, ["tench", "goldfish"],
        {"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}, {"n01440764": "tench", "n01443537": "goldfish"},
        ["n01440764 tench", "n01443537 goldfish"],
    ],
)  # fmt: skip
def test_names_in_json(tmp_path, document):
    (tmp_path / "names.json").write_text(json.dumps(document))
    assert read_name_list(tmp_path / "names.json", "names") == ["tench", "goldfish"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("data.yaml", "names: [cat, dog]", "no list of names"), ("names.csv", "id,name\n0,cat\n", "no list of names"),
        ("names.json", "{", "is no JSON"), ("names.json", '{"cat": 0.5, "dog": 1}', r"holds 0\.5, 1"),
        ("names.txt", "\n", "is empty"),
    ],
)  # fmt: skip
def test_files_that_are_no_list_of_names_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_name_list(tmp_path / name, "--classes_file")


def test_folders_with_ids_are_named_without_them(tmp_path):
    root = layouts.write_folder(tmp_path / "photos", ["n02085620-Chihuahua", "n02085782-Japanese_spaniel"])
    assert load_dataset(f"folder:{root}").class_names == ("Chihuahua", "Japanese spaniel")


@pytest.mark.parametrize("reader", ["folder", "csv", "predict"])
def test_ids_alone_are_no_names(tmp_path, reader):
    ids = ["n01440764", "n01443537"]
    read = {
        "folder": lambda: load_dataset(f"folder:{layouts.write_folder(tmp_path / 'photos', ids)}"),
        "csv": lambda: load_dataset(write_table(tmp_path, 4 * ids)),
        "predict": lambda: predict.class_names(predict.Config(images="x", classes=tuple(ids))),
    }[reader]
    with pytest.raises(InputError, match="2 class names are WordNet ids: 'n01440764', 'n01443537'"):
        read()


@pytest.mark.parametrize(
    ("header", "ids"),
    [
        ("image,label,class_name", ("0", "1")), ("image,class_name,label", ("0", "1")),
        ("image,class,category", ("n01440764", "n01443537")), ("image,target,label_name", ("7", "9")),
    ],
)  # fmt: skip
def test_a_column_of_names_replaces_one_of_ids(tmp_path, header, ids):
    lines = [header]
    for number in range(16):
        layouts.write_image(tmp_path / f"{number}.jpg", number % 2, number)
        values = [ids[number % 2], ("cat", "dog")[number % 2]]
        lines.append(",".join([f"{number}.jpg", *(values[::-1] if header.endswith(",label") else values)]))
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    dataset = load_dataset(f"csv:{tmp_path}/table.csv")
    assert dataset.class_names == ("cat", "dog")
    assert dataset.about["account"]["left_out"]["columns that are not read"]["count"] == 1


def test_numbers_as_names_are_noted(tmp_path):
    dataset = load_dataset(write_table(tmp_path, 4 * ["3", "7"]))
    assert dataset.class_names == ("3", "7")
    assert "if they are ids" in dataset.about["notes"][0]


def test_predict_refuses_names_with_the_same_tokens(tmp_path):
    config = predict.Config(images="x", classes=("black_king", "Black King", "dog"))
    with pytest.raises(InputError, match="'black_king = Black King'"):
        predict.run(config, epath.Path(tmp_path))
