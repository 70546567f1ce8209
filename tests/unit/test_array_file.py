"""Files of arrays: complete or refused."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from safetensors import safe_open
from safetensors.numpy import save_file

from gram_jax.array_file import ArrayFileError, read_arrays, write_arrays
from gram_jax.errors import InputError

TREE = {"context": np.arange(6, dtype=np.float32).reshape(2, 3), "phi": {"scale": np.float32(2.5), "empty": {}}}
HEADER = {"kind": "example", "steps": 3}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "arrays.safetensors"
    write_arrays(path, TREE, HEADER)
    return path


def test_any_tree_of_dictionaries_is_restored(tmp_path):
    path = tmp_path / "deep" / "er" / "arrays.safetensors"
    tree = {
        "phi": {"gate": {"scale": np.float32(2.5), "empty": {}}, "rows": np.arange(6, dtype=np.int32).reshape(2, 3).T},
        "none": np.zeros((0, 3), np.float64),
        "prompt": {"context": jnp.array([1.5, np.nan, -0.0], jnp.float32)},
        "nothing": {},
    }
    header = {"kind": "meta", "steps": 3, "nested": {"names": ["a", "ü"], "none": None}}
    write_arrays(path, tree, header)
    loaded, loaded_header = read_arrays(str(path))
    assert loaded_header == header
    assert jax.tree.structure(loaded) == jax.tree.structure(tree)
    for old, new in zip(jax.tree.leaves(tree), jax.tree.leaves(loaded), strict=True):
        assert (new.dtype, new.shape) == (old.dtype, old.shape)
        assert new.tobytes() == np.asarray(old).tobytes()
    assert sorted(path.parent.iterdir()) == [path]


def test_equal_contents_make_equal_files_that_safetensors_can_read(saved, tmp_path):
    again = tmp_path / "again.safetensors"
    write_arrays(again, TREE, HEADER)
    assert again.read_bytes() == saved.read_bytes()
    with safe_open(str(saved), "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("context"), TREE["context"])
        assert json.loads(file.metadata()["gram_jax"])["header"] == HEADER


def test_a_write_that_fails_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr(type(epath.Path(saved)), "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_arrays(saved, {}, {})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize(
    ("tree", "header", "message"),
    [
        ([np.zeros(2)], {}, r"x\.safetensors: .* list"),
        ({"a": {"b": [1.0]}}, {}, "a/b is list"),
        ({"a": np.array(["x"])}, {}, "a is <U1"),
        ({"a": jnp.zeros(2, jnp.bfloat16)}, {}, "a is bfloat16"),
        ({"a/b": np.zeros(2)}, {}, "'a/b'"),
        ({1: np.zeros(2)}, {}, "key 1 "),
        ({"a": np.zeros(2)}, {"path": Path("x")}, r"header of .*x\.safetensors"),
        ({"a": np.zeros(2)}, {"loss": float("nan")}, r"header of .*x\.safetensors"),
    ],
)
def test_other_trees_and_headers_are_refused_by_name(tmp_path, tree, header, message):
    with pytest.raises(InputError, match=message):
        write_arrays(tmp_path / "x.safetensors", tree, header)
    assert not list(tmp_path.iterdir())


def test_damage_at_any_byte_is_detected(saved):
    whole = saved.read_bytes()
    rng = np.random.default_rng(0)
    places = {0, 5, 8, 20, len(whole) - 1, *rng.integers(0, len(whole), 25).tolist()}
    damaged = [whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :] for place in places]
    for data in (*damaged, b"", whole[:-1], whole[:30], whole + b"x", b"PK not safetensors at all"):
        saved.write_bytes(data)
        with pytest.raises(ArrayFileError, match=r"arrays\.safetensors"):
            read_arrays(saved)


def test_missing_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileNotFoundError, match=r"x\.safetensors"):
        read_arrays(path)
    save_file({"context": np.zeros((3, 24), np.float32)}, path)
    with pytest.raises(ArrayFileError, match=r"x\.safetensors"):
        read_arrays(path)
