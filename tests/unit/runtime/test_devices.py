"""Settings of processes, and the functions of devices in one process."""

import socket

import jax
import pytest

from gram_jax import runtime
from gram_jax.errors import InputError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("10.0.0.1:80", 2, None),
            r"--coordinator_address=10\.0\.0\.1:80 --num_processes=2 .*--process_id",
        ),
        (("10.0.0.1:80", None, 1), "--process_id=1 .*--num_processes"),
        ((None, 2, 0), "--num_processes=2 --process_id=0 .*--coordinator_address"),
        ((None, None, 0), "--process_id=0 .*--coordinator_address and --num_processes"),
        (("10.0.0.1", 2, 0), r"--coordinator_address=10\.0\.0\.1: "),
        ((":80", 2, 0), "--coordinator_address=:80: "),
        (("host:port", None, None), "--coordinator_address=host:port: "),
        (("host:99999", 2, 0), "--coordinator_address=host:99999"),
        (("host:80", 0, 0), "--num_processes=0"),
        (("host:80", 2, 2), "--process_id=2: .*--num_processes=2"),
        (("host:80", 2, -1), "--process_id=-1"),
    ],
)
def test_settings_that_no_group_of_processes_can_have_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        runtime.connect(*given)
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize("given", [(None, None, None), ("host:80", None, None), ("[::1]:8476", 4, 3)])
def test_settings_that_a_group_can_have_reach_jax(monkeypatch, given):
    received = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *settings, **_: received.append(settings))
    runtime.connect(*given, preemption=bool(jax.config.jax_enable_preemption_service))
    assert received == [given]


def test_a_port_that_is_taken_is_named():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen on port {port}"):
            runtime.connect(f"127.0.0.1:{port}", 2, 0)


def test_alone_nothing_waits_and_everything_is_here():
    assert runtime.is_main()
    runtime.barrier("anything")
    assert runtime.gather({"a": (1, None)}) == [{"a": [1, None]}]
    assert not runtime.is_process_loss(ValueError("Gloo all-reduce failed"))
