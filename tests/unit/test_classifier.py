"""PromptClassifier: scikit-learn's conventions, the numbers against NumPy, files, and mistakes."""

from __future__ import annotations

import pickle

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.exceptions import NotFittedError
from sklearn.utils import estimator_checks

import gram_jax as gram
from gram_jax import tuners
from gram_jax.array_file import ArrayFileError, read_arrays, write_arrays
from gram_jax.classifier import _splits
from gram_jax.data.objects import class_words
from gram_jax.errors import InputError
from gram_jax.testing import tiny_clip

COLORS = {"dark_red": (150, 30, 30), "light blue": (140, 190, 250), "green": (20, 160, 40)}
QUICK = {"steps": 3, "learning_rate": 0.3, "verbose": False}

# What scikit-learn checks of every estimator without giving it a table of numbers. All other checks fit two-dimensional
# arrays of numbers, which are no images.
CHECKS = (
    "check_estimator_cloneable",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
    "check_mixin_order",
)


def photos(count, seed=0):
    """Returns plain images of three colors, with noise, and their labels."""
    rng = np.random.default_rng(seed)
    labels = [name for _ in range(count) for name in COLORS]
    images = [np.clip(np.array(COLORS[each]) + rng.integers(-30, 30, (14, 17, 3)), 0, 255) for each in labels]
    return [image.astype(np.uint8) for image in images], labels


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip"
    gram.save_clip(tiny_clip(text_layers=1, vision_layers=1, text_context_length=24), path)
    return str(path)


@pytest.fixture(scope="module")
def fitted(clip_path):
    images, labels = photos(6)
    return gram.PromptClassifier(clip_path, learning_rate=(0.01, 3.0), steps=30, verbose=False).fit(images, labels)


@pytest.mark.parametrize("name", CHECKS)
def test_the_checks_of_scikit_learn_that_need_no_table(name):
    getattr(estimator_checks, name)("PromptClassifier", gram.PromptClassifier(steps=1, verbose=False))


def test_probabilities_are_the_softmax_of_scaled_cosines(fitted):
    images, _ = photos(2, seed=1)
    clip, names = fitted.clip_, ["dark red", "green", "light blue"]
    assert list(fitted.classes_) == ["dark_red", "green", "light blue"]
    assert fitted.class_names_ == tuple(names)
    texts = gram.encode_classes(clip, clip.class_tokens(names), gram.TextPrompt(fitted.prompt_["context"]))
    features = np.float64(gram.encode_image(clip, clip.preprocess(images)))
    scores = np.exp(np.exp(np.float64(clip.params["logit_scale"])) * features @ np.float64(texts).T)
    expected = scores / scores.sum(1, keepdims=True)
    np.testing.assert_allclose(fitted.predict_proba(images), expected, atol=1e-5)
    assert fitted.predict(images).tolist() == [fitted.classes_[i] for i in expected.argmax(1)]


def test_it_learns_and_reports(clip_path, capsys):
    images, labels = photos(6)
    model = gram.PromptClassifier(clip_path, learning_rate=(1e-4, 3.0), steps=60).fit(images, labels)
    unseen = photos(4, seed=5)
    assert model.score(*unseen) == np.mean(model.predict(unseen[0]) == np.array(unseen[1]))
    report, said = model.report_, capsys.readouterr().err
    assert model.score(images, labels) > report["zero_shot_accuracy"]
    texts = gram.encode_classes(model.clip_, model.clip_.class_tokens(list(model.class_names_)))
    found = np.argmax(gram.encode_image(model.clip_, model.clip_.preprocess(images)) @ texts.T, axis=1)
    assert report["zero_shot_accuracy"] == np.mean(model.classes_[found] == np.array(labels))
    assert (report["images"], report["validation_images"]) == (18, 4)
    assert set(report["validation_accuracy"]) == {1e-4, 3.0}
    assert report["learning_rate"] == max(report["validation_accuracy"], key=report["validation_accuracy"].get)
    assert f"18 images of 3 classes; zero-shot accuracy on them: {100 * report['zero_shot_accuracy']:.1f} %" in said
    assert "on 4 images by learning rate: 0.0001: " in said


def test_the_validation_split_is_stratified():
    codes = np.repeat([0, 1, 2], [5, 10, 20])
    splits = _splits(codes, 0.2, seed=3)
    assert np.bincount(codes[splits == "val"]).tolist() == [1, 2, 4]
    assert set(_splits(np.repeat([0, 1], [4, 90]), 0.2, 3)) == {"train"}  # too few images of a class
    assert set(_splits(codes, 0.0, 3)) == {"train"}


def test_forms_of_images_give_the_same_probabilities(fitted, tmp_path):
    images, _ = photos(1, seed=2)
    expected = fitted.predict_proba(images)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    forms = [paths, list(map(str, paths)), np.stack(images), np.stack(images) / 255, list(map(Image.fromarray, images))]
    for form in forms:
        np.testing.assert_allclose(fitted.predict_proba(form), expected, atol=1e-6)
    np.testing.assert_allclose(fitted.predict_proba(images[1:2]), expected[1:2], atol=1e-6)


def test_a_folder_of_class_folders(clip_path, tmp_path):
    images, labels = photos(2)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / label).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / label / f"{number}.png")
    model = gram.PromptClassifier(clip_path, **QUICK).fit(tmp_path)
    assert model.classes_.tolist() == ["dark red", "green", "light blue"]
    spaced = [label.replace("_", " ") for label in labels]
    assert model.score(tmp_path) == model.score(images, spaced)
    again = gram.PromptClassifier(clip_path, **QUICK).fit(images, spaced)
    assert model.report_["zero_shot_accuracy"] == again.report_["zero_shot_accuracy"]
    for name in ("dark_red", "light blue", "green"):
        (tmp_path / name).rename(tmp_path / {"dark_red": "train", "green": "val"}.get(name, "test"))
    with pytest.raises(InputError, match=r"'test'.*'train'"):
        model.score(tmp_path)


def test_integer_labels_andclass_words(clip_path):
    images, labels = photos(2)
    codes = np.array([{"dark_red": 7, "light blue": 2, "green": 9}[label] for label in labels])
    given = {2: "light blue", 7: "dark red", 9: "green"}
    model = gram.PromptClassifier(clip_path, **QUICK).fit(images, codes, given)
    assert model.classes_.tolist() == [2, 7, 9]
    assert model.class_names_ == ("light blue", "dark red", "green") == class_words(model.classes_, given.values())
    assert model.predict(images).dtype.kind == "i"
    assert set(model.predict(images)) <= {2, 7, 9}
    assert class_words(model.classes_, None) == ("2", "7", "9")
    for names, message in ((["a", "b"], "2 names.*3 labels"), ({2: "a"}, "7, 9"), ("cat", "class_names=cat")):
        with pytest.raises(InputError, match=message):
            gram.PromptClassifier(clip_path, **QUICK).fit(images, codes, names)


def test_the_seed_decides(clip_path):
    images, labels = photos(2)
    first, second, other = (
        gram.PromptClassifier(clip_path, "coop", random_state=seed, **QUICK).fit(images, labels).predict_proba(images)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-6


def test_a_file_is_the_classifier_and_a_prompt(fitted, clip_path, tmp_path):
    images, _ = photos(2, seed=3)
    path = tmp_path / "colors.safetensors"
    fitted.save(path)
    loaded = gram.PromptClassifier.load(path)
    np.testing.assert_array_equal(loaded.predict_proba(images), fitted.predict_proba(images))
    np.testing.assert_array_equal(loaded.predict(images), fitted.predict(images))
    assert (loaded.clip, loaded.steps, loaded.learning_rate) == (clip_path, 30, [0.01, 3.0])
    assert loaded.report_ == fitted.report_
    prompt, tuner = gram.load_prompt(path, fitted.clip_)
    np.testing.assert_array_equal(prompt["context"], fitted.prompt_["context"])
    assert tuner.settings["init_text"] == "a photo of a"
    header = read_arrays(path)[1]
    assert header["classes"] == ["dark red", "green", "light blue"]
    assert header["clip"]["weights_hash"] == gram.weights_hash(fitted.clip_.params)
    loaded.save(tmp_path / "again")
    assert gram.PromptClassifier.load(tmp_path / "again", fitted.clip_).report_ == fitted.report_
    with pytest.raises(InputError, match="other weights"):
        gram.PromptClassifier.load(path, tiny_clip(seed=9, text_layers=1, vision_layers=1, text_context_length=24))


def test_files_that_are_no_classifier(fitted, tmp_path):
    coop = tuners.coop()
    gram.save_prompt(tmp_path / "p", coop.init(jax.random.key(0), fitted.clip_, None), coop, fitted.clip_)
    with pytest.raises(InputError, match=r"gram\.load_prompt"):
        gram.PromptClassifier.load(tmp_path / "p")
    fitted.save(tmp_path / "c")
    tree, header = read_arrays(tmp_path / "c")
    for wrong in ({}, {**header["classifier"], "labels": [0.5]}, {**header["classifier"], "settings": {"stepz": 1}}):
        write_arrays(tmp_path / "x", tree, {**header, "classifier": wrong})
        with pytest.raises(ArrayFileError, match="complete classifier"):
            gram.PromptClassifier.load(tmp_path / "x")
    write_arrays(tmp_path / "x", tree, {**header, "classifier": 3})
    with pytest.raises(ArrayFileError, match="classifier"):
        gram.PromptClassifier.load(tmp_path / "x")


def test_a_clip_and_a_tuner_without_names(fitted, tmp_path):
    images, labels = photos(2)
    model = gram.PromptClassifier(fitted.clip_, tuners.coop(class_specific=True), **QUICK).fit(images, labels)
    assert len(model.prompt_["context"]) == 3  # the padding of class lists is no part of it
    model.save(tmp_path / "c")
    with pytest.raises(InputError, match="clip="):
        gram.PromptClassifier.load(tmp_path / "c")
    loaded = gram.PromptClassifier.load(tmp_path / "c", fitted.clip_)
    np.testing.assert_array_equal(loaded.predict_proba(images), model.predict_proba(images))


def test_pickling(fitted):
    images, _ = photos(1, seed=4)
    content = pickle.dumps(fitted)
    assert len(content) < 10_000  # the clip has a name
    np.testing.assert_array_equal(pickle.loads(content).predict_proba(images), fitted.predict_proba(images))
    fresh = pickle.loads(pickle.dumps(gram.PromptClassifier(fitted.clip_, "vpt")))
    assert fresh.tuner == "vpt"


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([], [], "images is empty"),
        ("photo.png", None, r"photo\.png"),
        ("photo.png", ["cat"], r"the path 'photo\.png'"),
        (b"bytes", ["cat"], "a bytes"),
        (["nowhere.png"], ["cat"], r"images\[0\]='nowhere\.png'"),
        ([3.5, 2], ["a", "b"], r"images\[0\] is a float"),
        (np.zeros((2, 14, 14)), ["a", "b"], r"images\[0\] is float64\[14, 14\]"),
        (np.zeros((2, 3, 14, 14)), ["a", "b"], r"float64\[3, 14, 14\]"),
        (np.zeros((2, 5, 5, 3), int), ["a", "b"], r"int64\[5, 5, 3\]"),
        (np.full((2, 5, 5, 3), 9.0), ["a", "b"], "from 9 to 9"),
        (np.full((2, 5, 5, 3), np.nan), ["a", "b"], "nan"),
        (np.zeros((2, 5, 5, 3)), ["a"], "2 images and 1 labels"),
        (np.zeros((2, 5, 5, 3)), [0.5, 1.5], r"labels is float64\[2\]"),
        (np.zeros((2, 5, 5, 3)), None, "labels is None"),
        (np.zeros((2, 5, 5, 3)), ["a", "a"], "one class, 'a'"),
    ],
)
def test_bad_images_and_labels_are_one_line(images, labels, message):
    with pytest.raises(InputError, match=message) as caught:
        gram.PromptClassifier("nowhere", **QUICK).fit(images, labels)  # before the clip is read
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tuner": "coopp"}, "did you mean 'coop'"),
        ({"tuner": 3}, "tuner is a int"),
        ({"clip": 3}, "clip is a int"),
        ({"learning_rate": 0}, "learning_rate=0"),
        ({"learning_rate": ()}, "learning_rate is empty"),
        ({"steps": 0}, "steps=0"),
        ({"validation_fraction": 1.0}, r"validation_fraction=1\.0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"plan": {"stepz": 3}}, "stepz.*did you mean 'steps'"),
    ],
)
def test_bad_settings_are_one_line(settings, message):
    model = gram.PromptClassifier(**{"steps": 1, "verbose": False, **settings})
    with pytest.raises(InputError, match=message):
        model.fit(np.zeros((2, 5, 5, 3)), ["a", "b"])


def test_an_unfitted_classifier(tmp_path):
    model = gram.PromptClassifier()
    for call in (lambda: model.predict([1]), lambda: model.predict_proba([1]), lambda: model.score([1], [1])):
        with pytest.raises(NotFittedError):
            call()
    with pytest.raises(NotFittedError):
        model.save(tmp_path / "x")
    assert not list(tmp_path.iterdir())
