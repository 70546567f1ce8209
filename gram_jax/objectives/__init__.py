"""Losses and regularizers: pure functions of features and labels, computed in float32 or more.

`parse("npt(centered=True):1.0,kgcoop:8")` makes the objective that a text names: the cross-entropy plus weighted
regularizers; in Python, `regularized(npt(centered=True) | kgcoop(8))` does the same. `REGISTRY.register(factory)` adds
a factory of your own, `factory(weight=1.0, **settings) -> {name: Regularizer(...)}`. `NAMES` lists those of this
library.
"""

from gram_jax.objectives.aggregation import gaussian_weights
from gram_jax.objectives.base import Reference, Regularizer
from gram_jax.objectives.compose import (
    CLASSIFICATION,
    NAMES,
    REGISTRY,
    BatchLoss,
    Combined,
    Term,
    batch_loss,
    parse,
    positive_terms,
    regularized,
    terms,
    weighted_sum,
)
from gram_jax.objectives.contrastive import contrastive_loss
from gram_jax.objectives.cpt import class_clusters, cpt
from gram_jax.objectives.cross_entropy import cross_entropy
from gram_jax.objectives.distillation import distillation
from gram_jax.objectives.dpt import dpt_loss
from gram_jax.objectives.etf import simplex_etf, simplex_floor
from gram_jax.objectives.kgcoop import kgcoop
from gram_jax.objectives.long_tail import class_weights, logit_adjustment, long_tailed
from gram_jax.objectives.npt import npt
from gram_jax.objectives.pairs import pair_branches, pair_loss, pair_outputs
from gram_jax.objectives.previous import norm_consistency, prompt_distance
from gram_jax.objectives.promptsrc import prometar, promptsrc, textual_diversity

make = REGISTRY.make

__all__ = [
    "CLASSIFICATION",
    "NAMES",
    "REGISTRY",
    "BatchLoss",
    "Combined",
    "Reference",
    "Regularizer",
    "Term",
    "batch_loss",
    "class_clusters",
    "class_weights",
    "contrastive_loss",
    "cpt",
    "cross_entropy",
    "distillation",
    "dpt_loss",
    "gaussian_weights",
    "kgcoop",
    "logit_adjustment",
    "long_tailed",
    "make",
    "norm_consistency",
    "npt",
    "pair_branches",
    "pair_loss",
    "pair_outputs",
    "parse",
    "positive_terms",
    "prometar",
    "prompt_distance",
    "promptsrc",
    "regularized",
    "simplex_etf",
    "simplex_floor",
    "terms",
    "textual_diversity",
    "weighted_sum",
]
