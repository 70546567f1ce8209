"""Gradient-regulating functions: factories of pairs of pure functions, exactly the identity at initialization."""

from gram_jax.regulators.affine import affine
from gram_jax.regulators.base import Regulator
from gram_jax.regulators.gated_low_rank import gated_low_rank
from gram_jax.regulators.identity import identity
from gram_jax.regulators.mask import mask
from gram_jax.regulators.prograd import prograd
from gram_jax.regulators.prometar import prometar
from gram_jax.regulators.registry import NAMES, make
from gram_jax.regulators.structured import structured
from gram_jax.regulators.transform import as_optax

__all__ = [
    "NAMES",
    "Regulator",
    "affine",
    "as_optax",
    "gated_low_rank",
    "identity",
    "make",
    "mask",
    "prograd",
    "prometar",
    "structured",
]
