"""The labeled datasets of the embedded world as indices that draw their images when they are read."""

from __future__ import annotations

import numpy as np

from gram_jax.data.dataset import Dataset
from gram_jax.data.glyphs.datasets import catalog
from gram_jax.data.glyphs.world import SPLIT_SIZES, domain_name, example, split_domain


def labeled(name: str, domain: str = "", seed: int = 0) -> Dataset:
    """A labeled dataset in one visual domain.

    Args:
      name: a name of ``catalog.NAMES``.
      domain: a face, a rendering, face+rendering, or the path of a font file; "" for the corpus faces in plain print.
      seed: the seed of the images.

    Returns:
      A ``Dataset``; references are ``[split, label, number]``.

    Raises:
      InputError: for a dataset or a domain that does not exist.
      FontError: for a font file that cannot be used.

    Example:
      >>> chess = labeled("chess", "negative")
      >>> len(chess), chess.class_names[6], chess.images([0])[0].shape
      (720, 'black king', (32, 32, 3))

    Reference:
      Our own choice.
    """
    entry = catalog(name)
    split_domain(entry, domain)
    references = [
        (split, label, number)
        for split, size in SPLIT_SIZES.items()
        for label in range(len(entry.class_names))
        for number in range(size)
    ]

    def read(reference: tuple[str, int, int]) -> np.ndarray:
        split, label, number = reference
        return example(entry, domain, split, label, number, seed)

    called = domain_name(domain)
    return Dataset(
        name=f"glyphs:{name}" + (f"/{called}" if called else ""),
        references=tuple(references),
        labels=np.array([label for _, label, _ in references], np.int32),
        splits=np.array([split for split, _, _ in references]),
        class_names=entry.class_names,
        template=entry.template,
        read=read,
        domain=called,
        seed=seed,
    )
