"""The list of namings: how the tensors of a file, and those of a parameter tree, are recognized.

An architecture enters by a module with its `Naming` and one entry here.
"""

from __future__ import annotations

from collections.abc import Collection

from gram_jax.clip.formats import pe, resnet, siglip, vit
from gram_jax.clip.formats.table import Naming, Path, WeightsError

NAMINGS: tuple[Naming, ...] = (
    vit.HUGGINGFACE,
    pe.PERCEPTION,
    pe.PERCEPTION_TIMM,
    vit.OPENAI,
    siglip.HUGGINGFACE_SIGLIP,
    resnet.RESNET,
)


def naming_of_tensors(names: Collection[str]) -> Naming | None:
    """Returns the first naming whose mark is among the names of tensors."""
    return next((naming for naming in NAMINGS if naming.mark in names), None)


def naming_of_params(paths: Collection[Path]) -> Naming:
    """Returns the first naming that covers exactly these leaves; files are written, and weights hashed, under it."""
    for naming in NAMINGS:
        if naming.covers(paths):
            return naming
    raise WeightsError(f"no known naming has the {len(paths)} leaves of these parameters")
