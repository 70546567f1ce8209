"""Padding and mapping over batches against plain NumPy."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from gram_jax.batching import map_batches, pad_to, padded_batches, round_up

ROWS = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


@pytest.mark.parametrize(("number", "multiple"), [(0, 4), (1, 4), (4, 4), (13, 8), (16, 8), (17, 1)])
def test_round_up_is_the_next_multiple(number, multiple):
    expected = next(value for value in range(number, number + multiple) if value % multiple == 0)
    assert round_up(number, multiple) == expected


def test_padding_repeats_the_last_entry_or_fills():
    padded = pad_to(ROWS, 9)
    np.testing.assert_array_equal(padded, np.concatenate([ROWS, ROWS[-1:], ROWS[-1:]]))
    filled = pad_to(ROWS, 8, 5, fill=-1)
    assert filled.shape == (8, 5)
    assert filled.dtype == ROWS.dtype
    np.testing.assert_array_equal(filled[:7, :3], ROWS)
    assert (filled[7:] == -1).all()
    assert (filled[:, 3:] == -1).all()
    np.testing.assert_array_equal(pad_to(ROWS, 7), ROWS)
    assert pad_to(np.zeros((0, 2)), 2, fill=1).tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("size", [1, 2, 7, 20])
def test_batches_have_one_size_and_cover_all_rows_once(size):
    batches = list(padded_batches(ROWS, size))
    assert {batch.shape for batch, _ in batches} == {(size, 3)}
    np.testing.assert_array_equal(np.concatenate([batch[:count] for batch, count in batches]), ROWS)


@pytest.mark.parametrize("size", [1, 3, 7, 20])
def test_mapping_compiles_once_and_equals_one_call(size):
    traces = []

    @jax.jit
    def function(rows):
        traces.append(rows.shape)
        return {"double": 2 * rows, "sum": rows.sum(axis=1)}

    mapped = map_batches(function, ROWS, size)
    assert traces == [(size, 3)]
    np.testing.assert_array_equal(mapped["double"], 2 * ROWS)
    np.testing.assert_allclose(mapped["sum"], ROWS.sum(axis=1), rtol=1e-6)
