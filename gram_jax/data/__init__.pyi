from . import glyphs, templates
from .account import Account
from .augmentation import augmented_view, augmented_views
from .corpus import Corpus, load_corpus
from .dataset import Dataset, base_and_new, long_tail, restrict
from .feature_store import (
    FeatureBank,
    Store,
    StoreError,
    feature_key,
    open_bank,
    open_store,
    store_name,
)
from .lazy import LazyRows
from .pairs.base import Pair, Reading, Skipped
from .pairs.reading import plan_units, read_pairs, read_unit
from .prefetch import Ordered, ordered
from .readers import coop
from .readers.sources import load_dataset, load_datasets, register_reader

__all__ = [
    "Account",
    "Corpus",
    "Dataset",
    "FeatureBank",
    "LazyRows",
    "Ordered",
    "Pair",
    "Reading",
    "Skipped",
    "Store",
    "StoreError",
    "augmented_view",
    "augmented_views",
    "base_and_new",
    "coop",
    "feature_key",
    "glyphs",
    "load_corpus",
    "load_dataset",
    "load_datasets",
    "long_tail",
    "open_bank",
    "open_store",
    "ordered",
    "plan_units",
    "read_pairs",
    "read_unit",
    "register_reader",
    "restrict",
    "store_name",
    "templates",
]
