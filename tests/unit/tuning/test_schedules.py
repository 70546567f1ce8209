"""Schedules against the schedulers of public code, stepped as its trainer steps them."""

import math

import numpy as np
import pytest

import gram_jax as gram


def public_rates(base, epochs, warmup=1, low=1e-5):
    """PyTorch's recursive cosine behind a constant warm-up, one call of step() after each epoch."""
    rates, warm, cosine = [], 0, 0
    rate = low
    for _ in range(epochs):
        rates.append(rate)
        if warm >= warmup:  # the successor moves, the warm-up's own counter no longer does
            cosine += 1
            rate *= (1 + math.cos(math.pi * cosine / epochs)) / (1 + math.cos(math.pi * (cosine - 1) / epochs))
        else:
            warm += 1
            rate = base if warm >= warmup else low
    return rates


@pytest.mark.parametrize(("epochs", "epoch_steps"), [(1, 4), (5, 1), (50, 3), (200, 2)])
def test_warmup_cosine_is_the_public_one(epochs, epoch_steps):
    total = epochs * epoch_steps
    found = [gram.tuning.scheduled_rate("warmup_cosine", 0.002, k, total, epoch_steps) for k in range(total)]
    np.testing.assert_allclose(found, np.repeat(public_rates(0.002, epochs), epoch_steps), atol=1e-9)
    assert min(found) > 0


@pytest.mark.parametrize(("warmup", "low"), [(10, 1e-5), (3, 1e-6), (7, 1e-5)])
def test_longer_warmups_are_the_public_ones(warmup, low):
    found = [gram.tuning.scheduled_rate("warmup_cosine", 0.01, k, 14, 2, warmup, low) for k in range(14)]
    np.testing.assert_allclose(found, np.repeat(public_rates(0.01, 7, warmup, low), 2), atol=1e-9)


def test_an_epoch_that_is_not_finished_counts():
    found = [float(gram.tuning.scheduled_rate("warmup_cosine", 1.0, k, 7, 3)) for k in range(7)]
    np.testing.assert_allclose(found, np.repeat(public_rates(1.0, 3), 3)[:7], rtol=1e-5)


def test_the_others():
    assert gram.tuning.scheduled_rate("constant", 0.3, 5, 9, 1) == 0.3
    for k in range(9):
        expected = 0.3 * (1 + math.cos(math.pi * k / 9)) / 2
        assert float(gram.tuning.scheduled_rate("cosine", 0.3, k, 9, 4)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="schedule='step'"):
        gram.tuning.scheduled_rate("step", 0.3, 0, 9, 1)
