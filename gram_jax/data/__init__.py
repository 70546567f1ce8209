"""Corpora and datasets: what learners see, and what they are judged on."""

from gram_jax.data import glyphs
from gram_jax.data.index import Dataset, base_and_new, long_tail
from gram_jax.data.sources import load_dataset

__all__ = ["Dataset", "base_and_new", "glyphs", "load_dataset", "long_tail"]
