"""The metrics log: what a reader of the file finds, also after a kill and a resume."""

from __future__ import annotations

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.runtime import MetricsLog, read_metrics


def test_each_line_is_json_at_once(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    log = MetricsLog(path)
    log.write(1, loss=jnp.float32(0.5), count=np.int64(3), name="a", flag=True, half=jnp.bfloat16(1.5), one=np.ones(1))
    # Read before closing: a line must be on disk when the run is killed right after it.
    assert json.loads(path.read_text()) == {
        "step": 1, "loss": 0.5, "count": 3, "name": "a", "flag": True, "half": 1.5, "one": 1.0
    }  # fmt: skip
    log.close()


def test_resume_equals_an_uninterrupted_run(tmp_path):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    with MetricsLog(whole) as log:
        for step in range(1, 7):
            log.write(step, loss=0.1 / step)
    with MetricsLog(parts) as log:
        for step in range(1, 6):
            log.write(step, loss=0.1 / step)
    parts.write_bytes(parts.read_bytes()[:-7])  # killed within a line
    with MetricsLog(parts, resumed_at=3) as log:
        for step in range(4, 7):
            log.write(step, loss=0.1 / step)
    assert parts.read_bytes() == whole.read_bytes()


def test_a_new_run_begins_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for _ in range(2):
        with MetricsLog(path) as log:
            log.write(1, loss=1.0)
    assert read_metrics(path) == [{"step": 1, "loss": 1.0}]


def test_non_finite_values_stay_valid_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write(1, a=math.nan, b=-math.inf)

    def refuse(constant):
        raise AssertionError(constant)

    record = json.loads(path.read_text(), parse_constant=refuse)
    assert record == {"step": 1, "a": "nan", "b": "-inf"}
    assert math.isnan(float(record["a"]))


@pytest.mark.parametrize("value", [np.ones(2), None, {"a": 1}])
def test_only_scalars(tmp_path, value):
    with MetricsLog(tmp_path / "metrics.jsonl") as log, pytest.raises(ValueError, match="metric 'bad'"):
        log.write(1, bad=value)


def test_foreign_file_is_refused_with_its_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n3\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: .*found '3'"):
        MetricsLog(path, resumed_at=1)
    assert path.read_text() == '{"step": 1}\n3\n'


def test_only_process_zero_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.write(1, loss=1.0)
    assert list(tmp_path.iterdir()) == []
