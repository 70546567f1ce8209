"""The clip as one pytree, and the random initialization of its parameters."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.clip.classes import Classes
from gram_jax.clip.config import ClipConfig, ResNetConfig, TextConfig, VisionConfig
from gram_jax.clip.images import ImageTransform
from gram_jax.clip.modules import slice_layers
from gram_jax.clip.resnet import init_resnet
from gram_jax.clip.tokenizer import Tokenizer, class_tokens
from gram_jax.errors import InputError
from gram_jax.summary import short

Params = dict[str, Any]


@flax.struct.dataclass
class Clip:
    """A frozen dual encoder.

    The parameters are the leaves of this pytree; the other fields are static and compared by content. Pass a clip as an
    argument through `jit`, `vmap` and `grad`; do not close over it.

    Attributes:
      params: nested dictionary of arrays, see `init_params`.
      tokenizer: maps texts to token ids; None for a clip that receives token ids only.
      transform: maps images to float arrays; None for a clip that receives such arrays only.
    """

    params: Params
    config: ClipConfig = flax.struct.field(pytree_node=False)
    tokenizer: Tokenizer | None = flax.struct.field(pytree_node=False, default=None)
    transform: ImageTransform | None = flax.struct.field(pytree_node=False, default=None)

    def __repr__(self) -> str:
        text, vision, leaves = self.config.text, self.config.vision, jax.tree.leaves(self.params)
        parts = {
            "text": f"{text.layers} layers of {text.width}",
            "vision": f"{vision.layers} layers of {vision.width}, images of {vision.image_size}",
            "embed_dim": self.config.embed_dim,
            "parameters": f"{sum(math.prod(jnp.shape(leaf)) for leaf in leaves):,}",
            "dtype": ", ".join(sorted({str(jnp.result_type(leaf)) for leaf in leaves})),
            "compute_dtype": self.config.compute_dtype,
            "tokenizer": short(self.tokenizer),
            "transform": short(self.transform),
        }
        return f"Clip({', '.join(f'{name}={value}' for name, value in parts.items())})"

    def class_tokens(
        self, names: list[str], template: str = "a photo of a {}.", *, allow_duplicates: bool = False
    ) -> Classes:
        """Returns class names as tokens on the device, for `encode_classes`; see `gram_jax.clip.class_tokens`."""
        tokenizer = self._require_tokenizer()
        return jax.device_put(class_tokens(tokenizer, names, template, allow_duplicates=allow_duplicates))

    def tokenize(self, texts: list[str]) -> np.ndarray:
        """Returns token ids for `encode_text`, int32 `[texts, tokens]`, cut to the longest text."""
        return self._require_tokenizer().encode(texts)

    def preprocess(self, images: Any) -> np.ndarray:
        """Returns the input of `encode_image`, float32 `[images, image size, image size, 3]`.

        `images` is a list of PIL images, paths, encoded bytes or uint8 arrays `[height, width, 3]`.
        """
        if self.transform is None:
            raise InputError("this clip has no image transform; add one with clip.replace(transform=...)")
        return self.transform(images)

    def _require_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InputError("this clip has no tokenizer; add one with clip.replace(tokenizer=...)")
        return self.tokenizer


def init_params(key: jax.Array, config: ClipConfig) -> Params:
    """Draws random parameters with OpenAI's standard deviations.

    With width d and L layers: token embedding 0.02, text positions 0.01; queries, keys and values d^-1/2; the two
    projections back to the residual stream d^-1/2 (2L)^-1/2; the perceptron's first layer (2d)^-1/2; class embedding,
    image positions and both final projections d^-1/2; patches (3 p^2 c)^-1/2. Biases are 0, norms the identity.

    Args:
      key, config: a PRNG key and the sizes.

    Returns:
      A nested dictionary of float32 arrays. Layers are stacked on the first axis, kernels are `[in, out]`. With the
      default properties::

        {"text": {"token_embedding", "position_embedding", "layers", "final_norm", "projection"},
         "vision": {"class_embedding", "patch_embedding", "position_embedding", "pre_norm", "layers", "post_norm",
                    "projection"},
         "logit_scale"}

      Each property of the configuration adds or removes its own leaves: `text.projection_bias`, `vision.patch_bias`,
      `vision.pool` (`probe`, `attention`, `norm`, `mlp`), `logit_bias`.

    Reference:
      github.com/openai/CLIP, clip/model.py, `initialize_parameters`; both towers follow its text tower.
    """
    text_key, vision_key = jax.random.split(key)
    if isinstance(config.vision, ResNetConfig):
        vision = init_resnet(vision_key, config.vision, config.embed_dim)
    else:
        vision = _init_vision(vision_key, config.vision, config.embed_dim)
    params: Params = {
        "text": _init_text(text_key, config.text, config.embed_dim),
        "vision": vision,
        "logit_scale": jnp.float32(config.logit_scale_init),
    }
    if config.logit_bias_init is not None:
        params["logit_bias"] = jnp.float32(config.logit_bias_init)
    return params


def _init_text(key: jax.Array, text: TextConfig, dim: int) -> Params:
    keys = jax.random.split(key, 4)
    return {
        "token_embedding": _normal(keys[0], 0.02, text.vocab_size, text.width),
        "position_embedding": _normal(keys[1], 0.01, text.context_length, text.width),
        "layers": _init_layers(keys[2], text),
        "final_norm": _init_norm(text.width),
        **_init_projection(keys[3], text, dim),
    }


def _init_vision(key: jax.Array, vision: VisionConfig, dim: int) -> Params:
    keys = jax.random.split(key, 5)
    patch, std = vision.patch_size**2 * vision.channels, vision.width**-0.5
    params: Params = {"class_embedding": _normal(keys[0], std, vision.width)} if vision.class_token else {}
    params["patch_embedding"] = _normal(keys[1], (3 * patch) ** -0.5, patch, vision.width)
    if vision.patch_bias:
        params["patch_bias"] = jnp.zeros(vision.width, jnp.float32)
    positions = int(vision.class_token) + vision.num_patches
    params["position_embedding"] = _normal(keys[2], std, positions, vision.width)
    if vision.pre_norm:
        params["pre_norm"] = _init_norm(vision.width)
    params["layers"] = _init_layers(keys[3], vision)
    params["post_norm"] = _init_norm(vision.width)
    if vision.pooling == "attention":
        params["pool"] = _init_pool(jax.random.fold_in(key, 0), vision)
    return params | _init_projection(keys[4], vision, dim)


def _init_projection(key: jax.Array, config: TextConfig | VisionConfig, dim: int) -> Params:
    if config.projection == "none":
        return {}
    bias = {"projection_bias": jnp.zeros(dim, jnp.float32)} if config.projection == "dense" else {}
    return {"projection": _normal(key, config.width**-0.5, config.width, dim), **bias}


def _init_pool(key: jax.Array, vision: VisionConfig) -> Params:
    probe_key, layer_key = jax.random.split(key)
    hidden = vision.pool_mlp_width or vision.mlp_width
    layer = slice_layers(_init_layers(layer_key, dataclasses.replace(vision, layers=1, mlp_width=hidden)), 0)
    probe = _normal(probe_key, vision.width**-0.5, vision.width)
    return {"probe": probe, "attention": layer["attention"], "norm": layer["norm_2"], "mlp": layer["mlp"]}


def _normal(key: jax.Array, std: float, *shape: int) -> jax.Array:
    return std * jax.random.normal(key, shape, jnp.float32)


def _init_norm(*shape: int) -> Params:
    return {"scale": jnp.ones(shape, jnp.float32), "bias": jnp.zeros(shape, jnp.float32)}


def _init_layers(key: jax.Array, config: TextConfig | VisionConfig) -> Params:
    layers, width, hidden = config.layers, config.width, config.mlp_width
    keys = iter(jax.random.split(key, 6))
    in_std, out_std = width**-0.5, width**-0.5 * (2 * layers) ** -0.5

    def dense(std: float, fan_in: int, fan_out: int) -> Params:
        kernel = _normal(next(keys), std, layers, fan_in, fan_out)
        return {"kernel": kernel, "bias": jnp.zeros((layers, fan_out), jnp.float32)}

    return {
        "norm_1": _init_norm(layers, width),
        "attention": {
            **{name: dense(in_std, width, width) for name in ("query", "key", "value")},
            "out": dense(out_std, width, width),
        },
        "norm_2": _init_norm(layers, width),
        "mlp": {"up": dense((2 * width) ** -0.5, width, hidden), "down": dense(out_std, hidden, width)},
    }
