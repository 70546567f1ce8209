"""The lock on the work directory: its message, and its release after a kill."""

from __future__ import annotations

import fcntl
import os

import pytest

from gram_jax.errors import InputError
from gram_jax.runtime import claim


def test_an_error_releases_the_folder_and_another_folder_is_free(tmp_path):
    with pytest.raises(KeyError), claim(tmp_path / "a" / "b"):
        raise KeyError
    with claim(tmp_path / "a" / "b"), claim(tmp_path / "a"):
        assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("precious")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=rf"{workdir} is not writable"), claim(workdir):
            pass
    assert (tmp_path / "file").read_text() == "precious"

    def read_only(path, flags, mode=0o777):
        raise OSError(30, "Read-only file system", path)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(InputError, match=r"Read-only file system"):
        claim(tmp_path).__enter__()


def test_where_there_are_no_locks_nobody_is_kept_out(tmp_path, monkeypatch, caplog):
    def none(file, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with claim(tmp_path), claim(tmp_path):
        pass
    assert "has no locks (No locks available)" in caplog.text


def test_only_the_first_of_several_processes_locks(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with claim(tmp_path), claim(tmp_path):
        assert list(tmp_path.iterdir()) == []
