"""Meta-learning: adaptation that can be differentiated, the meta objective, and its step over all devices."""

from gram_jax.meta.adapt import adapt
from gram_jax.meta.context import Structure, relation, task_context
from gram_jax.meta.initialization import (
    Meta,
    init_meta,
    initial_prompt,
    regulator_context,
    with_structure,
)
from gram_jax.meta.objective import Task, meta_objective
from gram_jax.meta.step import MetaState, MetaStep, make_meta_step

__all__ = [
    "Meta",
    "MetaState",
    "MetaStep",
    "Structure",
    "Task",
    "adapt",
    "init_meta",
    "initial_prompt",
    "make_meta_step",
    "meta_objective",
    "regulator_context",
    "relation",
    "task_context",
    "with_structure",
]
