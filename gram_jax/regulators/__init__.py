"""Gradient-regulating functions, one factory each: `regulator.apply` maps a gradient to a gradient.

`make("mask", hidden=8)` and `parse("mask(hidden=8)")` make a regulator by name. `REGISTRY.register(factory)` adds a
factory of your own, which is then known by its name wherever a regulator is named. `NAMES` are those of this library.
"""

from gram_jax.registry import Registry
from gram_jax.regulators.affine import affine
from gram_jax.regulators.base import Regulator, as_optax
from gram_jax.regulators.gated_low_rank import gated_low_rank
from gram_jax.regulators.identity import identity
from gram_jax.regulators.kronecker import kronecker
from gram_jax.regulators.mask import mask
from gram_jax.regulators.prograd import prograd
from gram_jax.regulators.prometar import prometar
from gram_jax.regulators.structured import structured

REGISTRY: Registry[Regulator] = Registry(
    "regulator", affine, gated_low_rank, identity, kronecker, mask, prograd, prometar, structured
)
NAMES = REGISTRY.names
make = REGISTRY.make
parse = REGISTRY.parse

__all__ = [
    "NAMES",
    "REGISTRY",
    "Regulator",
    "affine",
    "as_optax",
    "gated_low_rank",
    "identity",
    "kronecker",
    "make",
    "mask",
    "parse",
    "prograd",
    "prometar",
    "structured",
]
