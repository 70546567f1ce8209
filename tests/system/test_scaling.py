"""experiments.benchmark.scaling: a small measurement in several processes."""

import jax
import pytest
from etils import epath

import gram_jax as gram
from experiments.benchmark import scaling
from gram_jax import regulators, tuners
from gram_jax.testing import tiny_clip


@pytest.mark.slow
def test_the_all_reduce_sends_the_gradient_of_devices_and_processes(tmp_path):
    clip = tiny_clip(text_layers=1, vision_layers=1)
    gram.save_clip(clip, tmp_path / "clip")
    prompt = tuners.coop(init_text="a photo of a").init(jax.random.key(0), clip, None)
    phi = regulators.gated_low_rank(rank=scaling.RANK).init(jax.random.key(1), prompt)
    gradient = sum(leaf.nbytes for leaf in jax.tree.leaves((prompt, phi)))
    config = scaling.Config(clip=str(tmp_path / "clip"), devices=(2,), processes=(2,), tasks=1, steps=2)
    rows = scaling.run(config, epath.Path(tmp_path)).rows
    assert [(row.method, row.metric) for row in rows] == [
        (name, metric) for name in ("1 x 2", "2 x 1") for metric in scaling.METRICS
    ]
    assert {row.value for row in rows if row.metric == "all_reduce_bytes"} == {gradient}
    assert all(row.value > 0 for row in rows)
