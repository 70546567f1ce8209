"""The lock on the work directory between two processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gram_jax.errors import InputError
from gram_jax.runtime import claim

ROOT = Path(__file__).parents[2]


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
    with pytest.raises(InputError) as refused, claim(tmp_path):
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
