"""The contract of tuners and their shared parts: frozen sides, new vectors, checks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gram_jax.clip import Classes, Clip, TextPrompt, embed_tokens, encode_classes, encode_image, logits
from gram_jax.clip.validation import check_text_prompt, require_visual_prompts
from gram_jax.errors import InputError, require_int
from gram_jax.registry import Call, reduced
from gram_jax.summary import short

Array = jax.Array
Prompt = dict[str, Any]
TEXT, IMAGE = frozenset({"text"}), frozenset({"image"})
INIT_STD = 0.02  # CoOp's standard deviation of random vectors
_NUM_CONTEXT = 4  # context tokens if neither a number nor words are given


class Outputs(NamedTuple):
    """The outputs of a prompted clip for images and classes.

    Attributes:
      logits: `[images, classes]`, cosine similarities times the frozen scale exp(logit_scale).
      image_features: `[images, embed_dim]`, normalized.
      text_features: `[classes, embed_dim]`, or `[images, classes, embed_dim]` if they depend on the image; normalized.
    """

    logits: Array
    image_features: Array
    text_features: Array

    def __repr__(self) -> str:
        return short(self)


class Tuner(NamedTuple):
    """A prompt-tuning method: two pure functions, and the settings that they were made with.

    `init` raises InputError if the prompt does not fit the clip, e.g. if context and class names are too long.

    Attributes:
      name: the method's name; `make(name, **settings)` makes the tuner again.
      settings: all settings of the factory, defaults included; JSON values.
      init: `init(key, clip, classes) -> prompt`, a nested dictionary of float32 arrays. `classes` may be None unless
        the prompt is per class; if they are given, `init` checks that the prompt fits them.
      apply: `apply(prompt, clip, classes, images) -> Outputs`.
      needs_pixels: False if the tuner reads only the frozen features of images: `images` may then also be features
        `[images, embed_dim]` of `encode_image`.
      needs_names: False if the tuner reads only the frozen features of classes: `classes` may then also be features
        `[classes, embed_dim]` of `encode_classes`.
      changes: the features that a prompt changes, "text", "image" or both.
      needs_pairs: True if the classes are attribute-object pairs, from `gram_jax.tuners.pair_classes`; `apply` then has
        a fifth argument, a key for dropout, or None.
      reads_template: whether the prompt also reads the frozen features of the class names under a template, that of the
        dataset.

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
    init: Callable[[Array, Clip, Any], Prompt]
    apply: Callable[[Prompt, Clip, Any, Array], Outputs]
    needs_pixels: bool
    needs_names: bool
    changes: frozenset[str] = TEXT | IMAGE
    needs_pairs: bool = False
    reads_template: bool = False

    def __reduce__(self) -> Any:
        return reduced(self, "gram_jax.tuners")

    def __repr__(self) -> str:
        return str(Call(self.name, dict(self.settings)))


def frozen_outputs(clip: Clip, classes: Classes | Array, images: Array) -> Outputs:
    """Returns the outputs of the clip without a prompt: the zero-shot classifier and the reference of regularizers.

    logits[b, c] = exp(logit_scale) * <image(x_b), text(template with name c)>

    Args:
      clip: the frozen clip.
      classes: class names of `clip.class_tokens`, under their own template; or text features `[classes, embed_dim]`,
        normalized, e.g. the mean over many templates.
      images: `[images, size, size, channels]`, or image features `[images, embed_dim]`, normalized.

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
    """Combines the features of both sides under the clip's frozen scale."""
    return Outputs(logits(image_features, text_features, clip.params["logit_scale"]), image_features, text_features)


def frozen_image_features(clip: Clip, images: Array) -> Array:
    """Returns the features `[images, embed_dim]` of images without a prompt; features are returned as they are."""
    return encode_image(clip, images) if jnp.ndim(images) != 2 else _features("image", images, clip)


def frozen_text_features(clip: Clip, classes: Classes | Array) -> Array:
    """Returns the features `[classes, embed_dim]` of classes without a prompt; features are returned as they are."""
    return encode_classes(clip, classes) if isinstance(classes, Classes) else _features("text", classes, clip)


def _features(side: str, features: Array, clip: Clip) -> Array:
    shape, width = jnp.shape(features), clip.config.embed_dim
    if len(shape) != 2 or shape[1] != width:
        raise InputError(f"frozen {side} features must have shape [rows, {width}], not {list(shape)}; use one clip")
    return jnp.asarray(features)


def text_features(clip: Clip, classes: Classes, prompt: TextPrompt) -> Array:
    """Returns the features `[classes, embed_dim]` of class names under a text prompt."""
    return encode_classes(clip, check_names(classes), prompt)


def random_vectors(key: Array, *shape: int) -> Array:
    """Draws float32 vectors from N(0, 0.02^2)."""
    return INIT_STD * jax.random.normal(key, shape, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Words:
    """The initialization of a text context: a number of tokens, and words or None for random vectors."""

    setting: str  # the name of the setting `count`
    count: int | None  # None: as many as the words have tokens for the clip
    text: str | None


def words_setting(setting: str, count: int | None, text: str | None) -> Words:
    """Checks the settings of a context; without a number and words it has 4 tokens."""
    if text is not None and (not isinstance(text, str) or not text.strip()):
        raise InputError(f"init_text={text!r}: it must be words, or None for a random initialization")
    if count is not None:
        require_int(setting, count)
    elif text is None:
        count = _NUM_CONTEXT
    return Words(setting, count, text)


def context_vectors(words: Words, key: Array, clip: Clip, *axes: int, spare: bool = False) -> Array:
    """Returns the initial vectors of a context, float32 `[*axes, tokens, width]`.

    Words are repeated over the leading axes, random vectors are drawn for each. `spare` returns all tokens of the words
    even if they are more than `words.count`; otherwise another number of tokens is an InputError.
    """
    if words.text is None:
        assert words.count is not None  # see `words_setting`
        return random_vectors(key, *axes, words.count, clip.config.text.width)
    vectors = word_vectors(words, clip, spare)
    return jnp.broadcast_to(vectors, (*axes, *vectors.shape))


def word_vectors(words: Words, clip: Clip, spare: bool = False) -> Array:
    """Returns the token embeddings of the words, float32 `[tokens, width]`; see `context_vectors`."""
    count, text = words.count, words.text
    assert text is not None
    tokens = clip.tokenize([text])[0, int(clip.config.text.start_token) : -1]
    if not len(tokens):
        raise InputError(f"init_text={text!r} has no tokens for this clip; give words, or None")
    if count is not None and (len(tokens) < count or (len(tokens) > count and not spare)):
        raise InputError(
            f"init_text={text!r} has {len(tokens)} tokens for this clip, but {words.setting}={count}; change the "
            f"words, or set {words.setting}=None to use all of their tokens"
        )
    return embed_tokens(clip, jax.device_put(tokens)).astype(jnp.float32)


def check_room(clip: Clip, context: Array, classes: Classes | None) -> None:
    """Raises InputError if a context and the class names are too long for the text transformer; None passes."""
    if classes is not None:
        check_text_prompt(TextPrompt(context), clip.config.text, jnp.shape(check_names(classes).tail_ids))


def check_names(classes: Any) -> Classes:
    """Returns class names as tokens; raises InputError if they are anything else."""
    if not isinstance(classes, Classes):
        raise InputError(
            f"this tuner puts its prompt around class names: classes must come from clip.class_tokens, not "
            f"{type(classes).__name__}"
        )
    return classes


def check_depth(depth: int, clip: Clip, *towers: str, setting: str = "depth") -> None:
    """Raises InputError if a prompt is deeper than these towers, "text" or "vision", or one of them takes no prompt."""
    if "vision" in towers:
        require_visual_prompts(clip.config.vision)
    layers = {tower: getattr(clip.config, tower).layers for tower in towers}
    short = {tower: count for tower, count in layers.items() if depth > count}
    if short:
        counts = " and ".join(f"{count} {tower} layers" for tower, count in short.items())
        raise InputError(f"{setting}={depth}: this clip has only {counts}; use {setting}={min(short.values())} or less")


def num_parameters(prompt: Any) -> int:
    """Returns the number of learnable values in a prompt.

    Args:
      prompt: a pytree of arrays, or of their shapes from `jax.eval_shape`.

    Example:
      >>> num_parameters({"context": jnp.zeros((16, 512))})
      8192
    """
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(prompt))
