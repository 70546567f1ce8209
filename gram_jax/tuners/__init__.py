"""Prompt-tuning methods, one factory each: `tuner.init` creates a prompt, `tuner.apply` runs the clip with it.

`make("coop", num_tokens=16)` and `parse("coop(num_tokens=16)")` make a tuner by name. `REGISTRY.register(factory)` adds
a factory of your own; its name then works wherever a tuner is named: in `make`, in files and in flags. `NAMES` lists
the methods of this library, `PAIR_NAMES` those whose classes are attribute-object pairs.
"""

from gram_jax.registry import Registry
from gram_jax.tuners.adaptive import adaptive
from gram_jax.tuners.base import Outputs, Prompt, Tuner, frozen_outputs, num_parameters
from gram_jax.tuners.cocoop import cocoop
from gram_jax.tuners.coop import coop
from gram_jax.tuners.csp import csp
from gram_jax.tuners.dfsp import dfsp
from gram_jax.tuners.dpt import dpt
from gram_jax.tuners.ivlp import ivlp
from gram_jax.tuners.maple import maple
from gram_jax.tuners.pairs import PairClasses, pair_classes
from gram_jax.tuners.text_deep import text_deep
from gram_jax.tuners.troika import troika
from gram_jax.tuners.upt import upt
from gram_jax.tuners.vpt import vpt
from gram_jax.tuners.vpt_kv import kv_slots, vpt_kv

_FOR_NAMES = (adaptive, cocoop, coop, dpt, ivlp, maple, text_deep, upt, vpt, vpt_kv)
_FOR_PAIRS = (csp, dfsp, troika)
REGISTRY: Registry[Tuner] = Registry("tuner", *_FOR_NAMES, *_FOR_PAIRS)
NAMES, PAIR_NAMES = (tuple(factory.__name__ for factory in own) for own in (_FOR_NAMES, _FOR_PAIRS))
make = REGISTRY.make
parse = REGISTRY.parse

__all__ = [
    "NAMES",
    "PAIR_NAMES",
    "REGISTRY",
    "Outputs",
    "PairClasses",
    "Prompt",
    "Tuner",
    "adaptive",
    "cocoop",
    "coop",
    "csp",
    "dfsp",
    "dpt",
    "frozen_outputs",
    "ivlp",
    "kv_slots",
    "make",
    "maple",
    "num_parameters",
    "pair_classes",
    "parse",
    "text_deep",
    "troika",
    "upt",
    "vpt",
    "vpt_kv",
]
