"""The true groups of corpus pairs: a ceiling for what clustering can find, never a method."""

from __future__ import annotations

from collections.abc import Iterable

from gram_jax.data.glyphs.world import pair


def true_groups(indices: Iterable[int], seed: int = 0) -> tuple[list[str], list[str]]:
    """What the images of corpus pairs show, whatever their captions say.

    Args:
      indices: numbers of pairs.
      seed: the seed of the corpus.

    Returns:
      For each pair the kind of its character ("greek small letter", a theme) and the character's short name ("alpha",
      a class of the theme).

    Example:
      >>> themes, classes = true_groups(range(4), seed=0)
      >>> (themes[0], classes[0]) == (pair(0).character.kind, pair(0).character.short)
      True

    Reference:
      Our own choice.
    """
    drawn = [pair(index, seed).character for index in indices]
    return [character.kind for character in drawn], [character.short for character in drawn]
