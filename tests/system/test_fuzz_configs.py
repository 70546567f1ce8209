"""Readers of a clip's folder: config.json, preprocessor_config.json, tokenizer.json, the index of its weights."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from hypothesis import strategies as st

import gram_jax as gram
from gram_jax.clip.formats import huggingface, openclip
from gram_jax.clip.formats.recognition import MODULES, recognize
from gram_jax.clip.formats.shards import shard_files
from gram_jax.clip.images import ImageTransform
from gram_jax.testing import tiny_clip
from tests.system.fuzzing import altered, damaged, few, kept, many, tried

CLIP = tiny_clip(text_layers=1, vision_layers=1)


@functools.cache
def whole() -> dict[str, bytes]:
    """Returns the files of a clip's folder."""
    with kept() as folder:
        gram.save_clip(CLIP, folder)
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def written(folder, **changed: bytes) -> None:
    for name, content in (whole() | changed).items():
        (folder / name).write_bytes(content)


def either(name: str) -> st.SearchStrategy[bytes]:
    """Returns a JSON file that is altered, damaged, or replaced by other content."""
    content = whole()[name]
    document = json.loads(content)
    return st.one_of(
        altered(document).map(lambda found: json.dumps(found).encode()),
        damaged(content),
        st.sampled_from([b"", b"[]", b"3", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000]),
    )


@few(60, content=either("config.json"))
def test_config(content):
    with kept() as folder:
        written(folder, **{"config.json": content})
        config = tried(lambda: huggingface.read_config(folder), ValueError, names="config.json")
        if config is not None:  # comparing shapes with the file needs no memory, whatever the sizes
            tried(lambda: gram.load_clip(folder), ValueError, names=str(folder))


test_config_many = many(test_config, 500)


@few(60, content=either("preprocessor_config.json"))
def test_preprocessor(content):
    with kept() as folder:
        written(folder, **{"preprocessor_config.json": content})
        read = lambda: huggingface.read_transform(folder, CLIP.config)  # noqa: E731
        transform = tried(read, ValueError, names="preprocessor_config.json")
        if transform is not None and (transform.output_size or (0,))[0] <= 64:
            pixels = transform.normalize(np.zeros((2, 3), np.uint8))
            assert np.all(np.isfinite(pixels))


test_preprocessor_many = many(test_preprocessor)


@few(15, content=either("tokenizer.json"), settings=either("tokenizer_config.json"), which=st.integers(0, 2))
def test_tokenizer(content, settings, which):
    changed = {}
    if which != 1:
        changed["tokenizer.json"] = content
    if which != 0:
        changed["tokenizer_config.json"] = settings
    with kept(256 << 20) as folder:
        written(folder, **changed)
        read = lambda: huggingface.read_tokenizer(folder, CLIP.config)  # noqa: E731
        tokenizer = tried(read, ValueError, names=str(folder))
        if tokenizer is not None:
            tried(lambda: tokenizer.encode(["a cat, the é"], truncate=True), ValueError, names="text")


test_tokenizer_many = many(test_tokenizer, 500)
INDEX = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}


@few(content=st.one_of(altered(INDEX).map(lambda found: json.dumps(found).encode()), st.binary(max_size=40)))
def test_index_of_shards(content):
    with kept() as folder:
        written(folder, **{"model.safetensors.index.json": content})
        (folder / "model.safetensors").unlink()
        (folder.parent / "x").mkdir()
        find = lambda: shard_files(folder / huggingface.INDEX)  # noqa: E731
        found = tried(find, ValueError, FileNotFoundError, names=str(folder))
        assert all(path.parent == folder for path in found or ())
        (folder.parent / "x").rmdir()


test_index_of_shards_many = many(test_index_of_shards)
OPENCLIP = {
    "model_cfg": {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 12, "patch_size": 4, "layers": 1, "width": 32, "head_width": 16, "mlp_ratio": 2.0},
        "text_cfg": {"context_length": 24, "vocab_size": 632, "width": 24, "heads": 2, "layers": 1, "mlp_ratio": 2.0},
    },
    "preprocess_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize_mode": "squash",
    },
}


@few(60, content=st.one_of(altered(OPENCLIP).map(lambda found: json.dumps(found).encode()), st.binary(max_size=40)))
def test_openclip_config(content):
    with kept(256 << 20) as folder:
        written(folder, **{openclip.CONFIG: content})
        (folder / "config.json").unlink()
        clip = tried(lambda: gram.load_clip(folder), ValueError, FileNotFoundError, names=str(folder))
        assert clip is None or clip.config.embed_dim == 16


test_openclip_config_many = many(test_openclip_config)
CLIP_MODULES = [{"idx": 0, "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]


@few(content=st.one_of(altered(CLIP_MODULES).map(lambda found: json.dumps(found).encode()), st.binary(max_size=40)))
def test_modules_of_sentence_transformers(content):
    with kept() as folder:
        (folder / MODULES).write_bytes(content)
        (folder / "0_CLIPModel").mkdir()
        written(folder / "0_CLIPModel")
        found = tried(lambda: recognize(folder), ValueError, FileNotFoundError, names=str(folder))
        assert found is None or found[1].folder == folder / "0_CLIPModel"


test_modules_of_sentence_transformers_many = many(test_modules_of_sentence_transformers)


@pytest.mark.parametrize("key", ["num_hidden_layers", "vocab_size", "hidden_size", "image_size", "patch_size"])
def test_a_size_beyond_any_clip_is_refused_at_once(key):
    for tower in ("text_config", "vision_config"):
        document = json.loads(whole()["config.json"])
        if key not in document[tower]:
            continue
        document[tower][key] = 2**60
        with kept(8 << 20) as folder:
            written(folder, **{"config.json": json.dumps(document).encode()})
            with pytest.raises(ValueError, match=rf"config\.json: .*{2**60}"):
                gram.load_clip(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": (2**40, 2**40)}, f"crop={2**40}"),
        ({"rescale_factor": float("nan")}, "rescale_factor=nan"),
        ({"std": (0.5, 0.0, 0.5)}, r"std=\(0.5, 0.0, 0.5\)"),
    ],
)
def test_transforms_that_fill_memory_or_give_no_finite_pixels_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageTransform(**settings)
