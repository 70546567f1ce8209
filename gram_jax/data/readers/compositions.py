"""Datasets of attribute-object pairs by specification: the prefix chooses the reader."""

from __future__ import annotations

from gram_jax.data.compositions import PairDataset
from gram_jax.data.glyphs import compositions as glyphs
from gram_jax.data.readers import czsl
from gram_jax.errors import InputError, nearest

FORMS = f"glyphs:NAME or glyphs:NAME:KIND ({', '.join(glyphs.KINDS)}); czsl:PATH"


def load_compositions(spec: str, *, seed: int = 0) -> PairDataset:
    """Returns the dataset of pairs that a specification names.

    * "glyphs:NAME" or "glyphs:NAME:KIND": characters as objects; attributes are renderings (the default) or typefaces
      ("faces"). The seed draws which pairs are seen.
    * "czsl:PATH": a folder in the layout of MIT-States, UT-Zappos and C-GQA; its name tells which one. Its lists are
      fixed, whatever the seed.

    Args:
      spec, seed: the specification, and the seed of what is drawn.

    Example:
      >>> load_compositions("glyphs:chess:renderings").compositions.names[0]
      'printed white king'
    """
    prefix, _, rest = spec.partition(":")
    if prefix not in ("glyphs", "czsl") or not rest:
        raise InputError(f"the dataset of pairs {spec!r}{nearest(prefix, ('glyphs', 'czsl'))} is unknown; give {FORMS}")
    return czsl.labeled_pairs(rest) if prefix == "czsl" else glyphs.labeled_pairs(*glyphs.split_spec(rest), seed)
