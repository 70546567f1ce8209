"""Paths, JSON and atomic writes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gram_jax import io
from gram_jax.errors import InputError


def test_only_urls_are_remote_and_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(io.absolute("run")) == str(tmp_path / "run")
    assert str(io.absolute("gs://bucket/run")) == "gs://bucket/run"
    assert (io.is_remote("gs://bucket"), io.is_remote("/a/b"), io.is_remote(tmp_path)) == (True, False, False)


def test_a_file_appears_complete_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with io.atomic_path(path) as part:
        part.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"

    def interrupted():
        with io.atomic_path(path) as part:
            part.write_text("other")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


def test_two_writers_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "file.txt"
    with io.atomic_path(path) as one, io.atomic_path(path) as two:
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one"  # the outer writer finished last
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match="space") as caught, io.atomic_path(tmp_path / "file.txt"):
        raise OSError(28, "no space left")
    assert caught.value.filename == str(tmp_path / "file.txt")


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, True]}, "ü \ud800 \n", [], 3])
def test_json_is_restored(tmp_path, value):
    io.write_json(tmp_path / "x.json", value)
    assert io.read_json(str(tmp_path / "x.json")) == value
    assert (tmp_path / "x.json").read_bytes().endswith(b"\n")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": 1} x', b"9" * 5000])
def test_bad_json_is_named(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.json"):
        io.read_json(tmp_path / "x.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x\.json"):
        io.read_json(tmp_path / "x.json")


def test_text_is_utf8_and_bytes_are_as_given(tmp_path):
    io.write_file(tmp_path / "a", "ü")
    io.write_file(tmp_path / "b", b"\x00\xff")
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == ("ü".encode(), b"\x00\xff")
    io.write_json(tmp_path / "c", {"a": 1}, indent=None)
    assert json.loads((tmp_path / "c").read_text()) == {"a": 1}


def test_arrays_are_restored(tmp_path):
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.float32(0.5)}
    io.write_npz(tmp_path / "x.npz", arrays)
    io.write_npy(tmp_path / "x.npy", arrays["a"])
    with np.load(tmp_path / "x.npz") as loaded:
        assert {name: loaded[name].tolist() for name in loaded} == {"a": [[0, 1, 2], [3, 4, 5]], "b": 0.5}
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), arrays["a"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy", "x.npz"]
