"""One run in a work directory: who is told what, and that a run that was killed is in nobody's way."""

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
    """Another process that is at work in the folder."""
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
    assert f"another run (process {holder.pid} on {socket.gethostname()}) is at work in {tmp_path}" in str(
        refused.value
    )
    assert "another --workdir" in str(refused.value)
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
        with pytest.raises(WorkdirError, match=rf"the work directory {workdir} cannot be written to"), claim(workdir):
            pass
    assert (tmp_path / "file").read_text() == "precious"

    def read_only(path, flags, mode=0o777):
        raise OSError(30, "Read-only file system", path)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(WorkdirError, match=r"\(Read-only file system\); make room or mend its permissions"):
        claim(tmp_path).__enter__()


def test_where_there_are_no_locks_nobody_is_kept_out(tmp_path, monkeypatch, caplog):
    def none(file, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with claim(tmp_path), claim(tmp_path):
        pass
    assert "has no locks (No locks available)" in caplog.text


def test_the_file_of_a_run_that_ends_meanwhile_is_not_mistaken_for_a_lock(tmp_path, monkeypatch):
    """Between opening and locking the owner removes the file: the lock must be on the one that others will find."""
    flock, opened = fcntl.flock, []

    def late(file, operation):
        if not opened:
            (tmp_path / "running.lock").unlink()
        opened.append(file)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with claim(tmp_path):
        assert len(opened) == 2
        with pytest.raises(WorkdirError), claim(tmp_path):
            pass


def test_only_the_first_of_several_processes_locks(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with claim(tmp_path), claim(tmp_path):
        assert list(tmp_path.iterdir()) == []
