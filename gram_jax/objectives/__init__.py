"""Losses and regularizers: pure functions of features and labels, at least float32 inside, summed by weight."""

from gram_jax.objectives.aggregation import gaussian_aggregate, gaussian_weights
from gram_jax.objectives.base import Reference
from gram_jax.objectives.batches import BatchLoss, batch_loss, positive_weights
from gram_jax.objectives.contrastive import contrastive_loss
from gram_jax.objectives.cpt import class_clusters, cpt
from gram_jax.objectives.cross_entropy import cross_entropy
from gram_jax.objectives.distillation import distillation
from gram_jax.objectives.dpt import dpt_loss
from gram_jax.objectives.etf import simplex_etf, simplex_floor
from gram_jax.objectives.kgcoop import kgcoop
from gram_jax.objectives.long_tail import class_weights, logit_adjustment, long_tailed
from gram_jax.objectives.npt import npt
from gram_jax.objectives.promptsrc import prometar, promptsrc, textual_diversity
from gram_jax.objectives.registry import CLASSIFICATION, NAMES, Combined, make
from gram_jax.objectives.regularized import regularized, weighted_sum

__all__ = [
    "CLASSIFICATION",
    "NAMES",
    "BatchLoss",
    "Combined",
    "Reference",
    "batch_loss",
    "class_clusters",
    "class_weights",
    "contrastive_loss",
    "cpt",
    "cross_entropy",
    "distillation",
    "dpt_loss",
    "gaussian_aggregate",
    "gaussian_weights",
    "kgcoop",
    "logit_adjustment",
    "long_tailed",
    "make",
    "npt",
    "positive_weights",
    "prometar",
    "promptsrc",
    "regularized",
    "simplex_etf",
    "simplex_floor",
    "textual_diversity",
    "weighted_sum",
]
