"""Losses: pure functions of features and labels, at least float32 inside."""

from gram_jax.objectives.contrastive import contrastive_loss

__all__ = ["contrastive_loss"]
