"""Corpora and datasets: what learners see, and what they are judged on."""

from gram_jax.data import glyphs
from gram_jax.data.corpus import Corpus, load_corpus
from gram_jax.data.index import Dataset, base_and_new, imbalanced, long_tail, restrict
from gram_jax.data.sources import load_dataset

__all__ = [
    "Corpus",
    "Dataset",
    "base_and_new",
    "glyphs",
    "imbalanced",
    "load_corpus",
    "load_dataset",
    "long_tail",
    "restrict",
]
