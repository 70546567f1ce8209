from . import glyphs, templates
from .account import Account
from .augmentation import augmented_view, augmented_views
from .compositions import (
    Compositions,
    Entanglement,
    PairDataset,
    balance,
    count_images,
    entanglement,
    feasibility,
)
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
from .readers.compositions import load_compositions
from .readers.sources import load_dataset, load_datasets, register_reader

__all__ = [
    "Account",
    "Compositions",
    "Corpus",
    "Dataset",
    "Entanglement",
    "FeatureBank",
    "LazyRows",
    "Ordered",
    "Pair",
    "PairDataset",
    "Reading",
    "Skipped",
    "Store",
    "StoreError",
    "augmented_view",
    "augmented_views",
    "balance",
    "base_and_new",
    "coop",
    "count_images",
    "entanglement",
    "feasibility",
    "feature_key",
    "glyphs",
    "load_compositions",
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
