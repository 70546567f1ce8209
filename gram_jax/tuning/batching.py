"""What a batch of a tuning task is: class lists of shapes that others share, and the loss on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.clip import Classes, Clip
from gram_jax.objectives import cross_entropy
from gram_jax.tuners import Tuner

Array = jax.Array
PyTree = Any

_EXCLUDED = -1e9  # the logit of a class that only fills up the shape
# Shapes come in steps of so many classes, tokens of a name and tokens of a template, to be compiled once each.
CLASS_MULTIPLE, _TAIL, _TEMPLATE = 16, 4, 16


def classification_loss(tuner: Tuner) -> Callable[[PyTree, Clip, dict[str, Any]], Array]:
    """The cross-entropy of a tuner on a batch, whose class list may be filled up to a common shape.

        loss = CE( where(valid, logits, -1e9), labels )

    Args:
      tuner: the tuner.

    Returns:
      `loss(prompt, clip, batch) -> scalar`, as `make_meta_step` takes it. `batch` is a dictionary: "classes" and
      "images" as the tuner takes them, "labels" int `[images]`, and "valid" bool `[classes]`, which may be missing
      where every class counts.

    Example:
      >>> from gram_jax import tuners
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(text_layers=1), tuners.coop()
      >>> classes = clip.class_tokens(["cat", "dog"])
      >>> batch = {"classes": classes, "images": jnp.ones((3, 16)) / 4, "labels": jnp.array([0, 1, 1])}
      >>> classification_loss(tuner)(tuner.init(jax.random.key(0), clip, classes), clip, batch).shape
      ()

    Reference:
      "Learning to Prompt for Vision-Language Models", section 3.2, equation 4.
    """

    def loss(prompt: PyTree, clip: Clip, batch: dict[str, Any]) -> Array:
        outputs = tuner.apply(prompt, clip, batch["classes"], batch["images"])
        if batch.get("valid") is not None:
            outputs = outputs._replace(logits=jnp.where(batch["valid"], outputs.logits, _EXCLUDED))
        return cross_entropy(outputs, batch["labels"])

    return loss


def pad_classes(clip: Clip, classes: Classes | Array, prompt: PyTree = None) -> tuple[Classes | Array, np.ndarray]:
    """Fills a class list up to a shape that other lists share, so that all of them run in one compiled program.

    The number of classes becomes a multiple of 16, the tokens of names a multiple of 4, as far as they fit the context
    length. The last class is repeated; tokens behind an end-of-text token cannot matter.

    Args:
      clip: the clip.
      classes: as `clip.class_tokens` makes them; or frozen text features `[classes, embed_dim]`.
      prompt: the prompt that will stand around the names, stacked or not, or its shapes: room is kept for it.

    Returns:
      The classes, and `valid`, bool `[classes]`, False for those that were added.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> clip = tiny_clip()
      >>> classes, valid = pad_classes(clip, clip.class_tokens(["cat", "dog"]))
      >>> classes.tail_ids.shape, valid.sum().item()
      ((16, 4), 2)

    Reference:
      Our own choice.
    """
    if not isinstance(classes, Classes):
        features = np.asarray(classes)
        return jnp.asarray(_fill(features, _up(len(features), CLASS_MULTIPLE))), _valid(len(features))
    limit = clip.config.text.context_length
    # The context is one of the leaves. Where another one is larger, less is filled up, which is never wrong.
    tokens = max((leaf.shape[-2] for leaf in jax.tree.leaves(prompt) if len(leaf.shape) > 1), default=0)
    count, tail = classes.tail_ids.shape
    template = classes.token_ids.shape[1]
    size = _up(count, CLASS_MULTIPLE)
    filled = Classes(
        token_ids=_fill(classes.token_ids, size, min(_up(template, _TEMPLATE), limit)),
        eot=_fill(classes.eot, size),
        tail_ids=_fill(classes.tail_ids, size, min(_up(tail, _TAIL), max(tail, limit - 1 - tokens))),
        name_length=_fill(classes.name_length, size),
        tail_eot=_fill(classes.tail_eot, size),
    )
    return jax.tree.map(jnp.asarray, filled), _valid(count)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _fill(array: Any, *shape: int) -> np.ndarray:
    """Repeats the last entries up to the given lengths of the leading axes."""
    array = np.asarray(array)
    wanted = (*shape, *array.shape[len(shape) :])
    return np.pad(array, [(0, new - old) for old, new in zip(array.shape, wanted, strict=True)], mode="edge")


def _valid(count: int) -> np.ndarray:
    return np.arange(_up(count, CLASS_MULTIPLE)) < count
