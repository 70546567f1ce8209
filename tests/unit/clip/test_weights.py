"""Reading, writing and hashing weights, against files made by hand."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gram_jax.clip import WeightsError, init_params, weights_hash
from gram_jax.clip.formats.vit import HUGGINGFACE
from gram_jax.clip.formats.weights import read_weights, write_weights
from gram_jax.testing import tiny_clip, tiny_config


@pytest.fixture(scope="module")
def small():
    return tiny_clip(text_layers=2, vision_layers=3)


@pytest.fixture
def file(small, tmp_path):
    path = tmp_path / "model.safetensors"
    write_weights(small.params, small.config, path)
    return path


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_weights_are_as_readable_as_any_new_file(file):
    other = file.with_name("other")
    other.touch()
    assert file.stat().st_mode == other.stat().st_mode


def test_names_and_layouts(small, file):
    """Compares a few tensors with values written out, and the convolution with what it computes."""
    tensors, params = load_file(file), jax.tree.map(np.asarray, small.params)
    layers = params["text"]["layers"]
    key = tensors["text_model.encoder.layers.1.self_attn.k_proj.weight"]
    np.testing.assert_array_equal(key, layers["attention"]["key"]["kernel"][1].T)
    np.testing.assert_array_equal(tensors["text_model.encoder.layers.0.mlp.fc1.bias"], layers["mlp"]["up"]["bias"][0])
    norm = tensors["vision_model.encoder.layers.2.layer_norm2.weight"]
    np.testing.assert_array_equal(norm, params["vision"]["layers"]["norm_2"]["scale"][2])
    np.testing.assert_array_equal(tensors["vision_model.pre_layrnorm.bias"], params["vision"]["pre_norm"]["bias"])
    np.testing.assert_array_equal(tensors["visual_projection.weight"], params["vision"]["projection"].T)
    assert tensors["logit_scale"].shape == ()
    side = small.config.vision.patch_size
    patch = np.random.default_rng(0).normal(size=(side, side, 3)).astype(np.float32)
    kernel = tensors["vision_model.embeddings.patch_embedding.weight"]
    convolved = np.einsum("dchw,hwc->d", kernel, patch)
    np.testing.assert_allclose(patch.reshape(-1) @ params["vision"]["patch_embedding"], convolved, atol=1e-5)


def test_the_table_covers_the_tree(small, file):
    paths = {tuple(key.key for key in path) for path, _ in jax.tree_util.tree_flatten_with_path(small.params)[0]}
    assert {row.path for row in HUGGINGFACE.rows} == paths
    assert len(load_file(file)) == 3 + 4 + 7 + 16 * (2 + 3)  # projections and scale, text, vision, layers


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_types(small, tmp_path, dtype):
    path = tmp_path / "half.safetensors"
    write_weights(small.params, small.config, path, dtype)
    assert {tensor.dtype for tensor in load_file(path).values()} == {jnp.dtype(dtype)}
    rounded = jax.tree.map(lambda leaf: leaf.astype(dtype), small.params)
    assert_same(read_weights([path], small.config, dtype), rounded)
    assert_same(read_weights([path], small.config), jax.tree.map(lambda leaf: leaf.astype("float32"), rounded))


def test_shards_and_old_constants(small, file, tmp_path):
    tensors = load_file(file)
    tensors["text_model.embeddings.position_ids"] = np.arange(24)[None]
    names = sorted(tensors)
    shards = [tmp_path / f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    for number, shard in enumerate(shards):
        save_file({name: tensors[name] for name in names[number::3]}, shard)
    assert_same(read_weights(shards, small.config), small.params)


def test_one_error_lists_all_problems(small, file):
    tensors = load_file(file)
    del tensors["logit_scale"], tensors["text_model.encoder.layers.1.mlp.fc2.weight"]
    tensors["vision_model.encoder.layers.3.mlp.fc1.bias"] = np.zeros(64, np.float32)
    tensors["text_projection.weight"] = tensors["text_projection.weight"].T.copy()
    tensors["visual_projection.weight"] = np.zeros((16, 32), np.int8)
    save_file(tensors, file)
    with pytest.raises(WeightsError) as caught:
        read_weights([file], small.config)
    message = str(caught.value)
    assert message.startswith(f"{file} does not fit config.json")
    assert "\n" not in message
    for part in (
        "2 missing (logit_scale [], text_model.encoder.layers.1.mlp.fc2.weight [24, 48])",
        "1 unexpected (vision_model.encoder.layers.3.mlp.fc1.bias [64])",
        "1 misshaped (text_projection.weight [24, 16] instead of [16, 24])",
        "(visual_projection.weight I8 instead of F32, F16, BF16)",
    ):
        assert part in message


def test_a_long_list_is_cut(small, tmp_path):
    save_file({"logit_scale": np.zeros((), np.float32)}, tmp_path / "empty.safetensors")
    with pytest.raises(WeightsError, match=r"93 missing \((\S+ \[[\d, ]*\], ){10}and 83 more\)$"):
        read_weights([tmp_path / "empty.safetensors"], small.config)


def test_a_tensor_in_two_shards(small, file, tmp_path):
    save_file({"logit_scale": np.zeros((), np.float32)}, tmp_path / "again.safetensors")
    with pytest.raises(WeightsError, match=r"logit_scale in both model.safetensors and again.safetensors"):
        read_weights([file, tmp_path / "again.safetensors"], small.config)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-100], lambda data: b"\xff" * 8 + data[8:], lambda data: b"PK\x03\x04"]
)
def test_damaged_files(small, file, damage):
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(WeightsError, match=f"{file} is not a complete safetensors file"):
        read_weights([file], small.config)


def test_parameters_that_do_not_fit(small, tmp_path):
    wrong = {**small.params, "extra": jnp.zeros(3), "logit_scale": jnp.zeros(2)}
    with pytest.raises(WeightsError) as caught:
        write_weights(wrong, small.config, tmp_path / "model.safetensors")
    assert "1 unexpected (extra)" in str(caught.value)
    assert "logit_scale [2] instead of []" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_only_rgb_images_are_supported(tmp_path):
    config = tiny_config(vision_channels=4)
    shapes = jax.eval_shape(lambda key: init_params(key, config), jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    with pytest.raises(WeightsError, match="the patch embedding has 64 rows"):
        write_weights(params, config, tmp_path / "model.safetensors")


def test_unknown_dtype(small, file):
    with pytest.raises(ValueError, match=r"dtype='int8'.* float32, float16, bfloat16"):
        read_weights([file], small.config, "int8")


def test_writing_is_atomic(small, file, monkeypatch):
    before = file.read_bytes()

    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write_weights(small.params, small.config, file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_hash_is_of_the_file_contents(small, file):
    """Recomputes the hash from the file: a digest of the sorted digests of the tensors."""
    lines = [
        f"{name} {list(tensor.shape)} {hashlib.sha256(tensor.astype('<f4').tobytes()).hexdigest()}"
        for name, tensor in sorted(load_file(file).items())
    ]
    assert weights_hash(small.params) == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_hash_depends_on_values_and_not_on_types(small):
    halves = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), small.params)
    assert weights_hash(halves) == weights_hash(jax.tree.map(lambda leaf: leaf.astype("float32"), halves))
    assert weights_hash(halves) != weights_hash(small.params)
    leaves, tree = jax.tree.flatten(small.params)
    for index, leaf in enumerate(leaves):
        changed = leaf.at[(0,) * leaf.ndim].add(1e-3)
        assert weights_hash(jax.tree.unflatten(tree, [*leaves[:index], changed, *leaves[index + 1 :]])) != weights_hash(
            small.params
        )


MEASURE = """
import pathlib, resource, sys
import jax
from gram_jax.clip import ClipConfig
from gram_jax.clip.formats.weights import _shapes, read_weights
import safetensors, safetensors.numpy
config = ClipConfig.from_hf({"model_type": "clip", "vision_config": {"patch_size": 16}})
jax.block_until_ready(jax.numpy.zeros(()))
_shapes(config)
def peak():
    # On Linux a child inherits its parent's ru_maxrss; VmHWM is its own.
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
before = peak()
params = jax.block_until_ready(read_weights([sys.argv[1]], config))
print(peak() - before, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""


@pytest.mark.slow
def test_peak_memory_at_full_size(tmp_path):
    torch = pytest.importorskip("torch", reason="the weights are written by transformers")
    from transformers import CLIPConfig, CLIPModel

    with torch.device("cpu"):
        CLIPModel(CLIPConfig(vision_config={"patch_size": 16})).save_pretrained(tmp_path)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "model.safetensors")]
    rise, size = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert size > 590e6
    assert size < rise < 2.5 * size, f"{rise / size:.2f} times the size"
