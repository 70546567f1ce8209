"""The sizes and settings of a CLIP, read from and written to a Hugging Face `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gram_jax.clip.modules import ACTIVATIONS
from gram_jax.errors import InputError

COMPUTE_DTYPES = ("float32", "bfloat16")
# No CLIP comes near these; what is beyond them is a damaged file, and would fill the memory before it failed.
MAX_SIZE, MAX_LAYERS = 1 << 20, 1000
_LIMITS = {"layers": MAX_LAYERS, "image_size": 1 << 14, "patch_size": 1 << 14, "channels": 1 << 10}


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{type(config).__name__}.{name} must be a positive integer, found {value!r}.")
        if value > (limit := _LIMITS.get(name, MAX_SIZE)):
            raise InputError(f"{type(config).__name__}.{name} must be at most {limit}, found {value}.")


def _require_transformer(config: TextConfig | VisionConfig) -> None:
    _require_positive(config, "width", "layers", "heads", "mlp_width")
    kind = type(config).__name__
    if config.width % config.heads:
        raise InputError(
            f"{kind}.width must be a multiple of {kind}.heads, found width {config.width} and {config.heads} heads."
        )
    if not isinstance(config.activation, str) or config.activation not in ACTIVATIONS:
        raise InputError(f"{kind}.activation must be one of {sorted(ACTIVATIONS)}, found {config.activation!r}.")
    if isinstance(config.norm_eps, bool) or not isinstance(config.norm_eps, int | float) or not config.norm_eps > 0:
        raise InputError(f"{kind}.norm_eps must be positive, found {config.norm_eps!r}.")


@dataclass(frozen=True)
class TextConfig:
    """Sizes and settings of the text transformer.

    Attributes:
      vocab_size: number of rows of the token embedding.
      width: width of the residual stream.
      layers: number of transformer layers.
      heads: attention heads a layer; must divide `width`.
      mlp_width: hidden width of the two-layer perceptron.
      context_length: number of positions, [SOS] and [EOS] included.
      activation: name of the perceptron's activation, as in Hugging Face's `hidden_act`.
      norm_eps: epsilon of every layer norm.
      bos_token_id, eos_token_id, pad_token_id: as the file states them. Files from before mid 2023 state wrong ones
        (0, 2, 1), which `eos_rule` allows for; the tokenizer is what knows the real ids.

    Example:
      >>> TextConfig(vocab_size=100, width=64, layers=2, heads=4, mlp_width=128, context_length=16).eos_rule
      'first'
    """

    vocab_size: int = 49408
    width: int = 512
    layers: int = 12
    heads: int = 8
    mlp_width: int = 2048
    context_length: int = 77
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407
    pad_token_id: int | None = 1

    def __post_init__(self) -> None:
        _require_transformer(self)
        _require_positive(self, "vocab_size", "context_length")
        if isinstance(self.eos_token_id, bool) or not isinstance(self.eos_token_id, int) or self.eos_token_id < 0:
            raise InputError(f"TextConfig.eos_token_id must be a token id, found {self.eos_token_id!r}.")

    @property
    def eos_rule(self) -> str:
        """Where the text feature is read: "highest" token id (files with `eos_token_id` 2) or "first" end token."""
        return "highest" if self.eos_token_id == 2 else "first"


@dataclass(frozen=True)
class VisionConfig:
    """Sizes and settings of the vision transformer.

    Attributes:
      width, layers, heads, mlp_width, activation, norm_eps: as in `TextConfig`.
      image_size: side of the square input image in pixels.
      patch_size: side of a square patch in pixels; a remainder at the right and lower edge is dropped.
      channels: number of color channels.

    Example:
      >>> VisionConfig(image_size=224, patch_size=16).num_patches
      196
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    image_size: int = 224
    patch_size: int = 32
    channels: int = 3
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        _require_transformer(self)
        _require_positive(self, "image_size", "patch_size", "channels")
        if self.patch_size > self.image_size:
            raise InputError(
                "VisionConfig.patch_size must not exceed image_size, "
                f"found patch size {self.patch_size} and image size {self.image_size}."
            )

    @property
    def grid(self) -> int:
        """Number of patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Number of patches of an image."""
        return self.grid**2


@dataclass(frozen=True)
class ClipConfig:
    """Sizes and settings of a CLIP: everything about it that is not an array.

    Attributes:
      text: the text transformer.
      vision: the vision transformer.
      embed_dim: width of the joint embedding space.
      logit_scale_init: initial value of the log of the logit scale.
      compute_dtype: "float32" or "bfloat16"; what the matrix products of the transformers are computed in. Norms,
        softmax, residual sums and features are float32 either way. With float64 parameters (under
        `jax.enable_x64`), "float32" computes in float64: it is a floor, not a cast.
      remat: recompute a layer's activations in the backward pass instead of storing them.
      class_chunk: most classes that the text transformer runs side by side under a prompt; more run in chunks, one
        after the other, and once more in the backward pass, so that memory stops growing with the classes. 0: all at
        once.

    Example:
      >>> config = ClipConfig.from_hf({"model_type": "clip", "vision_config": {"patch_size": 16}})
      >>> config.vision.num_patches, config.text.width, config.embed_dim
      (196, 512, 512)
    """

    text: TextConfig = TextConfig()
    vision: VisionConfig = VisionConfig()
    embed_dim: int = 512
    logit_scale_init: float = 2.6592
    compute_dtype: str = "float32"
    remat: bool = False
    class_chunk: int = 512

    def __post_init__(self) -> None:
        _require_positive(self, "embed_dim")
        if isinstance(self.class_chunk, bool) or not isinstance(self.class_chunk, int) or self.class_chunk < 0:
            raise InputError(
                f"ClipConfig.class_chunk must be a number of classes, or 0 for all at once, found {self.class_chunk!r}."
            )
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise InputError(
                f"ClipConfig.compute_dtype must be one of {list(COMPUTE_DTYPES)}, found {self.compute_dtype!r}."
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ClipConfig:
        """Reads the dictionary of a Hugging Face CLIP `config.json`.

        Keys that the file omits take the defaults of transformers' `CLIPConfig`. Old files repeat the towers as
        `text_config_dict` and `vision_config_dict`; as in transformers, those win where they are not null.

        Args:
          config: the parsed JSON object.

        Returns:
          The configuration, validated.

        Raises:
          InputError: if it is not a CLIP's, or states an impossible or unsupported size or setting.

        Example:
          >>> ClipConfig.from_hf({"model_type": "siglip"})
          Traceback (most recent call last):
          ...
          gram_jax.errors.InputError: Only CLIP models are supported: ...
        """
        model_type = config.get("model_type")
        if model_type != "clip":
            raise InputError(
                f"Only CLIP models are supported: model_type in config.json must be 'clip', found {model_type!r}."
            )
        for name in ("text_config", "vision_config", "text_config_dict", "vision_config_dict"):
            if not isinstance(config.get(name) or {}, Mapping):
                raise InputError(f"{name} in config.json must be an object, found {config[name]!r}.")
        scale = _default(config, "logit_scale_init_value", 2.6592)
        if isinstance(scale, bool) or not isinstance(scale, int | float):
            raise InputError(f"logit_scale_init_value in config.json must be a number, found {scale!r}.")
        text = _tower(config, "text", _TEXT_KEYS, TextConfig)
        vision = _tower(config, "vision", _VISION_KEYS, VisionConfig)
        return cls(
            text=TextConfig(**{**text, "eos_token_id": _single_id(text["eos_token_id"])}),
            vision=VisionConfig(**{**vision, **{name: _side(name, vision[name]) for name in _SIDES}}),
            embed_dim=_default(config, "projection_dim", 512),
            logit_scale_init=float(scale),
        )

    def to_hf(self) -> dict[str, Any]:
        """The dictionary that transformers' `CLIPConfig` reads back to the same model.

        Returns:
          A JSON-serializable dictionary; `compute_dtype`, `remat` and `class_chunk` are settings of a run
            and are left out.

        Example:
          >>> ClipConfig.from_hf(ClipConfig().to_hf()) == ClipConfig()
          True
        """
        text = {hf_name: getattr(self.text, name) for name, hf_name in _TEXT_KEYS.items()}
        vision = {hf_name: getattr(self.vision, name) for name, hf_name in _VISION_KEYS.items()}
        return {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": self.embed_dim,
            "logit_scale_init_value": self.logit_scale_init,
            "text_config": {"model_type": "clip_text_model", "projection_dim": self.embed_dim, **text},
            "vision_config": {"model_type": "clip_vision_model", "projection_dim": self.embed_dim, **vision},
        }


_TRANSFORMER_KEYS = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "activation": "hidden_act",
    "norm_eps": "layer_norm_eps",
}
_TEXT_KEYS = _TRANSFORMER_KEYS | {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
_SIDES = ("image_size", "patch_size")
_VISION_KEYS = _TRANSFORMER_KEYS | {name: name for name in _SIDES} | {"channels": "num_channels"}


def _default(config: Mapping[str, Any], key: str, default: Any) -> Any:
    return default if config.get(key) is None else config[key]


def _tower(config: Mapping[str, Any], tower: str, keys: Mapping[str, str], cls: type) -> dict[str, Any]:
    """The fields of one tower under our names, defaults filled in."""
    given = dict(config.get(f"{tower}_config") or {})
    old = config.get(f"{tower}_config_dict")
    fields = {field.name: field.default for field in dataclasses.fields(cls)}
    if old is not None:
        # transformers completes the old dictionary with defaults before it overrides the new one.
        given.update({hf_name: _default(old, hf_name, fields[name]) for name, hf_name in keys.items()})
    return {name: given.get(hf_name, fields[name]) for name, hf_name in keys.items()}


def _single_id(value: Any) -> Any:
    if isinstance(value, list | tuple):
        if len(value) != 1:
            raise InputError(f"text_config.eos_token_id must be one token id, found {value!r}.")
        return value[0]
    return value


def _side(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        if not value or any(side != value[0] for side in value):
            raise InputError(f"vision_config.{name} must be square, found {value!r}.")
        return value[0]
    return value
