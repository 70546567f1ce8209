"""Prompt-tuning methods: factories of (init, apply), one contract, and prompts in and out of files."""

from gram_jax.tuners.base import Outputs, Tuner, frozen_outputs, num_parameters
from gram_jax.tuners.coop import coop
from gram_jax.tuners.files import ArrayFileError, load_prompt, read_arrays, save_prompt, write_arrays
from gram_jax.tuners.ivlp import ivlp
from gram_jax.tuners.registry import NAMES, make
from gram_jax.tuners.vpt import vpt

__all__ = [
    "NAMES",
    "ArrayFileError",
    "Outputs",
    "Tuner",
    "coop",
    "frozen_outputs",
    "ivlp",
    "load_prompt",
    "make",
    "num_parameters",
    "read_arrays",
    "save_prompt",
    "vpt",
    "write_arrays",
]
