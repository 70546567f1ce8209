"""Meta-learning.

A gradient passes through the modules in this order, from the outer step to the tuner:

    step         the outer step on all devices: gradient of the objective, optimizer update
    objective    query losses after adaptation, averaged over tasks
    initialization, context    the initial prompt of a task, and the input of the regulator
    adapt        the inner loop: regulated gradient steps on the support; calls the loss, which calls `tuner.apply`
"""

from gram_jax.meta.adapt import adapt
from gram_jax.meta.context import Structure, relation, task_context
from gram_jax.meta.initialization import (
    Meta,
    gated_prompt,
    init_meta,
    initial_prompt,
    prompt_between,
    regulator_context,
    with_parts_of,
    with_structure,
)
from gram_jax.meta.objective import Task, meta_objective, random_depths
from gram_jax.meta.step import MetaState, MetaStep, make_meta_step

__all__ = [
    "Meta",
    "MetaState",
    "MetaStep",
    "Structure",
    "Task",
    "adapt",
    "gated_prompt",
    "init_meta",
    "initial_prompt",
    "make_meta_step",
    "meta_objective",
    "prompt_between",
    "random_depths",
    "regulator_context",
    "relation",
    "task_context",
    "with_parts_of",
    "with_structure",
]
