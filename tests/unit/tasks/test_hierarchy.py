"""Hierarchies in and out of files, and the classes' tokens."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import gram_jax as gram
from gram_jax.array_file import ArrayFileError, write_arrays
from gram_jax.clip.classes import pack_classes
from gram_jax.tasks import centroid_clip, class_table, load_hierarchy, outline, save_hierarchy, text_features
from gram_jax.testing import tiny_clip

ARRAYS = ("members", "classes", "domains", "themes", "image_features", "centroids")


@pytest.fixture
def saved(hierarchy, small_clip, tmp_path):
    about = {"corpus": "planted", "clip": gram.weights_hash(small_clip.params)}
    hierarchy = dataclasses.replace(hierarchy, about=about)
    save_hierarchy(tmp_path / "h.safetensors", hierarchy)
    return tmp_path / "h.safetensors", hierarchy


def test_round_trip_to_the_last_bit(saved, small_clip):
    path, hierarchy = saved
    found = load_hierarchy(path, clip=small_clip)
    for name in ARRAYS:
        old, new = getattr(hierarchy, name), getattr(found, name)
        assert (new.dtype, new.shape, new.tobytes()) == (old.dtype, old.shape, old.tobytes()), name
    assert (found.texts, found.theme_texts, found.about) == (hierarchy.texts, hierarchy.theme_texts, hierarchy.about)
    assert found.token_rows is None
    norms = np.linalg.norm(found.image_features, axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("name", ["token_rows", "text_features"])
def test_optional_arrays_come_back(saved, name):
    path, hierarchy = saved
    rows = np.random.default_rng(0).standard_normal((len(hierarchy.texts), 24)).astype(np.float32)
    save_hierarchy(path, dataclasses.replace(hierarchy, **{name: rows}))
    np.testing.assert_array_equal(getattr(load_hierarchy(path), name), rows)


def test_another_clip_is_refused(saved):
    path, hierarchy = saved
    with pytest.raises(ArrayFileError, match=f"{path.name}.*another clip"):
        load_hierarchy(path, clip=tiny_clip(seed=1, text_layers=1, vision_layers=1))
    save_hierarchy(path, dataclasses.replace(hierarchy, about={}))
    with pytest.raises(ArrayFileError, match=f"{path.name}.*another clip"):
        load_hierarchy(path, clip=tiny_clip())


def test_damage_and_other_files_are_refused(saved, tmp_path):
    path, _ = saved
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ArrayFileError, match=path.name):
        load_hierarchy(path)
    path.write_bytes(bytes(data[:1000]))
    with pytest.raises(ArrayFileError, match=path.name):
        load_hierarchy(path)
    write_arrays(path, {"context": np.zeros(2)}, {"kind": "prompt"})
    with pytest.raises(ArrayFileError, match="'prompt'"):
        load_hierarchy(path)
    header = {"kind": "hierarchy", "texts": ["a"], "theme_texts": ["b"], "about": {}}
    write_arrays(path, {"members": np.zeros(2), "image_features": np.zeros((2, 3))}, header)
    with pytest.raises(ArrayFileError, match=path.name):
        load_hierarchy(path)
    with pytest.raises(FileNotFoundError):
        load_hierarchy(tmp_path / "missing.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: {"domains": h.domains[:-1]}, "member.*domains"),
        (lambda h: {"texts": h.texts[:-1]}, "class.*(texts|token_rows)"),
        (lambda h: {"token_rows": np.zeros((1, 2))}, "class.*(texts|token_rows)"),
        (lambda h: {"classes": h.classes + 1}, r"classes .*0 to 7.*1\.\.8"),
        (lambda h: {"themes": h.themes - 1}, r"themes .*0 to 1.*-1\.\.0"),
        (lambda h: {"members": np.zeros_like(h.members)}, "members .* twice"),
        (lambda h: {name: getattr(h, name)[:0] for name in ARRAYS}, "member.*members"),
    ],
)
def test_parts_that_do_not_fit_together(hierarchy, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(hierarchy, **change(hierarchy))


def test_outline_names_everything(hierarchy):
    text = outline(hierarchy)
    assert "2 themes, 8 classes, 480 pairs" in text
    assert text.index("letter (4 classes, 240 pairs)") < text.index("  alpha") < text.index("pet (4 classes")
    first = np.bincount(hierarchy.domains[hierarchy.classes == 0])
    assert f"  alpha  {first[0]} + {first[1]}\n" in text


def test_class_table_is_that_of_the_clip(hierarchy, small_clip):
    table, expected = class_table(hierarchy, small_clip), small_clip.class_tokens(list(hierarchy.texts))
    for name, field in table._asdict().items():
        np.testing.assert_array_equal(field, getattr(expected, name))


@pytest.mark.parametrize("causal", [True, False])
def test_text_features_are_those_of_the_whole_texts(hierarchy, small_clip, causal):
    clip = small_clip
    if not causal:
        text = dataclasses.replace(clip.config.text, causal=False)
        clip = clip.replace(config=dataclasses.replace(clip.config, text=text))
    expected = gram.encode_text(clip, clip.tokenize([f"a photo of a {text}." for text in hierarchy.texts]))
    np.testing.assert_allclose(text_features(hierarchy, clip), expected, atol=1e-6)


def test_a_class_may_be_a_token_of_its_own(hierarchy, small_clip):
    """A class whose row is the embedding of the word "dog" has the feature of the word "dog"."""
    embeddings = np.asarray(small_clip.params["text"]["token_embedding"])
    dog = small_clip.class_tokens(["dog"])
    rows = np.random.default_rng(0).standard_normal((8, embeddings.shape[1])).astype(np.float32)
    rows[3] = embeddings[int(dog.tail_ids[0, 0])]
    own = dataclasses.replace(hierarchy, token_rows=rows)
    with pytest.raises(ValueError, match="centroid_clip"):
        class_table(own, small_clip)
    larger = centroid_clip(small_clip, own)
    table = class_table(own, larger)
    prompt = gram.TextPrompt(jnp.asarray(embeddings[5:9]))
    for context in (None, prompt):
        found = gram.encode_classes(larger, pack_classes(*table), context)
        np.testing.assert_allclose(found[3], gram.encode_classes(small_clip, dog, context)[0], atol=1e-6)
        assert np.isfinite(np.asarray(found)).all()
        assert np.abs(found[3] - found[4]).max() > 1e-3
    words = small_clip.tokenize(["a red fish"])
    np.testing.assert_array_equal(gram.encode_text(larger, words), gram.encode_text(small_clip, words))
    assert centroid_clip(small_clip, hierarchy) is small_clip
    with pytest.raises(ValueError, match="width 3"):
        centroid_clip(small_clip, dataclasses.replace(hierarchy, token_rows=np.zeros((8, 3), np.float32)))
