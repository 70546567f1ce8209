"""Users' data, principle 5: check_data finds whatever an evaluation refuses, through the same code."""

import dataclasses
import shutil

import numpy as np
import pytest
from etils import epath

from experiments import check_data, zero_shot
from experiments.evaluate import datasets as opening
from experiments.evaluate.settings import Config
from gram_jax.data import glyphs, load_dataset, load_datasets
from gram_jax.errors import InputError
from gram_jax.evaluation import checks, draws
from tests.unit.data import layouts


def problems(tmp_path, spec, **settings):
    """The problems that check_data reports, without the name of the dataset."""
    config = check_data.Config(dataset=(spec,), images=0, **settings)
    try:
        check_data.run(config, epath.Path(tmp_path))
    except InputError as error:
        return [line.strip().removeprefix(f"{spec}: ") for line in str(error).splitlines()[1:]]
    return []


def refusal(spec):
    """Why `evaluate` refuses to open a dataset."""
    with pytest.raises(InputError) as caught:
        opening.open_datasets(Config(dataset=(spec,), protocol=("few_shot",)).settings)
    return str(caught.value)


def one_class(root):
    layouts.write_folder(root, ["cat"])


def too_few(root):
    layouts.write_folder(root, ["cat", "dog"], 3)


def no_class(root):
    root.mkdir()


def equal_names(root):
    layouts.write_folder(root, ["a", "b"])
    (root / "classnames.txt").write_text("a Crane\nb crane\n")


def only_ids(root):
    layouts.write_folder(root, ["n01440764", "n01443537"])


def empty_class(root):
    layouts.write_folder(root)
    (root / "cow").mkdir()


def mixed_splits(root):
    layouts.write_folder(root, sizes={"train": 3, "test": 3})
    layouts.write_folder(root)


def deeper(root):
    layouts.write_folder(root / "animals")


def two_spellings_of_a_split(root):
    layouts.write_folder(root, sizes={"val": 3, "dev": 3, "train": 3})


def bad_template(root):
    layouts.write_folder(root)
    (root / "template.txt").write_text("no place")


MISTAKES = (
    one_class, too_few, no_class, equal_names, only_ids, empty_class, mixed_splits, deeper, two_spellings_of_a_split,
    bad_template,
)  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_evaluate_refuses_check_data_finds(tmp_path, mistake):
    mistake(tmp_path / "photos")
    spec = f"folder:{tmp_path}/photos"
    assert problems(tmp_path, spec) == [refusal(spec)]


def test_zero_shot_refuses_the_same(tmp_path):
    one_class(tmp_path / "photos")
    with pytest.raises(InputError, match="has one class, 'cat'"):
        zero_shot.run(zero_shot.Config(dataset=(f"folder:{tmp_path}/photos",)), None)


@pytest.mark.parametrize("shots", [1, 4, 5, 16])
def test_shots_are_checked_as_they_are_drawn(tmp_path, shots):
    root = layouts.write_folder(tmp_path / "photos", ["cat", "dog"], 8)
    spec = f"folder:{root}"
    dataset = load_dataset(spec)
    assert checks.most_shots(dataset) == (4, "cat")
    found = problems(tmp_path, spec, shots=(shots,))
    if shots <= 4:
        assert (found, len(draws.few_shot(dataset, shots, 1))) == ([], 2 * shots)
    else:
        with pytest.raises(InputError) as caught:
            draws.few_shot(dataset, shots, 1)
        assert found == [str(caught.value)]


def test_classes_without_a_training_image(tmp_path, capsys):
    root = layouts.write_folder(tmp_path / "photos", sizes={"train": 3, "test": 3})
    layouts.write_image(root / "test" / "cow" / "0.jpg", 1, 1)
    assert problems(tmp_path, f"folder:{root}") == []
    said = capsys.readouterr().out
    assert "note: classes without a training image: 'cow'" in said
    assert "few-shot: up to 0 shots (class 'cow' has 0 training images)" in said
    assert "class 'cow' of 'folder:photos' has 0 images" in problems(tmp_path, f"folder:{root}", shots=(1,))[0]


def test_a_dataset_without_test_images():
    chess = load_dataset("glyphs:chess")
    train = chess.take(chess.select("train"))
    assert "no images of split 'test'" in checks.problems(train)[0]
    assert checks.problems(train, "train") == []
    with pytest.raises(InputError, match="no images of split 'test'"):
        checks.require_usable(train)


def test_a_reader_of_ones_own_is_checked_too():
    chess = load_dataset("glyphs:chess")
    twice = dataclasses.replace(chess, class_names=("Same_name", "same  name", *chess.class_names[2:]))
    assert "'Same_name = same  name'" in checks.problems(twice)[0]


def test_a_cut_off_file_of_tfds_is_named(tmp_path):
    folder = layouts.write_tfds(tmp_path, "toy", {"train": [0, 1] * 4, "test": [0, 1]})
    (file,) = folder.glob("*train*")
    whole, spec = file.read_bytes(), f"tfds:{tmp_path}:toy"
    for damaged in (whole[: len(whole) // 2], b"", b"x" * 70_000, whole[:300] + bytes(300) + whole[600:]):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=f"{file.name}.*copy it again, or prepare the dataset again"):
            load_dataset(spec)
    shutil.copytree(tmp_path / "toy", tmp_path / "elsewhere" / "toy")
    (lost,) = (tmp_path / "elsewhere").rglob("*train*")
    lost.unlink()
    (problem,) = problems(tmp_path, f"tfds:{tmp_path}/elsewhere:toy")
    assert f"1 of 1 files of split train are missing: '{lost}'" in problem


def test_names_that_tell_datasets_apart(tmp_path):
    for place in ("a/x", "b/x", "c/x"):
        layouts.write_folder(tmp_path / place / "photos")
    layouts.write_csv(
        tmp_path / "a" / "labels.csv", [(f"{n}.jpg", ("cat", "dog")[n % 2]) for n in range(16)], ("image", "label")
    )
    layouts.write_csv(
        tmp_path / "b" / "labels.csv", [(f"{n}.jpg", ("cat", "dog")[n % 2]) for n in range(16)], ("image", "label")
    )
    specs = [
        *(f"folder:{tmp_path}/{place}/x/photos" for place in "abc"),
        *(f"csv:{tmp_path}/{p}/labels.csv" for p in "ab"),
    ]
    names = [each.name for each in load_datasets([*specs, "glyphs:chess"]).values()]
    assert names == [
        "folder:a-x-photos",
        "folder:b-x-photos",
        "folder:c-x-photos",
        "csv:a-labels",
        "csv:b-labels",
        "glyphs:chess",
    ]
    opened = opening.open_datasets(Config(dataset=tuple(specs[:2]), protocol=("few_shot",)).settings)
    assert list(opened) == names[:2]
    with pytest.raises(InputError, match="both called 'folder:photos'"):
        load_datasets([specs[0], f"{specs[0]}/."])


def test_names_that_a_clip_cannot_read_are_found(tmp_path):
    root = layouts.write_folder(tmp_path / "photos", ["cat", "dog " * 40])
    spec = f"folder:{root}"
    assert problems(tmp_path, spec) == []
    assert "is too long" in problems(tmp_path, spec, clip="mini")[0]


@pytest.mark.parametrize("name", glyphs.NAMES)
def test_the_datasets_that_ship_have_no_problem(name):
    assert checks.problems(load_dataset(f"glyphs:{name}"), shots=(1, 16)) == []


def test_no_image_is_read_before_a_refusal(tmp_path, monkeypatch):
    one_class(tmp_path / "photos")
    monkeypatch.setattr("gram_jax.evaluation.image_features", lambda *_: np.zeros(0)[1])
    with pytest.raises(InputError, match="one class"):
        zero_shot.run(zero_shot.Config(dataset=("glyphs:chess", f"folder:{tmp_path}/photos")), None)
