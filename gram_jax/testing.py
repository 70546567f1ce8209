"""A tiny random clip for examples and tests, without disk or network."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.clip.config import ClipConfig, TextConfig, VisionConfig
from gram_jax.clip.images import ImageTransform
from gram_jax.clip.model import Clip, init_params
from gram_jax.clip.tokenizer import Tokenizer, train_tokenizer
from gram_jax.errors import InputError

VOCAB_SIZE = 632  # every word of TEXT is one token
TEXT = (
    "a an the photo of picture drawing sketch small large red green blue black white cat dog bird horse fish frog "
    "tree flower house boat plane train truck car cup chair letter digit greek latin capital alpha beta gamma delta"
)


def tiny_config(**overrides: Any) -> ClipConfig:
    """Returns the configuration of a clip that runs in a millisecond.

    Args:
      overrides: fields of `ClipConfig`, or of a tower with a prefix: `text_layers=3`, `vision_activation="gelu"`;
        `vision=` another image tower, such as a `ResNetConfig`.
    """
    end = VOCAB_SIZE - 1
    text: dict[str, Any] = {"width": 24, "layers": 3, "heads": 2, "mlp_width": 48, "context_length": 24}
    text |= {"vocab_size": VOCAB_SIZE, "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    vision: dict[str, Any] = {"width": 32, "layers": 3, "heads": 2, "mlp_width": 64, "image_size": 12, "patch_size": 4}
    both: dict[str, Any] = {"embed_dim": 16}
    for name, value in overrides.items():
        tower, _, field = name.partition("_")
        if tower == "text" and field in TextConfig.__dataclass_fields__:
            text[field] = value
        elif tower == "vision" and field in VisionConfig.__dataclass_fields__:
            vision[field] = value
        elif name in ClipConfig.__dataclass_fields__ and name != "text":
            both[name] = value
        else:
            raise InputError(
                f"tiny_config has no setting {name!r}; use a field of ClipConfig, text_FIELD, vision_FIELD"
            )
    return ClipConfig(**{"text": TextConfig(**text), "vision": VisionConfig(**vision), **both})


@functools.cache
def tiny_tokenizer(context_length: int = 24) -> Tokenizer:
    """Returns a tokenizer trained on a few dozen words, with the vocabulary size of `tiny_config`."""
    return train_tokenizer([TEXT] * 2, VOCAB_SIZE, context_length)


def tiny_clip(seed: int = 0, **overrides: Any) -> Clip:
    """Returns a clip with random parameters, a tokenizer and an image transform.

    Biases and norms are random too, so that no test passes because they are zero and one.

    Args:
      overrides: as in `tiny_config`, except `text_vocab_size`, which the tokenizer determines.

    Example:
      >>> clip = tiny_clip(text_layers=2)
      >>> clip.params["text"]["layers"]["norm_1"]["scale"].shape == (2, clip.config.text.width)
      True
    """
    if "text_vocab_size" in overrides:
        raise InputError(f"text_vocab_size: the tokenizer of tiny_clip has {VOCAB_SIZE} tokens")
    config = tiny_config(**overrides)
    shapes = jax.eval_shape(lambda key: init_params(key, config), jax.random.key(0))
    rng = np.random.default_rng(seed)
    params = jax.tree_util.tree_map_with_path(lambda path, leaf: _random_leaf(rng, path[-1].key, leaf.shape), shapes)
    params["logit_scale"] = jnp.float32(config.logit_scale_init)
    transform = ImageTransform(size=config.vision.image_size, crop=2 * (config.vision.image_size,))
    return Clip(params, config, tiny_tokenizer(config.text.context_length), transform)


def _random_leaf(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> jax.Array:
    noise = rng.standard_normal(shape)
    if name in ("kernel", "projection", "patch_embedding"):
        fan_in = math.prod(shape[-4:-1]) if len(shape) > 3 else shape[-2]  # convolutions and matrices
        return jnp.asarray(noise * fan_in**-0.5, jnp.float32)
    if name == "variance":
        return jnp.asarray(np.exp(0.3 * noise), jnp.float32)
    return jnp.asarray(1 + 0.1 * noise if name == "scale" else 0.3 * noise, jnp.float32)
