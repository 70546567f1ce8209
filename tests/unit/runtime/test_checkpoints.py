"""Checkpoints in one process: equality after restore, other configurations, other states."""

from __future__ import annotations

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.errors import InputError
from gram_jax.runtime import CheckpointError, Checkpoints

CONFIG = {"seed": 0, "optimizer": {"name": "adam", "learning_rate": 0.1}, "shots": (1, 2)}


def make_state(step: int) -> dict:
    key = jax.random.key(step)
    return {
        "weights": jax.random.normal(key, (64, 64)),
        "half": jnp.full((3,), step, jnp.bfloat16),
        "moments": (jnp.arange(4) * step, None),
        "key": key,
        "table": np.arange(5) + step,
        "count": step,
    }


def assert_states_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if isinstance(b, jax.Array) and jax.dtypes.issubdtype(b.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def steps_in(folder) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def write(folder, steps, **settings):
    with Checkpoints(folder, CONFIG, **settings) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step))


def test_restores_the_latest_bit_for_bit(tmp_path):
    write(tmp_path, [1, 2, 3], keep=2)
    assert steps_in(tmp_path) == [2, 3]
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        step, state = checkpoints.restore(make_state(0))
    assert step == 3
    assert_states_equal(state, make_state(3))
    # The restored key draws what the saved one would have drawn.
    np.testing.assert_array_equal(jax.random.normal(state["key"], (3,)), jax.random.normal(jax.random.key(3), (3,)))


def test_abstract_target(tmp_path):
    write(tmp_path, [4])
    abstract = jax.eval_shape(lambda: {k: v for k, v in make_state(4).items() if k not in ("table", "count")})
    abstract |= {"table": np.zeros(5, np.int64), "count": 0}
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        restored = checkpoints.restore(abstract)
    assert_states_equal(restored.state, make_state(4))


def test_empty_folder_restores_nothing(tmp_path):
    with Checkpoints(tmp_path / "new", CONFIG) as checkpoints:
        assert checkpoints.restore(make_state(0)) is None


def test_another_config_is_refused_field_by_field(tmp_path):
    write(tmp_path, [1])
    changed = {"seed": 0, "optimizer": {"name": "sgd", "learning_rate": 0.1}, "shots": (1, 4), "steps": 5}
    with Checkpoints(tmp_path, changed) as checkpoints, pytest.raises(CheckpointError) as caught:
        checkpoints.restore(make_state(0))
    message = str(caught.value)
    assert "optimizer.name was 'adam' and is 'sgd'" in message
    assert "shots was [1, 2] and is [1, 4]" in message
    assert "steps was None and is 5" in message
    assert "learning_rate" not in message
    assert "--workdir" in message
    with Checkpoints(tmp_path, changed, may_change=("optimizer.name", "shots", "steps")) as checkpoints:
        assert checkpoints.restore(make_state(0)).step == 1


def test_another_state_is_refused_leaf_by_leaf(tmp_path):
    write(tmp_path, [1])
    target = make_state(0) | {"weights": jnp.zeros((64, 32)), "half": jnp.zeros(3), "more": jnp.zeros(1)}
    with Checkpoints(tmp_path, CONFIG) as checkpoints, pytest.raises(CheckpointError) as caught:
        checkpoints.restore(target)
    message = str(caught.value)
    assert "state['weights'] was 'float32[64, 64]' and is 'float32[64, 32]'" in message
    assert "state['half'] was 'bfloat16[3]' and is 'float32[3]'" in message
    assert "state['more'] was None and is 'float32[1]'" in message
    assert steps_in(tmp_path) == [1]


def test_a_saved_step_is_left_as_it_is(tmp_path):
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(1, make_state(1))
        checkpoints.save(1, make_state(9))
        checkpoints.wait()
        assert_states_equal(checkpoints.restore(make_state(0)).state, make_state(1))


def test_bad_settings(tmp_path):
    with pytest.raises(InputError, match="keep=0"):
        Checkpoints(tmp_path, CONFIG, keep=0)


def test_sigterm_handler_is_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with Checkpoints(tmp_path, CONFIG):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
