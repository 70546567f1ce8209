"""Independent random streams by name."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def stream(name: str, seed: int, index: int) -> random.Random:
    """Returns the random generator of one draw (its index) of one stream, seeded by a BLAKE2 hash of name and numbers.

    Example:
      >>> stream("corpus", 0, 1).random() == stream("corpus", 0, 2).random()
      False
    """
    digest = hashlib.blake2b(f"{name}\0{seed}\0{index}".encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "little"))


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """Returns one of the options, each equally likely.

    Example:
      >>> pick(random.Random(0), ("a", "b", "c"))
      'c'
    """
    return options[int(rng.random() * len(options))]
