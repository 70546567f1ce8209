"""The names that flags list, against what the registries hold and the modules accept."""

from __future__ import annotations

import pytest

from experiments.benchmark import config as benchmark
from experiments.benchmark import inputs, workloads
from gram_jax import choices, objectives, regulators, tuners
from gram_jax.evaluation import baselines, measures


@pytest.mark.parametrize(
    ("listed", "known"),
    [
        (choices.TUNERS, tuners.NAMES),
        (choices.REGULATORS, regulators.NAMES),
        (choices.REGULARIZERS, objectives.NAMES),
        (choices.BASELINES, baselines.NAMES),
        (choices.METRICS, (*measures.BESIDE, measures.COST, measures.ALL)),
        (benchmark.WORKLOADS, tuple(workloads.WORKLOADS)),
        (benchmark.CLIPS, tuple(inputs.CLIPS)),
    ],
)
def test_lists_of_names_are_complete(listed, known):
    assert listed == known
