"""Users' checkpoints: files of weights as training, downloads and disks leave them."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gram_jax as gram
from gram_jax.clip.formats.tensors import open_tensors
from gram_jax.errors import InputError
from gram_jax.testing import tiny_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "clip"
    gram.save_clip(tiny_clip(text_layers=1, vision_layers=1), path)
    return path


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "clip")


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = change(load_file(path))
    path.unlink()
    save_file(tensors, path)


PREFIXES = ["module.", "_orig_mod.", "model.", "clip.", "clip_model.", "module._orig_mod.", "model.clip_model."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_training_code_are_removed(folder, copied, prefix):
    rewrite(copied, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    before, after = gram.load_clip(str(folder)), gram.load_clip(str(copied))
    assert gram.weights_hash(after.params) == gram.weights_hash(before.params)


def test_a_prefix_of_some_tensors_is_part_of_their_names(copied):
    rewrite(copied, lambda tensors: tensors | {"head.weight": np.zeros((2, 2), np.float32)})
    assert "head.weight" in open_tensors([copied / "model.safetensors"]).entries


@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, "float32"), (np.inf, "float32"), (-np.inf, "bfloat16"), (1e6, "float16")]
)
def test_weights_that_are_no_numbers_are_named(copied, value, dtype):
    def spoil(tensors):
        tensors["visual_projection.weight"][1, 2] = value
        return tensors

    rewrite(copied, spoil)
    with pytest.raises(
        InputError, match=rf"model\.safetensors, as {dtype}.*1 not finite \(visual_projection\.weight\)"
    ):
        gram.load_clip(str(copied), dtype=dtype)


def test_large_weights_are_no_fault_where_the_type_holds_them(copied):
    rewrite(copied, lambda tensors: tensors | {"visual_projection.weight": tensors["visual_projection.weight"] + 1e6})
    params = gram.load_clip(str(copied), dtype="bfloat16").params
    assert all(bool(jnp.isfinite(leaf.astype(jnp.float32)).all()) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer; run git lfs pull"),
     (b"<!DOCTYPE html><html>404</html>", "HTML; download it again"), (b"\n <html>login</html>", "HTML")],
)  # fmt: skip
def test_what_a_failed_download_leaves(copied, name, content, message):
    (copied / "model.safetensors").unlink()
    (copied / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} is no file of weights, its content is {message}"):
        gram.load_clip(str(copied))


@pytest.mark.parametrize(
    "name", ["flax_model.msgpack", "tf_model.h5", "model.gguf", "model-00001-of-00002.safetensors"]
)
def test_weights_of_other_forms_are_named(copied, name):
    (copied / "model.safetensors").rename(copied / name)
    with pytest.raises(FileNotFoundError, match=f"it holds '{name}'"):
        gram.load_clip(str(copied))


def test_an_index_may_list_fewer_tensors_than_its_shards_hold(folder, copied):
    tensors = load_file(copied / "model.safetensors")
    names, shards = sorted(tensors), ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (copied / "model.safetensors").unlink()
    for place, shard in enumerate(shards):
        save_file({name: tensors[name] for name in names[place::2]}, copied / shard)
    index = {"weight_map": {name: shards[place % 2] for place, name in enumerate(names)} | {"absent": shards[0]}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = gram.load_clip(str(copied))
    assert gram.weights_hash(loaded.params) == gram.weights_hash(gram.load_clip(str(folder)).params)
