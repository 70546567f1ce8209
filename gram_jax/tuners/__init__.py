"""Prompt-tuning methods: factories of (init, apply), one contract, and prompts in and out of files."""

from gram_jax.tuners.adaptive import Beliefs, adaptive, monte_carlo
from gram_jax.tuners.base import Outputs, Tuner, frozen_outputs, num_parameters
from gram_jax.tuners.cocoop import cocoop
from gram_jax.tuners.coop import coop
from gram_jax.tuners.dpt import dpt
from gram_jax.tuners.dpt_loss import dpt_loss
from gram_jax.tuners.files import ArrayFileError, load_prompt, read_arrays, save_prompt, write_arrays
from gram_jax.tuners.ivlp import ivlp
from gram_jax.tuners.maple import maple
from gram_jax.tuners.registry import NAMES, make
from gram_jax.tuners.text_deep import text_deep
from gram_jax.tuners.upt import upt
from gram_jax.tuners.vpt import vpt

__all__ = [
    "NAMES",
    "ArrayFileError",
    "Beliefs",
    "Outputs",
    "Tuner",
    "adaptive",
    "cocoop",
    "coop",
    "dpt",
    "dpt_loss",
    "frozen_outputs",
    "ivlp",
    "load_prompt",
    "make",
    "maple",
    "monte_carlo",
    "num_parameters",
    "read_arrays",
    "save_prompt",
    "text_deep",
    "upt",
    "vpt",
    "write_arrays",
]
