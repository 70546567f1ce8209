"""Files of learned arrays: whole or refused, and never loaded onto what they do not belong to."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from gram_jax import tuners
from gram_jax.clip import weights_hash
from gram_jax.testing import tiny_clip

KEY = jax.random.key(0)
TUNER = tuners.coop(num_tokens=3)


@pytest.fixture
def saved(clip, tmp_path):
    path = tmp_path / "prompt.safetensors"
    tuners.save_prompt(path, TUNER.init(KEY, clip, None), TUNER, clip)
    return path


def test_any_tree_of_dictionaries_comes_back(tmp_path):
    path = tmp_path / "deep" / "er" / "arrays.safetensors"
    tree = {
        "phi": {"gate": {"scale": np.float32(2.5), "empty": {}}, "rows": np.arange(6, dtype=np.int32).reshape(2, 3).T},
        "none": np.zeros((0, 3), np.float64),
        "prompt": {"context": jnp.array([1.5, np.nan, -0.0], jnp.float32)},
        "nothing": {},
    }
    header = {"kind": "meta", "steps": 3, "nested": {"names": ["a", "ü"], "none": None}}
    tuners.write_arrays(path, tree, header)
    found, found_header = tuners.read_arrays(str(path))
    assert found_header == header
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for old, new in zip(jax.tree.leaves(tree), jax.tree.leaves(found), strict=True):
        assert (new.dtype, new.shape) == (old.dtype, old.shape)
        assert new.tobytes() == np.asarray(old).tobytes()
    assert sorted(path.parent.iterdir()) == [path]


def test_equal_contents_make_equal_files_that_anything_can_read(clip, saved, tmp_path):
    again = tmp_path / "again.safetensors"
    prompt = TUNER.init(KEY, clip, None)
    tuners.save_prompt(again, prompt, TUNER, clip)
    assert again.read_bytes() == saved.read_bytes()
    with safe_open(str(saved), "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("context"), prompt["context"])
        header = json.loads(file.metadata()["gram_jax"])["header"]
    assert header["clip"]["weights_hash"] == weights_hash(clip.params)
    assert (header["kind"], header["tuner"], header["settings"]["num_tokens"]) == ("prompt", "coop", 3)
    assert saved.stat().st_size < 3000


def test_a_write_that_fails_leaves_the_old_file(saved, clip):
    before = saved.read_bytes()
    saved.with_name(f"{saved.name}.part").mkdir()  # where the new file would grow
    with pytest.raises(OSError, match="part"):
        tuners.save_prompt(saved, TUNER.init(jax.random.key(1), clip, None), TUNER, clip)
    assert saved.read_bytes() == before


@pytest.mark.parametrize(
    ("tree", "header", "message"),
    [
        ([np.zeros(2)], {}, "nested dictionaries, found list"),
        ({"a": {"b": [1.0]}}, {}, "a/b must be an array of .*, found list"),
        ({"a": np.array(["x"])}, {}, "a must be an array of .*, found <U1"),
        ({"a": jnp.zeros(2, jnp.bfloat16)}, {}, "a must be an array of .*, found bfloat16"),
        ({"a/b": np.zeros(2)}, {}, "Keys must be texts without '/', found 'a/b'"),
        ({1: np.zeros(2)}, {}, "found 1 below 'the top'"),
        ({"a": np.zeros(2)}, {"path": Path("x")}, "header of .* must be JSON"),
        ({"a": np.zeros(2)}, {"loss": float("nan")}, "header of .* must be JSON"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(tmp_path, tree, header, message):
    with pytest.raises(ValueError, match=message):
        tuners.write_arrays(tmp_path / "x.safetensors", tree, header)
    assert not list(tmp_path.iterdir())


def test_damage_anywhere_is_noticed(saved, clip):
    whole = saved.read_bytes()
    rng = np.random.default_rng(0)
    places = {0, 5, 8, 20, len(whole) - 1, *rng.integers(0, len(whole), 25).tolist()}
    damaged = [whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :] for place in places]
    for data in (*damaged, b"", whole[:-1], whole[:30], whole + b"x", b"PK not safetensors at all"):
        saved.write_bytes(data)
        with pytest.raises(tuners.ArrayFileError, match=r"prompt\.safetensors"):
            tuners.load_prompt(saved, TUNER, clip)


def test_files_that_are_not_prompts_are_refused(tmp_path, clip):
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileNotFoundError, match=r"x\.safetensors does not exist"):
        tuners.load_prompt(path, TUNER, clip)
    save_file({"context": np.zeros((3, 24), np.float32)}, path)
    with pytest.raises(tuners.ArrayFileError, match="was not saved by gram_jax"):
        tuners.load_prompt(path, TUNER, clip)
    tuners.write_arrays(path, {"context": np.zeros((3, 24), np.float32)}, {"kind": "meta"})
    with pytest.raises(tuners.ArrayFileError, match="holds 'meta', not 'prompt'"):
        tuners.load_prompt(path, TUNER, clip)


def test_a_prompt_of_another_tuner_settings_or_clip_is_refused(saved, clip):
    like = {"text_layers": 4, "text_heads": 3, "vision_layers": 4, "vision_width": 30, "vision_heads": 5}
    cases = [
        (tuners.vpt(), clip, "saved by the tuner 'coop', not by 'vpt'"),
        (tuners.coop(num_tokens=5), clip, "other settings of coop: num_tokens is 3 there and 5 here"),
        (tuners.coop(3, position="front"), clip, "position is 'end' there and 'front' here"),
        (TUNER, tiny_clip(**like | {"text_width": 30}), "text width is 24; this clip's is 30"),
        (TUNER, tiny_clip(), "vision width is 30; this clip's is 32"),
        (TUNER, tiny_clip(**like, embed_dim=8), "embed dim is 16; this clip's is 8"),
        (TUNER, tiny_clip(seed=1, **like), f"other weights: hash {weights_hash(clip.params)[:12]}"),
    ]
    for tuner, other, message in cases:
        with pytest.raises(tuners.ArrayFileError, match=message):
            tuners.load_prompt(saved, tuner, other)
    same = clip.replace(params=jax.tree.map(jnp.copy, clip.params))
    np.testing.assert_array_equal(
        tuners.load_prompt(saved, TUNER, same)["context"], TUNER.init(KEY, clip, None)["context"]
    )


def test_a_prompt_is_saved_with_its_own_tuner_only(clip, tmp_path):
    path = tmp_path / "x.safetensors"
    prompt = TUNER.init(KEY, clip, None)
    for tuner, wrong in (
        (tuners.coop(num_tokens=5), prompt),
        (tuners.vpt(), prompt),
        (TUNER, {"context": prompt["context"].astype(jnp.float16)}),
    ):
        with pytest.raises(tuners.ArrayFileError, match=r"the prompt is not one of .* expected"):
            tuners.save_prompt(path, wrong, tuner, clip)
    assert not path.exists()
