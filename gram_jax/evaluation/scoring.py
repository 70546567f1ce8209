"""Scorers: a prompt with its clip and a class list, from pixels to probabilities."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.clip import Clip, logits
from gram_jax.data import templates
from gram_jax.errors import InputError
from gram_jax.evaluation.features import class_features
from gram_jax.tuners import Outputs, Prompt, Tuner, frozen_outputs


class Scorer(NamedTuple):
    """A prompted clip with a class list; `make_scorer` makes it.

    Attributes:
      tuner, prompt, clip: the tuner, its prompt and the frozen clip.
      names: the class names, in the order of the probabilities.
      classes: the class names as the tuner requires them, tokens or frozen text features.
      texts: the prompted text features, `[classes, embed_dim]`, or `[1, classes, embed_dim]` if they depend on the
        image and are computed anew for each.
    """

    tuner: Tuner
    prompt: Prompt
    clip: Clip
    names: tuple[str, ...]
    classes: Any
    texts: jax.Array

    @property
    def texts_are_fixed(self) -> bool:
        """Whether the text features are the same for all images."""
        return self.texts.ndim == 2

    def __call__(self, pixels: Any) -> jax.Array:
        """Returns probabilities `[images, classes]` of images `[images, size, size, 3]` from `clip.preprocess`."""
        return _score(self.prompt, self.clip, self.classes, self.texts, jnp.asarray(pixels), apply=self.tuner.apply)


def make_scorer(
    tuner: Tuner,
    prompt: Prompt,
    clip: Clip,
    names: Sequence[str],
    *,
    template: str | None = None,
    source: str = "the prompt",
) -> Scorer:
    """Returns the classifier that a prompt and a class list are together.

    Args:
      tuner, prompt, clip: the tuner, its prompt and the frozen clip.
      names: the class names; for a class-specific prompt, those that it was tuned on, in their order.
      template: a text with one {} for the class name, for tuners without a text prompt and for those that also read the
        template of the dataset (`Tuner.reads_template`); None is the default one.
      source: what messages call the prompt, such as its file.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> from gram_jax.tuners import coop
      >>> clip, tuner = tiny_clip(), coop()
      >>> scorer = make_scorer(tuner, tuner.init(jax.random.key(0), clip, None), clip, ["cat", "dog"])
      >>> scorer(np.zeros((3, 12, 12, 3), np.float32)).shape
      (3, 2)
    """
    classes: Any = clip.class_tokens(list(names), "{}")  # raises an error if two names have the same tokens
    if tuner.reads_template:
        classes = clip.class_tokens(list(names), template or templates.DEFAULT)
    if not tuner.needs_names:
        classes = class_features(clip, names, [template or templates.DEFAULT])
    elif template is not None and not tuner.reads_template:
        raise InputError(f"template={template!r}: {source} has a {tuner.name} prompt instead of a template; omit it")
    elif tuner.settings.get("class_specific"):
        _check_count(source, prompt, prompt_shapes(tuner, clip, classes), len(names))
    return with_classes(tuner, prompt, clip, names, classes)


def with_classes(tuner: Tuner, prompt: Prompt, clip: Clip, names: Sequence[str], classes: Any) -> Scorer:
    """Returns a scorer of classes in the form that the tuner requires; texts are encoded once if they are fixed."""
    vision = clip.config.vision
    blank = jnp.zeros((1, vision.image_size, vision.image_size, vision.channels))
    # The compiler removes the image side, whose result is not used.
    texts = jax.jit(lambda *inputs: tuner.apply(*inputs).text_features)(prompt, clip, classes, blank)
    return Scorer(tuner, prompt, clip, tuple(names), classes, texts)


def zero_shot_scorer(clip: Clip, names: Sequence[str], template: str | None = None) -> Scorer:
    """Returns the classifier of a clip without a prompt.

    Args:
      clip, names, template: as in `make_scorer`.
    """
    return make_scorer(_zero_shot(), {}, clip, names, template=template)


def score(
    apply: Callable[..., Outputs], prompt: Prompt, clip: Clip, classes: Any, texts: jax.Array, pixels: jax.Array
) -> jax.Array:
    """Returns probabilities `[images, classes]`, of a tuner's `apply` and the fields of a `Scorer`."""
    outputs = apply(prompt, clip, classes, pixels)
    if texts.ndim == 3:  # text features per image
        return jax.nn.softmax(outputs.logits, axis=-1)
    return jax.nn.softmax(logits(outputs.image_features, texts, clip.params["logit_scale"]), axis=-1)


def prompt_shapes(tuner: Tuner, clip: Clip, classes: Any) -> Any:
    """Returns the shapes of a tuner's prompt for a class list, a tree of `jax.ShapeDtypeStruct`."""
    return jax.eval_shape(lambda key: tuner.init(key, clip, classes), jax.random.key(0))


def without_padding(prompt: Prompt, shapes: Any) -> Prompt:
    """Returns a prompt whose per-class parts are cut to shapes, those of a class list that was padded for tuning."""
    return jax.tree.map(lambda leaf, shape: leaf[tuple(map(slice, shape.shape))], prompt, shapes)


@functools.partial(jax.jit, static_argnames="apply")
def _score(
    prompt: Prompt, clip: Clip, classes: Any, texts: jax.Array, pixels: jax.Array, *, apply: Callable[..., Outputs]
) -> jax.Array:
    return score(apply, prompt, clip, classes, texts, pixels)


def _check_count(source: str, prompt: Prompt, shapes: Any, wanted: int) -> None:
    """Raises InputError unless a class-specific prompt is for as many classes as are given."""
    pairs = zip(jax.tree.leaves(prompt), jax.tree.leaves(shapes), strict=True)
    counts = {a for leaf, shape in pairs for a, b in zip(np.shape(leaf), shape.shape, strict=True) if a != b}
    if counts:
        raise InputError(
            f"{source} is class-specific, for {min(counts)} classes, but {wanted} names are given; give the class list "
            "that it was tuned on, in its order"
        )


def _zero_shot() -> Tuner:
    """Returns a tuner without a prompt."""

    def apply(prompt: Prompt, clip: Clip, classes: Any, images: jax.Array) -> Outputs:
        del prompt
        return frozen_outputs(clip, classes, images)

    return Tuner("zero_shot", {}, lambda key, clip, classes: {}, apply, needs_pixels=False, needs_names=False)
