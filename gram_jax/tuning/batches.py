"""Batches of a tuning run: the order of the images, and class lists padded to shapes that compiled programs share."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from gram_jax.batching import pad_to, round_up
from gram_jax.clip import Classes, Clip
from gram_jax.clip.classes import MULTIPLE, Layout, pack_classes
from gram_jax.errors import require_int

Array = jax.Array
PyTree = Any

# Class lists are padded to multiples of this many classes, tokens of a name, tokens of a template, and rows.
CLASS_MULTIPLE, _NAME_MULTIPLE, _TEMPLATE_MULTIPLE, _ROW_MULTIPLE = 16, 4, 16, 4
_ROW_LENGTH, _BESIDE = (
    32,
    4,
)  # tokens in a row of the tree of names, or more if a name is longer; sequences side by side


def shuffled_batches(seed: int, count: int, batch_size: int, steps: int) -> np.ndarray:
    """Returns the items of every batch: random permutations of all items, joined and cut into batches.

    At any time, the numbers of times that two items were drawn differ by at most one, even if a batch is larger than
    the whole set. The first batches do not depend on the number of steps. `epoch_batches` follows public code instead.

    Args:
      seed: the seed of the order.
      count, batch_size, steps: the number of items, of items in a batch, and of batches, which may be 0.

    Returns:
      int64 `[steps, batch_size]`, from 0 to `count - 1`.

    Example:
      >>> drawn = shuffled_batches(seed=0, count=4, batch_size=6, steps=2)
      >>> sorted(drawn.ravel().tolist())
      [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    """
    _require_counts(count, batch_size, "steps", steps)
    rng = np.random.default_rng(seed)
    order = [rng.permutation(count) for _ in range(-(-steps * batch_size // count))]
    stream = np.concatenate(order) if order else np.empty(0, np.int64)
    return stream[: steps * batch_size].reshape(steps, batch_size)


def epoch_batches(seed: int, count: int, batch_size: int, epochs: int) -> np.ndarray:
    """Returns the items of every batch of whole epochs: random permutations, each without an incomplete last batch.

    If there are fewer items than fit in a batch, an epoch is one batch of all items.

    Args:
      seed, count, batch_size: as in `shuffled_batches`.
      epochs: the number of epochs.

    Returns:
      int64 `[epochs * max(1, count // batch_size), min(batch_size, count)]`, from 0 to `count - 1`.

    Example:
      >>> epoch_batches(seed=0, count=7, batch_size=3, epochs=4).shape
      (8, 3)

    Reference:
      The loader of Dassl: shuffled, `drop_last` if there is at least one complete batch. The random order differs, as
      Dassl's comes from PyTorch.
    """
    _require_counts(count, batch_size, "epochs", epochs)
    rng = np.random.default_rng(seed)
    size = min(batch_size, count)
    order = [rng.permutation(count)[: count // size * size] for _ in range(epochs)]
    return np.array(order, np.int64).reshape(-1, size)


def pad_classes(
    clip: Clip, classes: Classes | Array, prompt: PyTree = None, devices: int = 1
) -> tuple[Classes | Array, np.ndarray]:
    """Pads a class list to a shape that other lists share, so that all of them run in one compiled program.

    The number of classes becomes a multiple of 16, the number of tokens of a name a multiple of 4, within the context
    length, the number of rows a multiple of 4. The padding repeats the last class. Tokens after an end-of-text token
    have no effect, and neither have empty rows.

    Args:
      clip: the clip.
      classes: class tokens from `clip.class_tokens`, or frozen text features `[classes, embed_dim]`.
      prompt: the prompt that will surround the names, stacked or not, or its shapes; its tokens must fit, too.
      devices: the number of devices that share classes and rows, a divisor of 16.

    Returns:
      The classes, and `valid`, bool `[classes]`, False for the padding.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> clip = tiny_clip()
      >>> classes, valid = pad_classes(clip, clip.class_tokens(["cat", "dog"]))
      >>> classes.tail_ids.shape, valid.sum().item()
      ((16, 4), 2)
    """
    count = len(classes.eot) if isinstance(classes, Classes) else len(classes)
    size = round_up(count, CLASS_MULTIPLE)
    valid = np.arange(size) < count

    def padded(array: Array, *length: int) -> np.ndarray:
        return pad_to(array, size, *length)

    if not isinstance(classes, Classes):
        return jax.device_put(padded(classes)), valid
    limit = clip.config.text.context_length
    # The context is one of the leaves. If another leaf is longer, names are padded less, which is always correct.
    tokens = max((leaf.shape[-2] for leaf in jax.tree.leaves(prompt) if len(leaf.shape) > 1), default=0)
    template, tail = classes.token_ids.shape[1], classes.tail_ids.shape[1]
    width = min(round_up(tail, _NAME_MULTIPLE), max(tail, limit - 1 - tokens))
    fields = (
        padded(classes.token_ids, min(round_up(template, _TEMPLATE_MULTIPLE), limit)),
        padded(classes.eot),
        padded(classes.tail_ids, width),
        padded(classes.name_length),
        padded(classes.tail_eot),
    )
    layout = Layout(
        length=max(_ROW_LENGTH, round_up(tail, MULTIPLE)),
        rows=max(_ROW_MULTIPLE, devices),
        beside=_BESIDE if size // _BESIDE % devices == 0 else 1,
        least=width,
    )
    return jax.device_put(pack_classes(*fields, layout)), valid


def _require_counts(count: int, batch_size: int, name: str, length: int) -> None:
    require_int("count", count)
    require_int("batch_size", batch_size)
    require_int(name, length, least=0)
