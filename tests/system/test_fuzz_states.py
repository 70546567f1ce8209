"""Readers of what a run left behind: headers of checkpoints, metrics, finished units."""

from __future__ import annotations

import functools
import json

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from gram_jax.io import absolute
from gram_jax.runtime import CheckpointError, Checkpoints, MetricsLog, Units, read_metrics
from tests.system.fuzzing import altered, damaged, few, kept, many, tried

CONFIG = {"seed": 0, "optimizer": {"rate": 0.1}}


@functools.cache
def checkpoints() -> dict[str, bytes]:
    """The files of a folder of two checkpoints."""
    with kept() as folder:
        with Checkpoints(folder, CONFIG) as writer:
            for step in (1, 2):
                writer.save(step, {"w": jnp.full(3, step)})
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@few(8, header=altered(json.loads(checkpoints()["2/meta/metadata"])))
def test_headers_of_checkpoints(header):
    with kept() as folder:
        for name, content in checkpoints().items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        (folder / "2/meta/metadata").write_text(json.dumps(header))
        with Checkpoints(folder, CONFIG) as reader:
            found = tried(lambda: reader.restore({"w": jnp.zeros(3, jnp.int32)}), CheckpointError, names=str(folder))
        if found is not None:
            np.testing.assert_array_equal(found.state["w"], np.full(3, found.step))


test_headers_of_checkpoints_many = many(test_headers_of_checkpoints, 300)
METRICS = b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": NaN}\n{"step": 3}\n'


@few(50, content=st.one_of(damaged(METRICS), st.binary(max_size=60), st.just(b"[" * 100_000 + b"\n")))
def test_metrics(content):
    with kept() as folder:
        path = folder / "metrics.jsonl"
        path.write_bytes(content)
        found = tried(lambda: read_metrics(path), ValueError, names="metrics.jsonl")
        opened = tried(lambda: MetricsLog(path, resumed_at=2), ValueError, names="metrics.jsonl")
        if opened is None:
            assert path.read_bytes() == content  # what cannot be read is not overwritten
            return
        with opened as log:
            log.write(3, loss=1.0)
        assert [r["step"] for r in read_metrics(path)] == [r["step"] for r in found if r["step"] <= 2] + [3]


test_metrics_many = many(test_metrics)


def unit_lines() -> bytes:
    with kept() as folder:
        units = Units(absolute(folder) / "rows.jsonl", {"git": "12ab"})
        units.add(("a", 1), {"seed": 1}, 3)
        units.add(("b", None), {"seed": 1}, [0.5])
        return (absolute(folder) / "rows.jsonl").read_bytes()


UNITS = unit_lines()


@few(50, content=st.one_of(damaged(UNITS), st.binary(max_size=60)))
def test_finished_units(content):
    with kept() as folder:
        path = absolute(folder) / "rows.jsonl"
        path.write_bytes(content)
        units = tried(lambda: Units(path), ValueError, names="rows.jsonl")
        if units is None:
            assert path.read_bytes() == content
            return
        before = len(units)
        units.add(("new", 7), {}, "x")
        again = Units(path)
        assert (len(again), again.find(("new", 7), {})) == (before + 1, "x")
        assert content.startswith(path.read_bytes().rpartition(b'{"unit"')[0]) or not before


test_finished_units_many = many(test_finished_units)
