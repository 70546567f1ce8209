"""OpenCLIP's folders, and single files in OpenAI's or OpenCLIP's naming: OpenAI's archives, checkpoints of training."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gram_jax.clip.config import ClipConfig, ResNetConfig, TextConfig, VisionConfig
from gram_jax.clip.formats.huggingface import TOKENIZER_FILES, parsed, read_tokenizer
from gram_jax.clip.formats.namings import naming_of_tensors
from gram_jax.clip.formats.pe import TIMM_MODELS, timm_config
from gram_jax.clip.formats.shards import read_object
from gram_jax.clip.formats.source import Format, Request, Source, check_parts
from gram_jax.clip.formats.table import WeightsError
from gram_jax.clip.formats.tags import OPENAI, transform_of
from gram_jax.clip.formats.tensors import open_tensors
from gram_jax.clip.formats.vocabulary import openai_tokenizer
from gram_jax.clip.formats.weights import read_weights
from gram_jax.clip.images import ImageTransform
from gram_jax.clip.model import Clip
from gram_jax.clip.tokenizer import Tokenizer
from gram_jax.errors import InputError

CONFIG = "open_clip_config.json"
_ARCHIVE = ("input_resolution", "context_length", "vocab_size")  # tensors that only OpenAI's archives have
_SIGLIP_2 = 256000  # tokens; SigLIP has 32,000
# Settings of a tower and the value that a plain CLIP has; another value is another architecture.
_PLAIN_VISION = {
    **dict.fromkeys(("timm_model_name", "ls_init_value", "block_type")),
    **dict.fromkeys(("attentional_pool", "final_ln_after_pool", "qk_norm", "scaled_cosine_attn"), False),
    **dict.fromkeys(("scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), False),
    "pos_embed_type": "learnable",
    "pool_type": "tok",
}
_PLAIN_TEXT = {
    **dict.fromkeys(("hf_model_name", "ls_init_value", "block_type")),
    **dict.fromkeys(("embed_cls", "no_causal_mask", "final_ln_after_pool", "proj_bias", "qk_norm"), False),
    **dict.fromkeys(("scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), False),
    "pool_type": "argmax",
    "proj_type": "linear",
}


def read_clip(source: Source, request: Request) -> Clip:
    """Reads a clip from a folder with an `open_clip_config.json`; see `load_clip` for the errors."""
    path = source.folder / CONFIG
    content = read_object(path)
    config = parsed(read_config, path, content)
    found = parsed(lambda content: read_transform(content, config.vision.image_size), path, content)
    config = request.configured(config, path, source.facts)
    tokenizer = _tokenizer(source.folder, config)
    config = _with_end(config, tokenizer)
    transform = request.transformed(config, found, source.facts)
    check_parts(config, tokenizer, transform, str(source.folder), CONFIG)
    return Clip(read_weights(source.files, config, request.dtype, CONFIG), config, tokenizer, transform)


FORMAT = Format(
    "OpenCLIP",
    CONFIG,
    (
        *(
            "open_clip_model.safetensors",
            "open_clip_pytorch_model.safetensors",
            "open_clip_model.safetensors.index.json",
        ),
        *("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pt", "model.safetensors", "pytorch_model.bin"),
    ),
    TOKENIZER_FILES,
    lambda config: "model_cfg" in config,
    read_clip,
)


def read_file(source: Source, request: Request) -> Clip:
    """Reads a clip from one file without a configuration, whose tensors show the sizes.

    OpenAI's archives have quick GELU and OpenAI's pixels. For other files the tag or the arguments must tell.
    """
    (file,) = source.files
    tensors = open_tensors(source.files)
    naming = naming_of_tensors(tensors.entries)
    if naming is None or naming.sizes is None:
        found = "no clip that is known" if naming is None else f"{naming.name}, whose tensors do not show all sizes"
        raise WeightsError(f"{file} contains {found}; pass the folder of the model, with its configuration")
    facts = OPENAI if source.facts is None and set(_ARCHIVE) <= tensors.entries.keys() else source.facts
    activation = facts.activation if facts else request.activation
    if activation is None or (facts is None and request.transform is None):
        raise InputError(
            f"{file} does not state its activation and image transform; name OpenCLIP's model, MODEL:{file.name} with "
            f"MODEL such as ViT-B-16 or ViT-B-16-quickgelu, or pass activation='gelu' or 'quick_gelu' and "
            "transform=ImageTransform(...) to load_clip"
        )
    try:
        config = naming.sizes(tensors.shapes, activation)
    except (KeyError, IndexError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise WeightsError(f"{file} lacks tensors that show the sizes ({error}); use a complete file") from error
    config = request.configured(config, file, facts)
    tokenizer = _tokenizer(file.parent, config)
    config = _with_end(config, tokenizer)
    side = config.vision.image_size
    transform = request.transformed(config, ImageTransform(size=side, crop=(side, side)), facts)
    check_parts(config, tokenizer, transform, str(file), file.name)
    return Clip(read_weights(tensors, config, request.dtype, "its own sizes"), config, tokenizer, transform)


def read_config(content: Mapping[str, Any]) -> ClipConfig:
    """Reads the content of an `open_clip_config.json`; missing keys take OpenCLIP's defaults.

    The end token gets the highest id; the tokenizer may correct it.
    """
    model = content.get("model_cfg")
    if not isinstance(model, Mapping) or not all(
        isinstance(model.get(f"{t}_cfg"), Mapping) for t in ("text", "vision")
    ):
        raise InputError("model_cfg must be an object with text_cfg and vision_cfg")
    text, vision = model["text_cfg"], model["vision_cfg"]
    _require_not_siglip(text, vision)
    _require_plain("text_cfg", text, _PLAIN_TEXT)
    if vision.get("timm_model_name") not in TIMM_MODELS:
        _require_plain("vision_cfg", vision, _PLAIN_VISION)
    activation = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    vocab_size = text.get("vocab_size", 49408)
    return ClipConfig(
        TextConfig(
            vocab_size=vocab_size,
            heads=text.get("heads", 8),
            context_length=text.get("context_length", 77),
            **_transformer(text, 512, activation),
            bos_token_id=vocab_size - 2,
            eos_token_id=vocab_size - 1,
            pad_token_id=vocab_size - 1,
        ),
        _vision(vision, activation),
        embed_dim=model.get("embed_dim", 512),
    )


def _vision(vision: Mapping[str, Any], activation: str) -> VisionConfig | ResNetConfig:
    width, head_width = vision.get("width", 768), vision.get("head_width", 64)
    image_size = _side(vision.get("image_size", 224))
    if (model := vision.get("timm_model_name")) in TIMM_MODELS:
        return timm_config(model, image_size, activation)
    if isinstance(layers := vision.get("layers"), list):
        return ResNetConfig(width, tuple(layers), 32 * width // head_width, image_size)  # type: ignore[arg-type]
    patch_size = _side(vision.get("patch_size", 16))
    own = _transformer(vision, 768, activation) | {"pre_norm": not vision.get("no_ln_pre", False)}
    return VisionConfig(heads=width // head_width, image_size=image_size, patch_size=patch_size, **own)


def read_transform(content: Mapping[str, Any], image_size: int) -> ImageTransform:
    """Reads the image transform of an `open_clip_config.json`; missing keys take OpenCLIP's defaults."""
    given = content.get("preprocess_cfg") or {}
    names = ("mean", "std", "interpolation", "resize_mode")
    return transform_of(image_size, **{name: given[name] for name in names if given.get(name) is not None})


def _transformer(tower: Mapping[str, Any], width: int, activation: str) -> dict[str, Any]:
    width, exact = tower.get("width", width), tower.get("act_kwargs") or {}
    if exact.get("approximate") == "tanh" and activation == "gelu":
        activation = "gelu_pytorch_tanh"
    return {
        "width": width,
        "layers": tower.get("layers", 12),
        "mlp_width": int(width * tower.get("mlp_ratio", 4.0)),
        "activation": activation,
        "norm_eps": (tower.get("norm_kwargs") or {}).get("eps", 1e-5),
    }


def _side(size: Any) -> Any:
    if not isinstance(size, list):
        return size
    if len(size) != 2 or size[0] != size[1]:
        raise InputError(f"size {size}: only squares are supported")
    return size[0]


def _require_not_siglip(text: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
    match = re.fullmatch(r"vit_(\w+?)_patch(\d+)_siglip_(\d+)", str(vision.get("timm_model_name")))
    if match is not None:
        size, patch, side = match[1].replace("giantopt", "giant-opt"), match[2], match[3].replace("378", "384")
        name = f"google/{'siglip2' if text.get('vocab_size') == _SIGLIP_2 else 'siglip'}-{size}-patch{patch}-{side}"
        raise InputError(f"timm's layout of SigLIP is not supported; load Hugging Face's of the same model, {name}")


def _require_plain(name: str, tower: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    other = [f"{key}={tower[key]!r}" for key, value in plain.items() if tower.get(key, value) != value]
    if other:
        raise InputError(f"{name} has {', '.join(other)}: this architecture is not supported; use a plain CLIP")


def _tokenizer(folder: Path, config: ClipConfig) -> Tokenizer:
    """Returns the folder's own tokenizer, or OpenAI's, which most of these files expect and few contain."""
    if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return read_tokenizer(folder, config)
    return openai_tokenizer(folder, config.text.vocab_size, config.text.context_length)


def _with_end(config: ClipConfig, tokenizer: Tokenizer) -> ClipConfig:
    """Returns the configuration with the tokenizer's ids; the feature is read at the highest id, the end token's."""
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    if ids["eos"] < max(tokenizer.vocab_size - 1, *ids.values()):
        raise InputError(
            f"the tokenizer's end token has id {ids['eos']}, but must have the highest, {tokenizer.vocab_size - 1}"
        )
    text = dataclasses.replace(config.text, **{f"{name}_token_id": value for name, value in ids.items()})
    return dataclasses.replace(config, text=text)
