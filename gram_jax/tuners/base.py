"""What a tuner is, and what all tuners share: frozen sides, fresh vectors, checks of settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gram_jax.clip import Classes, Clip, TextPrompt, embed_tokens, encode_classes, encode_image, logits
from gram_jax.clip.validation import check_text_prompt
from gram_jax.errors import InputError, require_int

Array = jax.Array
Prompt = dict[str, Any]
INIT_STD = 0.02  # CoOp's standard deviation of vectors that do not start as words
_NUM_CONTEXT = 4  # context tokens where neither a number nor words are given


class Outputs(NamedTuple):
    """What a prompted clip says about images and classes.

    Attributes:
      logits: `[images, classes]`, cosine similarities times the frozen scale exp(logit_scale).
      image_features: `[images, embed_dim]`, normalized.
      text_features: `[classes, embed_dim]`, or `[images, classes, embed_dim]` where they depend on the image;
        normalized.
    """

    logits: Array
    image_features: Array
    text_features: Array


class Tuner(NamedTuple):
    """A prompt-tuning method: two pure functions, and what they were made with.

    Attributes:
      name: the method's name; `make(name, **settings)` makes the tuner again.
      settings: what the factory was called with, defaults filled in; JSON values.
      init: `init(key, clip, classes) -> prompt`, a nested dictionary of float32 arrays. `classes` may be None unless
        the prompt is per class; where they are given, it is checked that the prompt fits them.
      apply: `apply(prompt, clip, classes, images) -> Outputs`.
      needs_pixels: False where nothing of the image transformer but its frozen features is read: `images` may then also
        be image features `[images, embed_dim]`, as `encode_image` makes them.
      needs_names: False where nothing of the text transformer but its frozen features is read: `classes` may then also
        be text features `[classes, embed_dim]`, as `encode_classes` makes them.
      changes: whose features are not the frozen ones, "text", "image" or both.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> from gram_jax.tuners import coop
      >>> clip, tuner = tiny_clip(), coop(num_tokens=4)
      >>> classes = clip.class_tokens(["cat", "dog", "bird"])
      >>> prompt = tuner.init(jax.random.key(0), clip, classes)
      >>> features = jnp.ones((5, clip.config.embed_dim)) / 4  # frozen and normalized
      >>> tuner.apply(prompt, clip, classes, features).logits.shape
      (5, 3)
    """

    name: str
    settings: Mapping[str, Any]
    init: Callable[[Array, Clip, Classes | None], Prompt]
    apply: Callable[[Prompt, Clip, Classes | Array, Array], Outputs]
    needs_pixels: bool
    needs_names: bool
    changes: frozenset[str] = frozenset({"text", "image"})


def frozen_outputs(clip: Clip, classes: Classes | Array, images: Array) -> Outputs:
    """What the clip says without a prompt: the zero-shot classifier, and the reference of regularizers.

    logits[b, c] = exp(logit_scale) * <image(x_b), text(template with name c)>

    Args:
      clip: the frozen clip.
      classes: as `clip.class_tokens` makes them, under their own template; or text features
        `[classes, embed_dim]`, normalized, e.g. the mean over many templates.
      images: `[images, size, size, channels]`, or image features `[images, embed_dim]`, normalized.

    Returns:
      The outputs.

    Raises:
      InputError: if a shape does not fit.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> clip = tiny_clip()
      >>> classes = clip.class_tokens(["cat", "dog", "bird"])
      >>> frozen_outputs(clip, classes, jnp.ones((2, 12, 12, 3))).logits.shape
      (2, 3)

    Reference:
      "Learning Transferable Visual Models From Natural Language Supervision", section 3.1.
    """
    return make_outputs(clip, frozen_image_features(clip, images), frozen_text_features(clip, classes))


def make_outputs(clip: Clip, image_features: Array, text_features: Array) -> Outputs:
    """Puts the two sides together under the clip's frozen scale."""
    scores = logits(image_features, text_features, clip.params["logit_scale"])
    return Outputs(scores, image_features, text_features)


def frozen_image_features(clip: Clip, images: Array) -> Array:
    """Features `[images, embed_dim]` of images without a prompt; what already are features passes through."""
    shape = jnp.shape(images)
    if len(shape) != 2:
        return encode_image(clip, images)
    _check_frozen("image", "images", shape, clip.config.embed_dim)
    return jnp.asarray(images)


def frozen_text_features(clip: Clip, classes: Classes | Array) -> Array:
    """Features `[classes, embed_dim]` of classes without a prompt; what already are features passes through."""
    if isinstance(classes, Classes):
        return encode_classes(clip, classes)
    _check_frozen("text", "classes", jnp.shape(classes), clip.config.embed_dim)
    return jnp.asarray(classes)


def _check_frozen(kind: str, axis: str, shape: tuple[int, ...], embed_dim: int) -> None:
    if len(shape) != 2 or shape[1] != embed_dim:
        raise InputError(
            f"frozen {kind} features must have shape [{axis}, {embed_dim}], found {list(shape)}; "
            "the clip that tunes must be the one that computed them."
        )


def random_vectors(key: Array, *shape: int) -> Array:
    """Vectors drawn from N(0, 0.02^2), float32."""
    return INIT_STD * jax.random.normal(key, shape, jnp.float32)


def word_vectors(clip: Clip, init_text: str, num_tokens: int | None, name: str, spare: bool = False) -> Array:
    """Token embeddings of a text, float32 `[tokens, width]`.

    Args:
      clip: the clip, with its tokenizer.
      init_text: the words.
      num_tokens: how many tokens they must be; None accepts any number.
      name: the setting that says so.
      spare: whether they may be more.

    Returns:
      The embeddings.

    Raises:
      InputError: if there is no tokenizer, no token, or a wrong number of tokens.
    """
    tokens = clip.tokenize([init_text])[0, 1:-1]
    if not len(tokens):
        raise InputError(f"init_text {init_text!r} has no tokens; give it words, or None for a random start.")
    if num_tokens is not None and (len(tokens) < num_tokens or (len(tokens) > num_tokens and not spare)):
        raise InputError(
            f"init_text {init_text!r} is {len(tokens)} tokens to this clip, but {name} is {num_tokens}; change the "
            f"words, or set {name}=None to take as many tokens as they are."
        )
    return embed_tokens(clip, tokens).astype(jnp.float32)


def check_room(clip: Clip, context: Array, classes: Classes | None) -> None:
    """Raises InputError unless a context and the classes fit the text transformer together; None is not checked."""
    if classes is not None:
        check_names(classes)
        check_text_prompt(TextPrompt(context), clip.config.text, jnp.shape(classes.tail_ids))


def check_names(classes: Any) -> None:
    """Raises InputError unless classes are class names as tokens."""
    if not isinstance(classes, Classes):
        raise InputError(
            f"This tuner's prompt stands around class names: classes must be what clip.class_tokens makes, found "
            f"{type(classes).__name__}; frozen text features are of no use to it."
        )


def check_depth(depth: int, layers: Mapping[str, int]) -> None:
    """Raises InputError if a prompt is deeper than a transformer of the clip; `layers` is named by tower."""
    short = {tower: count for tower, count in layers.items() if depth > count}
    if short:
        found = " and ".join(f"{count} {tower} layers" for tower, count in short.items())
        raise InputError(f"depth is {depth}, but this clip has only {found}; use depth={min(short.values())} or less.")


def check_words(name: str, num_tokens: int | None, init_text: str | None) -> int | None:
    """Checks how a context starts.

    Args:
      name: the setting that says how many tokens the context has.
      num_tokens: its value.
      init_text: the words that the context starts as, or None for a random start.

    Returns:
      The number of tokens; None where only the clip's tokenizer can say it.

    Raises:
      InputError: names the setting and the value found.
    """
    if init_text is not None and (not isinstance(init_text, str) or not init_text.strip()):
        raise InputError(f"init_text must be a text with words in it, or None for a random start, found {init_text!r}.")
    if num_tokens is not None:
        require_int(name, num_tokens)
        return num_tokens
    return _NUM_CONTEXT if init_text is None else None


def num_parameters(prompt: Any) -> int:
    """Number of learnable values in a prompt.

    Args:
      prompt: a pytree of arrays, or of their shapes as `jax.eval_shape` gives them.

    Returns:
      The number.

    Example:
      >>> num_parameters({"context": jnp.zeros((16, 512))})
      8192

    Reference:
      Our own choice.
    """
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(prompt))
