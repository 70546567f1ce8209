"""Datasets by name: the prefix of a specification chooses the reader."""

from __future__ import annotations

from gram_jax.data.index import Dataset


def load_dataset(spec: str, *, seed: int = 0) -> Dataset:
    """Opens the dataset that a specification names.

    Args:
      spec: "glyphs:NAME" or "glyphs:NAME/DOMAIN"; DOMAIN is a typeface, a rendering, face+rendering, or the path of a
        font file ("glyphs:greek_small//path/to/any.ttf").
      seed: the seed of datasets that are drawn.

    Returns:
      A ``Dataset``.

    Raises:
      ValueError: for an unknown prefix, dataset or domain; the message lists what there is.

    Example:
      >>> load_dataset("glyphs:chess/negative").class_names[0]
      'white king'

    Reference:
      Our own choice.
    """
    from gram_jax.data import glyphs

    prefix, separator, rest = spec.partition(":")
    if prefix != "glyphs" or not separator:
        raise ValueError(f"the dataset {spec!r} has no known prefix; give glyphs:NAME or glyphs:NAME/DOMAIN")
    name, _, domain = rest.partition("/")
    return glyphs.labelled(name, domain, seed)
