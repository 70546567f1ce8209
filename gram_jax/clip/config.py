"""The sizes, properties and settings of a CLIP, read from and written to a Hugging Face `config.json`.

Everything that depends on the architecture asks for a property, such as `text.causal` or `vision.class_token`, never
for the name of a model family. The defaults are those of OpenAI's vision transformers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gram_jax.clip.activations import ACTIVATIONS
from gram_jax.errors import InputError, require_bool, require_int, require_known, require_number

COMPUTE_DTYPES = ("float32", "bfloat16")
TEXT_POOLINGS = ("end", "first_end", "last")
VISION_POOLINGS = ("class", "attention")
PROJECTIONS = ("kernel", "dense", "none")
# Larger values appear in damaged files only, and would fill the memory before they fail.
MAX_SIZE, MAX_LAYERS = 1 << 20, 1000
_LIMITS = {"layers": MAX_LAYERS, "image_size": 1 << 14, "patch_size": 1 << 14, "channels": 1 << 10}


def _require_sizes(config: object, *names: str) -> None:
    for name in names:
        require_int(f"{type(config).__name__}.{name}", getattr(config, name), most=_LIMITS.get(name, MAX_SIZE))


def _require_transformer(config: TextConfig | VisionConfig) -> None:
    tower = type(config).__name__
    _require_sizes(config, "width", "layers", "heads", "mlp_width")
    if config.width % config.heads:
        raise InputError(f"{tower}.width={config.width}: it must be a multiple of heads={config.heads}")
    require_known(f"{tower}.activation", config.activation, sorted(ACTIVATIONS))
    require_number(f"{tower}.norm_eps", config.norm_eps, above=0)
    require_known(f"{tower}.projection", config.projection, PROJECTIONS)


@dataclass(frozen=True)
class TextConfig:
    """Sizes and settings of the text transformer.

    Attributes:
      vocab_size: rows of the token embedding.
      width, mlp_width: width of the residual stream, and hidden width of the two-layer perceptron.
      layers, heads: transformer layers, and attention heads per layer, which must divide `width`.
      context_length: positions, [SOS] and [EOS] included.
      activation: name of the perceptron's activation, as in Hugging Face's `hidden_act`.
      norm_eps: epsilon of every layer norm.
      bos_token_id, eos_token_id, pad_token_id: the ids in the file. Files written before mid-2023 hold wrong ids
        (0, 2, 1); `eos_rule` accounts for that, and the tokenizer has the correct ones.
      causal: a token attends to earlier tokens only. Otherwise it attends to all tokens, and every text is filled up
        with `pad_token_id` after its end token, to exactly `context_length` tokens.
      start_token: texts begin with a start token.
      pooling: the token that becomes the feature: "end" (the end token, see `eos_rule`), "first_end" (the first one,
        whatever its id), or "last" (the last of `context_length` positions, if the transformer is not causal).
      projection: from the pooled token to the feature: "kernel" (a matrix), "dense" (a matrix and a bias) or "none".
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
    causal: bool = True
    start_token: bool = True
    pooling: str = "end"
    projection: str = "kernel"

    def __post_init__(self) -> None:
        _require_transformer(self)
        _require_sizes(self, "vocab_size", "context_length")
        require_int("TextConfig.eos_token_id", self.eos_token_id, least=0)
        require_bool("TextConfig.causal", self.causal)
        require_bool("TextConfig.start_token", self.start_token)
        require_known("TextConfig.pooling", self.pooling, TEXT_POOLINGS)
        if self.causal and self.pooling == "last":
            raise InputError("TextConfig.pooling='last' needs causal=False; read a causal transformer at the 'end'")
        if not self.causal:
            require_int("TextConfig.pad_token_id", self.pad_token_id, least=0, most=self.vocab_size - 1)

    @property
    def eos_rule(self) -> str:
        """The position of the end token: "highest" token id (pooling "end", `eos_token_id` 2) or "first" end token."""
        return "highest" if self.eos_token_id == 2 and self.pooling == "end" else "first"


@dataclass(frozen=True)
class VisionConfig:
    """Sizes and settings of the vision transformer.

    Attributes:
      width, layers, heads, mlp_width, activation, norm_eps: as in `TextConfig`.
      image_size: side of the square input image, pixels.
      patch_size: side of a square patch, pixels; a remainder at the right and lower edge is dropped.
      channels: channels of the image.
      class_token: a learned token precedes the patches.
      patch_bias: the patch embedding has a bias.
      pre_norm: a layer norm precedes the first layer.
      pooling: how the tokens after the last layer become one: "class" (the class token) or "attention" (a learned query
        attends to all tokens but those of prompts, and a perceptron follows).
      pool_heads, pool_mlp_width: sizes of attention pooling; None: those of the layers.
      rotary: queries and keys of patches are rotated by their row and column (RoPE).
      projection: as in `TextConfig`.

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
    class_token: bool = True
    patch_bias: bool = False
    pre_norm: bool = True
    pooling: str = "class"
    pool_heads: int | None = None
    pool_mlp_width: int | None = None
    rotary: bool = False
    projection: str = "kernel"

    def __post_init__(self) -> None:
        _require_transformer(self)
        _require_sizes(self, "image_size", "patch_size", "channels")
        require_int("VisionConfig.patch_size", self.patch_size, most=self.image_size)
        for name in ("class_token", "patch_bias", "pre_norm", "rotary"):
            require_bool(f"VisionConfig.{name}", getattr(self, name))
        require_known("VisionConfig.pooling", self.pooling, VISION_POOLINGS)
        if self.pooling == "class" and not self.class_token:
            raise InputError("VisionConfig.pooling='class' needs class_token=True; use pooling='attention'")
        for name in ("pool_heads", "pool_mlp_width"):
            if getattr(self, name) is not None:
                _require_sizes(self, name)
        if self.width % (self.pool_heads or 1):
            raise InputError(f"VisionConfig.width={self.width}: it must be a multiple of pool_heads={self.pool_heads}")
        if self.rotary and self.width // self.heads % 4:
            raise InputError(
                f"VisionConfig.heads={self.heads}: with rotary=True a head's width must be a multiple of 4"
            )

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def takes_prompts(self) -> bool:
        """Whether visual prompts can join the tokens of an image."""
        return True


@dataclass(frozen=True)
class ResNetConfig:
    """Sizes of OpenAI's modified ResNet with attention pooling.

    Attributes:
      width: channels of the first stage; the last one has 32 times as many.
      layers: residual blocks of the four stages.
      heads: heads of the attention pool.
      image_size: side of the square input image, a multiple of 32 pixels.
      channels: channels of the image.

    Example:
      >>> ResNetConfig().num_patches
      49
    """

    width: int = 64
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    heads: int = 32
    image_size: int = 224
    channels: int = 3

    def __post_init__(self) -> None:
        _require_sizes(self, "width", "heads", "image_size", "channels")
        if not isinstance(self.layers, tuple) or len(self.layers) != 4:
            raise InputError(f"ResNetConfig.layers={self.layers!r}: it must be the numbers of blocks of four stages")
        for count in self.layers:
            require_int("ResNetConfig.layers", count, most=MAX_LAYERS)
        if self.width % 2 or 32 * self.width % self.heads:
            raise InputError(f"ResNetConfig.width={self.width}: it must be even, and 32 times it a multiple of heads")
        if self.image_size % 32:
            raise InputError(f"ResNetConfig.image_size={self.image_size}: it must be a multiple of 32")

    @property
    def num_patches(self) -> int:
        """Positions of the last feature map."""
        return (self.image_size // 32) ** 2

    @property
    def takes_prompts(self) -> bool:
        """Whether visual prompts can join the tokens of an image: convolutions have none."""
        return False


@dataclass(frozen=True)
class ClipConfig:
    """Sizes and settings of a CLIP: everything that is not an array.

    Attributes:
      text, vision: the encoders of texts and images.
      embed_dim: width of the joint embedding space.
      logit_scale_init: initial value of the log of the logit scale.
      logit_bias_init: initial value of the bias of logits; None for a clip without one. The bias is the same for all
        pairs, so `gram_jax.logits` and every softmax leave it out; the probability of a single pair needs it.
      compute_dtype: "float32" or "bfloat16", the dtype of the transformers' matrix products. Norms, softmax, residual
        sums and features are float32 in both cases. "float32" is a lower bound: float64 parameters (under
        `jax.enable_x64`) are computed in float64.
      remat: recompute a layer's activations in the backward pass instead of storing them.
      unroll: towers of at most this many layers are written out in a program, longer ones are a loop. A loop compiles
        in the time of one layer. Layers that are written out take up to a tenth less time, because their weights are
        not copied. With `remat`, layers are always a loop.
      class_chunk: about how many classes the text transformer runs at once under a prompt. More classes
        run chunk by chunk and are recomputed in the backward pass, which bounds the memory. 0: all at once.

    Example:
      >>> config = ClipConfig.from_hf({"model_type": "clip", "vision_config": {"patch_size": 16}})
      >>> config.vision.num_patches, config.text.width, config.embed_dim
      (196, 512, 512)
    """

    text: TextConfig = TextConfig()
    vision: VisionConfig | ResNetConfig = VisionConfig()
    embed_dim: int = 512
    logit_scale_init: float = 2.6592
    logit_bias_init: float | None = None
    compute_dtype: str = "float32"
    remat: bool = False
    unroll: int = 4
    class_chunk: int = 512

    def __post_init__(self) -> None:
        _require_sizes(self, "embed_dim")
        require_int("ClipConfig.class_chunk", self.class_chunk, least=0)
        require_int("ClipConfig.unroll", self.unroll, least=0)
        if self.logit_bias_init is not None:
            require_number("ClipConfig.logit_bias_init", self.logit_bias_init)
        for tower, config in (("text", self.text), ("vision", self.vision)):
            if not isinstance(config, ResNetConfig) and config.projection == "none" and config.width != self.embed_dim:
                raise InputError(f"{tower}.width={config.width}: without a projection it must be {self.embed_dim}")
        require_known("ClipConfig.compute_dtype", self.compute_dtype, COMPUTE_DTYPES)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ClipConfig:
        """Reads the content of a Hugging Face `config.json` of a model type in `MODEL_TYPES`.

        Missing keys take the defaults of transformers' configuration. Old files of CLIP repeat the towers as
        `text_config_dict` and `vision_config_dict`, whose values win, as in transformers.
        """
        model_type = config.get("model_type")
        if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
            hint = " (this one has native resolutions; SigLIP 2 of fixed resolution is a siglip)"
            hint = hint if model_type == "siglip2" else ""
            raise InputError(f"model_type={model_type!r}{hint}: expected one of {', '.join(map(repr, MODEL_TYPES))}")
        default = MODEL_TYPES[model_type]
        for name in ("text_config", "vision_config", "text_config_dict", "vision_config_dict"):
            if not isinstance(config.get(name) or {}, Mapping):
                raise InputError(f"{name}={config[name]!r}: it must be a JSON object")
        text = _tower(config, "text", _TEXT_KEYS, default.text)
        vision = _tower(config, "vision", _VISION_KEYS, default.vision)
        if model_type == "siglip":
            sizes = _siglip_sizes(config, text["width"], vision["width"])
        else:
            scale = _default(config, "logit_scale_init_value", default.logit_scale_init)
            require_number("logit_scale_init_value", scale)
            sizes = {"embed_dim": _default(config, "projection_dim", 512), "logit_scale_init": float(scale)}
        end = {"eos_token_id": _only("eos_token_id", text["eos_token_id"])}
        return dataclasses.replace(
            default,
            text=dataclasses.replace(default.text, **text | end),
            vision=dataclasses.replace(default.vision, **vision | {name: _only(name, vision[name]) for name in _SIDES}),
            **sizes,
        )

    @property
    def model_type(self) -> str:
        """Hugging Face's name of the architecture, a key of `MODEL_TYPES`."""
        for model_type, default in MODEL_TYPES.items():
            same_bias = (self.logit_bias_init is None) == (default.logit_bias_init is None)
            same_text = _differs_in(self.text, default.text, _TEXT_KEYS)
            if same_bias and same_text and _differs_in(self.vision, default.vision, _VISION_KEYS):
                return model_type
        raise InputError(
            f"{self.text} and {self.vision} fit none of Hugging Face's model types {', '.join(MODEL_TYPES)}; save the "
            "clip in its own format"
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of a `config.json`; settings of a run, from `compute_dtype` on, are left out."""
        model_type = self.model_type
        text = {hf_name: getattr(self.text, name) for name, hf_name in _TEXT_KEYS.items()}
        vision = {hf_name: getattr(self.vision, name) for name, hf_name in _VISION_KEYS.items()}
        text["model_type"], vision["model_type"] = f"{model_type}_text_model", f"{model_type}_vision_model"
        both: dict[str, Any] = {}
        if model_type == "siglip":
            text["projection_size"] = self.embed_dim
        else:
            both["projection_dim"] = text["projection_dim"] = vision["projection_dim"] = self.embed_dim
            both["logit_scale_init_value"] = self.logit_scale_init
        return {
            "architectures": [_ARCHITECTURES[model_type]],
            "model_type": model_type,
            **both,
            "text_config": text,
            "vision_config": vision,
        }


_ARCHITECTURES = {"clip": "CLIPModel", "metaclip_2": "MetaClip2Model", "siglip": "SiglipModel"}
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
    **{name: name for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
}
_SIDES = ("image_size", "patch_size")
_VISION_KEYS = _TRANSFORMER_KEYS | {name: name for name in _SIDES} | {"channels": "num_channels"}


# By model type, transformers' defaults and the properties of the architecture. A config.json of SigLIP stores only what
# differs from them; SigLIP 2 of fixed resolution has the same model type.
_SIGLIP: dict[str, Any] = {"width": 768, "heads": 12, "mlp_width": 3072, "norm_eps": 1e-6}
_SIGLIP |= {"activation": "gelu_pytorch_tanh"}
MODEL_TYPES: dict[str, ClipConfig] = {
    "clip": ClipConfig(),
    "metaclip_2": ClipConfig(text=TextConfig(pooling="first_end")),
    "siglip": ClipConfig(
        TextConfig(
            **_SIGLIP, vocab_size=32000, context_length=64, bos_token_id=None, eos_token_id=1,
            causal=False, start_token=False, pooling="last", projection="dense",
        ),
        VisionConfig(
            **_SIGLIP, patch_size=16, class_token=False, patch_bias=True, pre_norm=False, pooling="attention",
            projection="none",
        ),
        embed_dim=768,
        logit_scale_init=math.log(10),
        logit_bias_init=-10.0,
    ),
}  # fmt: skip


def _siglip_sizes(config: Mapping[str, Any], text_width: Any, vision_width: Any) -> dict[str, Any]:
    """Returns the width of the joint space: an image's feature is not projected."""
    if _default(config.get("vision_config") or {}, "vision_use_head", True) is not True:
        raise InputError("vision_use_head=false: the image feature of this library needs the pooling head")
    size = _default(config.get("text_config") or {}, "projection_size", text_width)
    if size != vision_width:
        raise InputError(f"the text's projection_size={size!r} must be the image's hidden_size={vision_width!r}")
    return {"embed_dim": size}


def _differs_in(tower: Any, default: TextConfig | VisionConfig | ResNetConfig, names: Iterable[str]) -> bool:
    """Returns whether a tower differs from another one in these fields only."""
    if type(tower) is not type(default):
        return False
    return tower == dataclasses.replace(default, **{name: getattr(tower, name) for name in names})


def _default(config: Mapping[str, Any], key: str, default: Any) -> Any:
    return default if config.get(key) is None else config[key]


def _tower(config: Mapping[str, Any], tower: str, keys: Mapping[str, str], default: object) -> dict[str, Any]:
    """Returns the fields of one tower under our names, with defaults filled in."""
    given = dict(config.get(f"{tower}_config") or {})
    old = config.get(f"{tower}_config_dict")
    if old is not None:
        # transformers completes the old dictionary with defaults before it overrides the new one.
        given.update({hf_name: _default(old, hf_name, getattr(default, name)) for name, hf_name in keys.items()})
    return {name: given.get(hf_name, getattr(default, name)) for name, hf_name in keys.items()}


def _only(name: str, value: Any) -> Any:
    """Returns a value that some files write as a list of equal values."""
    if not isinstance(value, list | tuple):
        return value
    if not value or any(each != value[0] for each in value):
        raise InputError(f"{name}={value!r}: only one value is supported")
    return value[0]
