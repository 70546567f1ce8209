"""Corpora and datasets: what learners see, and what they are judged on."""

from gram_jax.data import coop, glyphs, templates
from gram_jax.data.corpus import Corpus, load_corpus
from gram_jax.data.index import Dataset, base_and_new, imbalanced, long_tail, restrict
from gram_jax.data.loading import Ordered, ordered
from gram_jax.data.pairs import Pair, Reading, Skipped, plan_units, read_pairs, read_unit
from gram_jax.data.sources import load_dataset
from gram_jax.data.store import Store, StoreError, open_store
from gram_jax.data.store_key import feature_key
from gram_jax.data.views import view, view_stack

__all__ = [
    "Corpus",
    "Dataset",
    "Ordered",
    "Pair",
    "Reading",
    "Skipped",
    "Store",
    "StoreError",
    "base_and_new",
    "coop",
    "feature_key",
    "glyphs",
    "imbalanced",
    "load_corpus",
    "load_dataset",
    "long_tail",
    "open_store",
    "ordered",
    "plan_units",
    "read_pairs",
    "read_unit",
    "restrict",
    "templates",
    "view",
    "view_stack",
]
