"""The public forward passes of a frozen clip, with and without prompts.

Every function is pure and passes through `jit`, `vmap`, `grad` and `scan`. Called eagerly, it is compiled once for each
combination of shapes. Shapes and settings are checked in Python, before tracing.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.clip import text, validation, vision
from gram_jax.clip.classes import Classes
from gram_jax.clip.config import ClipConfig
from gram_jax.clip.model import Clip
from gram_jax.clip.modules import at_least_float32
from gram_jax.clip.prompts import TextPrompt, VisualPrompt
from gram_jax.clip.slots import Slots
from gram_jax.errors import InputError

Array = jax.Array


def encode_image(
    clip: Clip,
    images: Array,
    prompt: VisualPrompt | None = None,
    *,
    layer_prompts: vision.LayerPrompts | None = None,
    has_aux: bool = False,
    normalize: bool = True,
    slots: Slots | None = None,
) -> Any:
    """Returns image features, optionally under visual prompts.

    With tokens x_0 = pre_norm([c, z_1, ..., z_N] + positions) and layers B_l,

        x_{l+1} = B_l(x_l with the prompt tokens of layer l),    f = W^T post_norm(x_L[class token]).

    Args:
      clip: the frozen clip.
      images: float `[images, size, size, channels]`, from `clip.preprocess`.
      prompt: visual prompt.
      layer_prompts: by layer number, a function that maps the layer's other tokens `[images, 1 + patches, width]` to
        the layer's prompt tokens `[images, n, width]`, or to `MaskedTokens`; n may differ between layers. The new
        tokens replace the previous prompt tokens, at the place given by `prompt.placement` (without a prompt: the end
        of the sequence), and remain until others replace them. Class-aware visual prompts use this.
      has_aux: the functions return a pair (prompt tokens, anything); the second items are returned by layer.
      normalize: divide by the Euclidean norm.
      slots: what is learned inside the layers; None: nothing.

    Returns:
      Features `[images, embed_dim]`, at least float32; with `has_aux`, a pair of them and a dictionary.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> clip = tiny_clip()
      >>> size, width = clip.config.vision.image_size, clip.config.vision.width
      >>> images = jnp.ones((2, size, size, 3))
      >>> encode_image(clip, images, VisualPrompt(jnp.zeros((4, width)))).shape == (2, clip.config.embed_dim)
      True

    Reference:
      "Learning Transferable Visual Models From Natural Language Supervision", section 2.4; "Visual Prompt Tuning",
      section 3.2; "Dual Modality Prompt Tuning for Vision-Language Pre-Trained Model", section III.
    """
    validation.check_images(images, clip.config.vision)
    validation.check_visual_prompt(prompt, clip.config.vision, jnp.shape(images)[0], layer_prompts or {})
    validation.check_slots(slots, clip.config.vision, jnp.shape(images)[0])
    params = clip.params["vision"]
    aux: dict[int, Any] = {}
    if not layer_prompts:
        features = _image(params, images, prompt, slots, config=clip.config, normalize=normalize)
    else:
        # The functions close over what a tuner learns, so they belong to the caller's trace and are not jitted here.
        functions = {
            layer: function if has_aux else lambda tokens, function=function: (function(tokens), None)
            for layer, function in layer_prompts.items()
        }
        features, aux = vision.image_features(params, clip.config, images, prompt, functions, slots)
        features = _finish(features, normalize)
    return (features, aux) if has_aux else features


def encode_patches(clip: Clip, images: Array, *, slots: Slots | None = None) -> tuple[Array, Array]:
    """Returns image features `[images, embed_dim]` and patch features `[images, patches, embed_dim]`.

    Every patch x_L after the last layer is pooled and projected as the image is; only f is normalized. With a class
    token,

        f = normalize( W^T post_norm(x_L[class token]) ),    z_p = W^T post_norm(x_L[patch p]).

    With attention pooling, z_p is the result of pooling patch p alone.

    Args:
      clip, images, slots: as in `encode_image`.
    """
    validation.check_images(images, clip.config.vision)
    validation.check_slots(slots, clip.config.vision, jnp.shape(images)[0])
    return _patches(clip.params["vision"], images, slots, config=clip.config)


def encode_text(clip: Clip, token_ids: Array, *, normalize: bool = True, slots: Slots | None = None) -> Array:
    """Returns the features of texts, `[..., embed_dim]`, at least float32; NaN for an id outside the vocabulary.

    The feature is read as `TextConfig.pooling` says. What follows the end token has no effect, and texts may be cut to
    the longest one: a causal transformer does not read it, and for another one it is replaced by padding.

    Args:
      clip, normalize, slots: as in `encode_image`.
      token_ids: int `[..., tokens]` from `clip.tokenize`.

    Reference:
      "Learning Transferable Visual Models From Natural Language Supervision", section 2.4.
    """
    validation.check_token_ids(token_ids, clip.config.text)
    validation.check_slots(slots, clip.config.text)
    return _text(clip.params["text"], token_ids, None, slots, config=clip.config, normalize=normalize)


def encode_classes(
    clip: Clip,
    classes: Classes,
    prompt: TextPrompt | None = None,
    *,
    normalize: bool = True,
    slots: Slots | None = None,
) -> Array:
    """Returns the text features of classes, under their template or under a learned context.

    Args:
      clip, normalize, slots: as in `encode_image`.
      classes: the class names, from `clip.class_tokens`.
      prompt: the context and its position; None: the template of `classes`.

    Returns:
      Features `[classes, embed_dim]`, or `[images, classes, embed_dim]` under a prompt per image; at least float32.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> clip = tiny_clip()
      >>> classes = clip.class_tokens(["cat", "dog", "bird"])
      >>> prompt = TextPrompt(jnp.zeros((4, clip.config.text.width)))
      >>> encode_classes(clip, classes, prompt).shape == (3, clip.config.embed_dim)
      True

    Reference:
      "Learning to Prompt for Vision-Language Models" (CoOp), section 3.2, equation 3.
    """
    validation.check_slots(slots, clip.config.text)
    params = clip.params["text"]
    if prompt is None:
        validation.check_token_ids(classes.token_ids, clip.config.text)
        return _text(params, classes.token_ids, classes.eot, slots, config=clip.config, normalize=normalize)
    validation.check_text_prompt(prompt, clip.config.text, jnp.shape(classes.tail_ids))
    return _classes(params, classes, prompt, slots, config=clip.config, normalize=normalize)


def embed_tokens(clip: Clip, token_ids: Array) -> Array:
    """Returns token embeddings without positions, `[..., tokens, width]`; NaN for an id outside the vocabulary.

    Args:
      clip: the frozen clip.
      token_ids: int `[..., tokens]`, such as `clip.tokenize(["a photo of a"])[0, 1:-1]`.
    """
    validation.check_token_ids(token_ids, clip.config.text)
    return text.embed(clip.params["text"], token_ids)


def logits(image_features: Array, text_features: Array, logit_scale: Array | float) -> Array:
    """Returns scaled cosine similarities `[images, classes]`, in full precision on every device.

    logits[b, c] = exp(logit_scale) * <f_b, t_c>

    Args:
      image_features: normalized, `[images, dim]`.
      text_features: normalized, `[classes, dim]`, or `[images, classes, dim]` if they depend on the image.
      logit_scale: log of the scale, as in `clip.params["logit_scale"]`.

    Example:
      >>> logits(jnp.eye(2), jnp.eye(2), jnp.log(100.0)).round().tolist()
      [[100.0, 0.0], [0.0, 100.0]]
    """
    validation.check_features(image_features, text_features)
    product = "be,ce->bc" if text_features.ndim == 2 else "be,bce->bc"
    image_features, text_features = at_least_float32(image_features), at_least_float32(text_features)
    cosine = jnp.einsum(product, image_features, text_features, precision="highest")
    return jnp.exp(logit_scale) * cosine


def pair_probabilities(clip: Clip, scores: Array) -> Array:
    """Returns the probability that an image and a text belong together, of each pair by itself.

    p[b, c] = sigmoid( logits[b, c] + logit_bias )

    Only a clip that was trained with the sigmoid loss (SigLIP) has a bias. It is the same for all pairs, so that it
    changes neither the order of classes nor their softmax, and tuning with the cross-entropy of classes does not need
    it.

    Args:
      clip: a clip with a logit bias.
      scores: the result of `logits`, of any shape.

    Reference:
      "Sigmoid Loss for Language Image Pre-Training", section 3.2.
    """
    if "logit_bias" not in clip.params:
        raise InputError("this clip has no logit_bias: only a clip like SigLIP has probabilities of single pairs")
    return jax.nn.sigmoid(scores + clip.params["logit_bias"])


@functools.partial(jax.jit, static_argnames=("config", "normalize"))
def _image(
    params: Any,
    images: Array,
    prompt: VisualPrompt | None,
    slots: Slots | None,
    *,
    config: ClipConfig,
    normalize: bool,
) -> Array:
    return _finish(vision.image_features(params, config, images, prompt, slots=slots)[0], normalize)


@functools.partial(jax.jit, static_argnames="config")
def _patches(params: Any, images: Array, slots: Slots | None, *, config: ClipConfig) -> tuple[Array, Array]:
    features, patches = vision.token_features(params, config, images, slots)
    return _finish(features, normalize=True), patches


@functools.partial(jax.jit, static_argnames=("config", "normalize"))
def _text(
    params: Any, token_ids: Array, end: Array | None, slots: Slots | None, *, config: ClipConfig, normalize: bool
) -> Array:
    return _finish(text.text_features(params, config, token_ids, end, slots), normalize)


@functools.partial(jax.jit, static_argnames=("config", "normalize"))
def _classes(
    params: Any, classes: Classes, prompt: TextPrompt, slots: Slots | None, *, config: ClipConfig, normalize: bool
) -> Array:
    return _finish(text.class_features(params, config, classes, prompt, slots=slots), normalize)


def _finish(features: Array, normalize: bool) -> Array:
    if not normalize:
        return features
    square = jnp.sum(features**2, axis=-1, keepdims=True)
    return features * jax.lax.rsqrt(jnp.maximum(square, jnp.finfo(features.dtype).tiny))
