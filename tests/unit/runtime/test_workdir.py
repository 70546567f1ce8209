"""The lock on the work directory: its message, and its release after a kill."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gram_jax.runtime import WorkdirError, claim

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from gram_jax.runtime import claim
with claim(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of the folder."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_run_is_refused_until_the_first_is_killed(holder, tmp_path):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(WorkdirError) as refused, claim(tmp_path):
        pass
    assert f"process {holder.pid} on {socket.gethostname()}" in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    assert "--workdir" in str(refused.value)
    assert sorted(tmp_path.iterdir()) == before
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with claim(tmp_path) as folder:  # the file is still there, its owner is not
        assert folder == tmp_path
        assert f"process {os.getpid()} " in (tmp_path / "running.lock").read_text()
    assert list(tmp_path.iterdir()) == []


def test_an_error_releases_the_folder_and_another_folder_is_free(tmp_path):
    with pytest.raises(KeyError), claim(tmp_path / "a" / "b"):
        raise KeyError
    with claim(tmp_path / "a" / "b"), claim(tmp_path / "a"):
        assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("precious")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(WorkdirError, match=rf"{workdir} is not writable"), claim(workdir):
            pass
    assert (tmp_path / "file").read_text() == "precious"

    def read_only(path, flags, mode=0o777):
        raise OSError(30, "Read-only file system", path)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(WorkdirError, match=r"Read-only file system"):
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
