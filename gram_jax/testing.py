"""A tiny random clip for examples and tests, without disk or network."""

from __future__ import annotations

import functools
import math
import os
import tempfile
from string import ascii_lowercase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.clip.config import MODEL_TYPES, ClipConfig, TextConfig, VisionConfig
from gram_jax.clip.images import HALF, ImageTransform
from gram_jax.clip.model import Clip, Params, init_params
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
    transform = ImageTransform(size=config.vision.image_size, crop=2 * (config.vision.image_size,))
    return Clip(_random_params(config, seed), config, tiny_tokenizer(config.text.context_length), transform)


def tiny_siglip(seed: int = 0, **overrides: Any) -> Clip:
    """Returns a clip with the architecture of SigLIP: bidirectional text, attention pooling, a bias of logits.

    Args:
      seed, overrides: as in `tiny_clip`.

    Example:
      >>> sorted(tiny_siglip().params["vision"]["pool"])
      ['attention', 'mlp', 'norm', 'probe']
    """
    default = MODEL_TYPES["siglip"]
    tokenizer = _tiny_siglip_tokenizer(overrides.get("text_context_length", 16))
    settings: dict[str, Any] = {
        "text_context_length": 16,
        "vision_width": 16,
        "logit_scale_init": default.logit_scale_init,
        "logit_bias_init": default.logit_bias_init,
        "text_vocab_size": tokenizer.vocab_size,
        **{f"text_{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")},
    }
    for tower, names in (
        ("text", ("causal", "start_token", "pooling", "projection", "activation", "norm_eps")),
        ("vision", ("class_token", "patch_bias", "pre_norm", "pooling", "projection", "activation", "norm_eps")),
    ):
        settings |= {f"{tower}_{name}": getattr(getattr(default, tower), name) for name in names}
    config = tiny_config(**settings | overrides)
    side = config.vision.image_size
    return Clip(
        _random_params(config, seed), config, tokenizer, ImageTransform((side, side), None, mean=HALF, std=HALF)
    )


@functools.cache
def _tiny_siglip_tokenizer(context_length: int) -> Tokenizer:
    """Returns a unigram tokenizer like SigLIP's: words of TEXT, and letters; `</s>` is the end and the padding."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    words = [f"\u2581{word}" for word in dict.fromkeys(TEXT.split())]
    letters = [f"\u2581{letter}" for letter in ascii_lowercase] + list(ascii_lowercase)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(word, -5.0) for word in words] + [(letter, -9.0) for letter in letters if letter not in words]
    backend = Backend(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    with tempfile.TemporaryDirectory() as folder:
        backend.save(os.path.join(folder, "tokenizer.json"))
        return Tokenizer.from_folder(folder, context_length, "siglip")


def _random_params(config: ClipConfig, seed: int) -> Params:
    shapes = jax.eval_shape(lambda key: init_params(key, config), jax.random.key(0))
    rng = np.random.default_rng(seed)
    params = jax.tree_util.tree_map_with_path(lambda path, leaf: _random_leaf(rng, path[-1].key, leaf.shape), shapes)
    params["logit_scale"] = jnp.float32(config.logit_scale_init)
    if config.logit_bias_init is not None:
        params["logit_bias"] = jnp.float32(config.logit_bias_init)
    return params


def _random_leaf(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> jax.Array:
    noise = rng.standard_normal(shape)
    if name in ("kernel", "projection", "patch_embedding"):
        fan_in = math.prod(shape[-4:-1]) if len(shape) > 3 else shape[-2]  # convolutions and matrices
        return jnp.asarray(noise * fan_in**-0.5, jnp.float32)
    if name == "variance":
        return jnp.asarray(np.exp(0.3 * noise), jnp.float32)
    return jnp.asarray(1 + 0.1 * noise if name == "scale" else 0.3 * noise, jnp.float32)
