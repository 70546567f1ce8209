"""A meta step on several devices, in a process that has them: the result does not depend on their number."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]

DEVICES_PROGRAM = """
import json
import jax, numpy as np, optax
from gram_jax import regulators
from gram_jax.meta import make_meta_step
from gram_jax.testing import tiny_clip
from tests.unit.meta.problem import clip_loss, make_meta, make_tasks

clip = tiny_clip(seed=3, text_layers=1, vision_layers=1)
regulator = regulators.gated_low_rank(rank=3, hidden=4, context_dim=4)
tasks, results = make_tasks(clip, 8, 4), {}
for mapper, count in [("shard_map", 1), ("shard_map", 2), ("shard_map", 8), ("pmap", 8)]:
    devices = jax.devices()[:count]
    settings = {"steps": 2, "gradient": "first_order", "cross_weight": 0, "mapper": mapper, "devices": devices}
    step = make_meta_step(clip_loss, regulator, optax.sgd(0.1), **settings)
    meta = make_meta(clip, regulator, np.random.default_rng(0), sides=["text"])
    state, frozen = step.init(meta), step.place(clip)
    for _ in range(2):
        state, metrics = step(state, frozen, tasks)
    assert step.update._cache_size() == 1
    assert {len(leaf.devices()) for leaf in jax.tree.leaves((state, metrics))} == {count}
    results[f"{mapper}-{count}"] = [np.ravel(leaf).tolist() for leaf in jax.tree.leaves((state, metrics))]
print(json.dumps(results))
"""


def test_the_result_does_not_depend_on_devices_or_mapper():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DEVICES_PROGRAM], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    alone = results.pop("shard_map-1")
    assert len(results) == 3
    for name, result in results.items():
        for one, other in zip(result, alone, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5, err_msg=name)
