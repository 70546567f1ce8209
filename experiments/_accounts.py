"""What every program tells about the datasets that it opened: what was left out, and what is unusual."""

from __future__ import annotations

from collections.abc import Iterable

from gram_jax import runtime
from gram_jax.data import Dataset
from gram_jax.data.account import told


def tell(datasets: Iterable[Dataset]) -> None:
    """Prints what was left out of each dataset, and its notes; of several processes, the main one does."""
    for dataset in datasets if runtime.is_main() else ():
        for line in told(dataset.about):
            print(f"{dataset.name}: {line}", flush=True)
