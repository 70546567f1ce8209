"""A long sweep keeps nothing of a unit that is done: no device array, no compiled program."""

from __future__ import annotations

import gc

import jax
import pytest

from gram_jax import evaluation
from gram_jax.data import load_dataset
from gram_jax.evaluation import Encoder
from gram_jax.testing import tiny_clip
from gram_jax.tuners import coop


@pytest.mark.slow
def test_units_leave_nothing_behind():
    encoder = Encoder(tiny_clip(text_layers=1, vision_layers=1, text_context_length=40), 16)
    dataset, method = (
        load_dataset("glyphs:chess"),
        evaluation.prompt_method(coop(num_tokens=2), evaluation.TuningPlan(steps=2)),
    )
    compiled: list[str] = []

    def count(event: str, seconds: float, **_: object) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    def unit(seed: int) -> tuple[int, int]:
        """Evaluates a new draw, and returns the numbers of arrays on the device and of compilations so far."""
        evaluation.evaluate(encoder, method, dataset, "few_shot", shots=1, seeds=(seed,))
        gc.collect()
        return len(jax.live_arrays()), len(compiled)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        unit(1)
        first = unit(2)
        assert [unit(seed) for seed in range(3, 6)] == [first] * 3
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
