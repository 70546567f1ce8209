"""experiments.benchmark.growth at tiny sizes: exponents of known laws, and costs that must grow in proportion."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.benchmark import growth
from gram_jax.io import absolute


@pytest.mark.parametrize("power", [0.0, 1.0, 1.7])
def test_exponents_of_power_laws(power):
    points = [(size, 3.0 * size**power) for size in (1, 2, 7, 100)]
    np.testing.assert_allclose(growth.exponents(points), power, atol=1e-9)


def test_constant_costs_count_least_at_the_end():
    overall, end = growth.exponents([(size, 50.0 + size) for size in (1, 10, 100, 1000)])
    assert 0 < overall < 0.5 < end < 1


def test_axes_are_measured_and_drawn(tmp_path):
    config = growth.Config(axes=("seeds", "shots"), largest=4, repeats=1, small=True)
    results = growth.run(config, absolute(tmp_path))
    assert {row.method for row in results.rows} == {f"{axis} {n}" for axis in ("seeds", "shots") for n in (1, 2, 4)}
    memory = {row.method: row.value for row in results.rows if row.metric == "bytes"}
    assert memory["seeds 4"] > memory["seeds 2"] > memory["seeds 1"]
    assert all(row.value > 0 for row in results.rows)
    assert (tmp_path / "growth.png").stat().st_size > 1000
    assert "exponent" in (tmp_path / "table.md").read_text()


def test_points_beyond_the_memory_are_not_run(tmp_path):
    config = growth.Config(axes=("seeds",), largest=2, run_gib=0.0, small=True)
    assert {row.metric for row in growth.run(config, absolute(tmp_path)).rows} == {"bytes"}
