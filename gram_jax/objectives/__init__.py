"""Losses: pure functions of features and labels, at least float32 inside."""

from gram_jax.objectives.contrastive import contrastive_loss
from gram_jax.objectives.cross_entropy import cross_entropy
from gram_jax.objectives.regularised import regularised

__all__ = ["contrastive_loss", "cross_entropy", "regularised"]
