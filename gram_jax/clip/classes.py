"""Class names as token ids, packed into rows for a causal text transformer.

Behind a context that all classes share, the token sequences `NAME . [EOS]` form a prefix tree. Text is causal: the
hidden state of a token depends on the tokens before it and on nothing else, so it is the same for all classes that
begin with the same tokens. Each node of the tree is computed once. The nodes are packed into rows of one length; a node
attends to its ancestors, which are in its row:

    red fish . [EOS]        row     red  fish  .  [EOS]  frog  .  [EOS]
    red frog . [EOS]        depth    0    1    2    3     1    2    3

A part of the tree that is larger than a row is split, and the ancestors of its parts are repeated. Where the tokens
before a name differ between classes, nothing is shared, and sequences are packed side by side.

This module runs on the host, in NumPy, and is deterministic.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import struct

from gram_jax.batching import round_up
from gram_jax.summary import short_repr

Tail = tuple[int, ...]
MULTIPLE = 8  # of the length of a row
_LONGEST = 64  # tokens in a row of the tree, unless a name is longer
_MANY = 256  # classes; so many fill rows of any length about equally well
_ENDS = 3  # a row of length n is read at no more than n / 3 places: a name, a full stop and an end are three tokens
_OPEN = 16  # rows that are searched for room
_BESIDE = 4  # sequences side by side in a row, at most


@struct.dataclass
class Packed:
    """Tokens of class names in rows, and the places at which the classes are read.

    Attributes:
      ids: int32 `[rows, length]`, token ids; unused places hold 0, and no other token attends to them.
      depth: int32 `[rows, length]`, the position of a token in `NAME . [EOS]`.
      mask: bool `[rows, length, length]`: token i attends to token j, which is i or an ancestor of i.
      ends: int32 `[rows, reads]`, the places of end tokens; unused entries are 0.
      place: int32 `[C]`, the entry of `ends` that belongs to a class, counted through all rows.
    """

    ids: jax.Array
    depth: jax.Array
    mask: jax.Array
    ends: jax.Array
    place: jax.Array


@struct.dataclass
class Classes:
    """Class names as token ids, in the forms that text prompts need.

    All leaves are arrays: a step compiled for one list of names serves every list of the same shapes, and classes can
    be mapped over with `vmap`. Everything after an end token is padding and has no effect.

    Attributes:
      token_ids: int32 `[C, T]`, the filled template, `[SOS] a photo of a NAME . [EOS]`, cut to the longest.
      eot: int32 `[C]`, position of the end token in `token_ids`, at which the feature is read.
      tail_ids: int32 `[C, S]`, the tokens after a context that precedes the name, `NAME . [EOS]`, cut to the longest.
      name_length: int32 `[C]`, number of tokens of the name in the tail.
      tail_eot: int32 `[C]`, position of the end token in `tail_ids`.
      tree: the tails in rows; beginnings that tails have in common occur once in a row.
      apart: the tails in rows, side by side; every class has tokens and an entry of `ends` of its own.
    """

    __repr__ = short_repr

    token_ids: jax.Array
    eot: jax.Array
    tail_ids: jax.Array
    name_length: jax.Array
    tail_eot: jax.Array
    tree: Packed
    apart: Packed


class NameTokens(NamedTuple):
    """The first fields of `Classes`, as NumPy arrays: the tokens of class names, before they are packed."""

    token_ids: np.ndarray
    eot: np.ndarray
    tail_ids: np.ndarray
    name_length: np.ndarray
    tail_eot: np.ndarray


class Layout(NamedTuple):
    """The shapes of rows, so that several class lists can have the same ones.

    Attributes:
      length: tokens in a row of the tree, at least those of the longest tail.
      rows: the number of rows of the tree becomes a multiple of this; those at its end may be empty.
      beside: sequences in a row of `Classes.apart`.
      least: the smallest length of such a row.
    """

    length: int
    rows: int = 1
    beside: int = 1
    least: int = 0


def pack_classes(
    token_ids: Any, eot: Any, tail_ids: Any, name_length: Any, tail_eot: Any, layout: Layout | None = None
) -> Classes:
    """Returns `Classes` of NumPy arrays, whose tails are packed into rows.

    Args:
      token_ids, eot, tail_ids, name_length, tail_eot: the first fields of `Classes`.
      layout: the shapes of the rows; None: those with the fewest tokens, and four sequences side by side.

    Example:
      >>> tails = [[5, 6, 1, 9], [5, 7, 1, 9], [5, 1, 9, 9]]
      >>> tree = pack_classes(tails, [3, 3, 2], tails, [2, 2, 1], [3, 3, 2], Layout(length=16)).tree
      >>> tree.ids.tolist(), tree.ends.tolist(), tree.place.tolist()
      ([[5, 1, 9, 6, 1, 9, 7, 1, 9, 0, 0, 0, 0, 0, 0, 0]], [[2, 5, 8, 0, 0]], [1, 2, 0])
      >>> np.flatnonzero(tree.mask[0, 5]).tolist()
      [0, 3, 4, 5]
    """
    tails = tails_of(tail_ids, tail_eot)
    if layout is None:
        layout = Layout(fit_rows([tails])[0], beside=math.ceil(len(tails) / math.ceil(len(tails) / _BESIDE)))
    length, rows, beside, least = layout
    # A class with the tokens of an earlier one is read at the same place.
    first: dict[Tail, int] = {}
    same = [first.setdefault(tail, number) for number, tail in enumerate(tails)]
    tree = [[first[tail] for tail in group] for group in shared_rows(tails, length)]
    tree += [[]] * (-len(tree) % rows)
    groups = _balanced(tails, beside)
    longest = max(sum(len(tails[number]) for number in group) for group in groups)
    least = max(least, longest if beside == 1 else round_up(longest, MULTIPLE))
    fields: list[Any] = [np.asarray(field, np.int32) for field in (token_ids, eot, tail_ids, name_length, tail_eot)]
    fields.append(_pack(tails, tree, same, length, max(1, length // _ENDS), share=True))
    fields.append(_pack(tails, groups, range(len(tails)), least, beside, share=False))
    return Classes(*fields)


def tails_of(tail_ids: Any, tail_eot: Any) -> list[Tail]:
    """Returns the tokens of every class up to its end token."""
    rows = zip(np.asarray(tail_ids).tolist(), np.asarray(tail_eot).tolist(), strict=True)
    return [tuple(ids[: end + 1]) for ids, end in rows]


def fit_rows(lists: Sequence[Sequence[Tail]]) -> tuple[int, int]:
    """Returns the length and the number of rows in which every list fits, with as few tokens as possible.

    Args:
      lists: the tails of one or several class lists, see `tails_of`.

    Example:
      >>> fit_rows([[(1, 2, 3), (1, 2, 4), (1, 5)], [(1, 2, 3), (4, 5, 6), (7, 8, 9)]])  # at most n / 3 ends in a row
      (8, 2)
    """
    shortest = round_up(max(len(tail) for tails in lists for tail in tails), MULTIPLE)
    longest = max(shortest, _LONGEST)
    sizes = [longest] if len(lists[0]) > _MANY else range(shortest, longest + 1, MULTIPLE)
    length, rows, fewest = longest, 0, math.inf
    for size in sizes:
        needed = 0
        for tails in lists:
            needed = max(needed, len(shared_rows(tails, size)))
            if needed * size >= fewest:
                break
        else:
            length, rows, fewest = size, needed, needed * size
    return length, rows


def shared_rows(tails: Sequence[Tail], length: int) -> list[list[Tail]]:
    """Distributes the distinct tails over rows with room for `length` nodes of their tree.

    In the order of the tree, each tail goes where it adds the fewest nodes, and into the fullest of such rows. The last
    tail of a row is the one with which the next has most in common.
    """
    most = max(1, length // _ENDS)
    rows: list[list[Tail]] = []
    room: dict[int, int] = {}  # of the rows that may take another tail
    for tail in sorted(set(tails)):
        costs = ((len(tail) - _common(tail, rows[number][-1]), free, number) for number, free in room.items())
        cost, free, number = min((each for each in costs if each[0] <= each[1]), default=(len(tail), length, len(rows)))
        if number == len(rows):
            rows.append([])
        rows[number].append(tail)
        room[number] = free - cost
        if not room[number] or len(rows[number]) == most:
            del room[number]
        elif len(room) > _OPEN:  # so that time grows with the number of tails alone
            del room[min(room, key=room.__getitem__)]
    return rows


def _common(one: Tail, other: Tail) -> int:
    """Returns the number of tokens with which both begin."""
    unequal = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(unequal, min(len(one), len(other)))


def _balanced(tails: Sequence[Tail], beside: int) -> list[list[int]]:
    """Distributes the classes over rows of `beside`, the longest first, each to the shortest row with a free place."""
    groups: list[list[int]] = [[] for _ in range(math.ceil(len(tails) / beside))]
    queue = [(0, row) for row in range(len(groups))]
    for number in sorted(range(len(tails)), key=lambda number: -len(tails[number])):
        used, row = heapq.heappop(queue)
        groups[row].append(number)
        if len(groups[row]) < beside:
            heapq.heappush(queue, (used + len(tails[number]), row))
    return groups


def _pack(
    tails: Sequence[Tail], groups: Sequence[Sequence[int]], same: Sequence[int], length: int, reads: int, share: bool
) -> Packed:
    """Returns the rows of groups of classes; with `share`, beginnings that the tails of a group have in common are one.

    `same` is, for every class, the class of a group that is read in its place.
    """
    ids, depth = np.zeros((2, len(groups), length), np.int32)
    mask = np.tile(np.eye(length, dtype=bool), (len(groups), 1, 1))
    ends, place = np.zeros((len(groups), reads), np.int32), np.zeros(len(tails), np.int32)
    for row, group in enumerate(groups):
        nodes: dict[Tail, int] = {}
        used = 0
        for slot, number in enumerate(group):
            nodes, above = nodes if share else {}, 0
            for level, token in enumerate(tails[number]):
                node = nodes.setdefault(tails[number][: level + 1], used)
                if node == used:
                    used += 1
                    ids[row, node], depth[row, node] = token, level
                    if level:
                        mask[row, node] |= mask[row, above]
                above = node
            ends[row, slot], place[number] = above, row * reads + slot
    return Packed(ids, depth, mask, ends, place[np.asarray(same)])  # type: ignore[arg-type]  # NumPy arrays
