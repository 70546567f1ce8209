"""The encoder: each image is read and encoded once, stored features are used, views are those of the data."""

import jax
import numpy as np
import pytest

import gram_jax as gram
from gram_jax import evaluation, tuning
from gram_jax.data import StoreError, augmented_view, load_dataset
from gram_jax.evaluation import Encoder
from gram_jax.evaluation import encoder as encoder_module
from gram_jax.evaluation.encoder import training_images, view_numbers
from gram_jax.testing import tiny_clip
from gram_jax.tuners import coop, vpt


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(seed=1, text_layers=1, vision_layers=1, text_context_length=40)


@pytest.fixture
def encoded(monkeypatch):
    """The sizes of the batches that are encoded."""
    sizes, encode = [], encoder_module.encode_image
    monkeypatch.setattr(
        encoder_module, "encode_image", lambda clip, pixels: sizes.append(len(pixels)) or encode(clip, pixels)
    )
    return sizes


def test_images_are_encoded_once(clip, encoded):
    encoder, dataset = Encoder(clip, batch_size=16), load_dataset("glyphs:chess")
    encoder.add(dataset)
    few, more = dataset.take(range(10)), dataset.take(range(5, 35))
    first, second = encoder.features(few), encoder.features(more)
    np.testing.assert_array_equal(first[5:], second[:5])
    assert encoded == [16, 16, 16]  # 10, and the 25 others, in batches of 16
    expected = gram.encode_image(clip, clip.preprocess(dataset.images(range(35))))
    np.testing.assert_allclose(np.concatenate([first, second[5:]]), expected, atol=1e-5)


def test_a_second_run_reads_its_features_from_the_store(clip, encoded, tmp_path):
    dataset = load_dataset("glyphs:chess")
    part = dataset.take(range(40))

    def features(store):
        encoder = Encoder(clip, batch_size=16, store=store)
        encoder.add(dataset)
        return encoder.features(part), encoder.view_features(part.take(range(3)), 2)

    alone, stored = features(None), features(tmp_path)
    encoded.clear()
    again = features(tmp_path)
    assert encoded == []
    for first, second, third in zip(alone, stored, again, strict=True):
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first, third)


def test_a_stale_store_is_an_error(clip, tmp_path):
    """The dataset's references are the same, but lead to other images."""
    dataset = load_dataset("glyphs:chess")
    Encoder(clip, store=tmp_path).add(dataset)
    changed = type(dataset)(**{**vars(dataset), "read": lambda reference: np.zeros((20, 20, 3), np.uint8)})
    assert changed.content_hash == dataset.content_hash
    with pytest.raises(StoreError, match="sample"):
        Encoder(clip, store=tmp_path).add(changed)


def test_a_store_of_another_clip_is_refused_or_kept_apart(clip, tmp_path):
    dataset = load_dataset("glyphs:chess").take(range(4))
    other = tiny_clip(seed=2, text_layers=1, vision_layers=1)
    found = []
    for each in (clip, other):
        encoder = Encoder(each, batch_size=4, store=tmp_path / "apart", separate=True)
        encoder.add(dataset)
        found.append(encoder.features(dataset))
    assert len(list((tmp_path / "apart").iterdir())) == 2
    Encoder(clip, store=tmp_path / "one").add(dataset)
    with pytest.raises(StoreError, match="glyphs-chess does not fit: clip is"):
        Encoder(other, store=tmp_path / "one").add(dataset)
    assert np.abs(found[0] - found[1]).max() > 0.1


def test_visual_prompts_are_measured_on_pixels(clip):
    tuner, dataset = vpt(num_tokens=2), load_dataset("glyphs:chess").take(range(10))
    prompts = jax.vmap(lambda key: tuner.init(key, clip, None))(jax.random.split(jax.random.key(0), 2))
    method = evaluation.prompt_method(tuner, evaluation.TuningPlan(steps=1))
    (found,) = method.predict_with(Encoder(clip, batch_size=7), prompts, [evaluation.Part("all", None, dataset)])
    pixels, texts = clip.preprocess(dataset.images(range(10))), clip.class_tokens(list(dataset.class_names))
    for run in range(2):
        outputs = tuner.apply(jax.tree.map(lambda leaf, run=run: leaf[run], prompts), clip, texts, pixels)
        assert found.labels[run].tolist() == np.argmax(outputs.logits, 1).tolist()


def test_fresh_views_never_come_twice_and_stored_ones_do():
    order = tuning.epoch_batches(1, 10, 4, 6)
    fresh = view_numbers(1, order, 10, 0)
    assert len({(i, n) for i, n in zip(order.ravel().tolist(), fresh.ravel().tolist(), strict=True)}) == order.size
    for item in range(10):
        assert fresh[order == item].tolist() == list(range((order == item).sum()))
    many = np.tile(np.arange(100), (40, 1))
    stored = view_numbers(1, many, 100, 8)
    assert np.bincount(stored.ravel(), minlength=8).min() > 400
    assert not np.array_equal(stored, view_numbers(2, many, 100, 8))


@pytest.mark.parametrize("pixels", [False, True])
def test_stored_views_are_those_of_augmentation(clip, monkeypatch, pixels):
    encoder, tuner = Encoder(clip, batch_size=8), vpt(num_tokens=2) if pixels else coop()
    support = load_dataset("glyphs:chess").take([5, 40, 300])
    order = np.array([[0, 2], [1, 0]])
    numbers = view_numbers(7, order, 3, 3)
    for _ in range(2):
        shown = training_images(encoder, tuner, support, order, 7, augmentation="stored", stored=3)
        for items, views, (images, _) in zip(order, numbers, shown, strict=True):
            expected = clip.transform.normalize(
                np.stack([
                    augmented_view(clip.transform, support.images([i])[0], 0, support.item_number(i), int(n))
                    for i, n in zip(items.tolist(), views.tolist(), strict=True)
                ])
            )  # fmt: skip
            expected = expected if pixels else gram.encode_image(clip, expected)
            np.testing.assert_allclose(images, expected, atol=1e-5)
        monkeypatch.setattr(encoder_module, "augmented_view", None)  # the second time from memory


@pytest.mark.parametrize("augmentation", ["none", "fresh", "stored"])
def test_frozen_features_are_those_of_the_images_that_are_shown(clip, augmentation):
    support, tuner = load_dataset("glyphs:chess").take([5, 40, 300]), vpt(num_tokens=2)
    order = np.array([[0, 2], [1, 0]])
    shown = training_images(
        Encoder(clip, batch_size=8), tuner, support, order, 7, augmentation=augmentation, stored=2, frozen=True
    )
    for images, features in shown:
        np.testing.assert_allclose(features, gram.encode_image(clip, images), atol=1e-5)


def test_test_views_are_the_image_and_its_views(clip):
    encoder, dataset = Encoder(clip, batch_size=4), load_dataset("glyphs:chess").take([5, 9, 30])
    pixels = encoder.test_views(dataset, 1, seed=3, count=10)
    image, item = dataset.read(dataset.references[1]), dataset.item_number(1)
    np.testing.assert_array_equal(pixels[0], clip.transform.pixels(image))
    np.testing.assert_array_equal(pixels[4], augmented_view(clip.transform, image, 3, item, 4))
    expected = gram.encode_image(clip, clip.transform.normalize(pixels))
    np.testing.assert_allclose(encoder.test_view_features(dataset, 1, 3, 10), expected, atol=1e-5)


def test_evaluating_twice_encodes_once(clip, encoded):
    encoder = Encoder(clip, batch_size=64)
    first = evaluation.evaluate(encoder, coop(), "glyphs:chess", "base_to_new", 1, (1,), steps=1)
    encoded.clear()
    assert evaluation.evaluate(encoder, coop(), "glyphs:chess", "base_to_new", 1, (1,), steps=1) == first
    assert encoded == []
    other = load_dataset("glyphs:chess", seed=0).take(range(100))  # another dataset of the same name
    encoder.add(other)
    expected = gram.encode_image(clip, clip.preprocess(other.images(range(3))))
    np.testing.assert_allclose(encoder.features(other)[:3], expected, atol=1e-5)
