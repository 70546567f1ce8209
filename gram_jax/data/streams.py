"""Independent random streams by name."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def stream(name: str, seed: int, index: int) -> random.Random:
    """Returns the random generator of one draw of one stream.

    Args:
      name: the stream, for example "corpus" or "greek_small/serif/test".
      seed: the user's seed.
      index: the number of the draw.

    Returns:
      A generator seeded by a BLAKE2 hash of the three.

    Example:
      >>> stream("corpus", 0, 1).random() == stream("corpus", 0, 2).random()
      False
    """
    digest = hashlib.blake2b(f"{name}\0{seed}\0{index}".encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "little"))


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """Returns the random generator of one draw (its index) of one stream, seeded by a BLAKE2 hash.

    Example:
      >>> stream("corpus", 0, 1).random() == stream("corpus", 0, 2).random()
      False
    """
    return options[int(rng.random() * len(options))]
