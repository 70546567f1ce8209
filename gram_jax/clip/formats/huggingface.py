"""Hugging Face's format: a folder of configuration, weights, tokenizer and image transform."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gram_jax.clip.config import MODEL_TYPES, ClipConfig
from gram_jax.clip.formats.shards import read_object
from gram_jax.clip.formats.source import Format, Request, Source, check_parts
from gram_jax.clip.formats.weights import read_weights, write_weights
from gram_jax.clip.images import HALF, ImageTransform
from gram_jax.clip.model import Clip
from gram_jax.clip.tokenizer import Tokenizer
from gram_jax.errors import InputError
from gram_jax.io import write_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, PREPROCESSOR, PROCESSOR = "config.json", "preprocessor_config.json", "processor_config.json"
TOKENIZER, VOCAB, MERGES, SPIECE = "tokenizer.json", "vocab.json", "merges.txt", "spiece.model"
TOKENIZER_CONFIG, OLD_TOKENIZER_FILES = "tokenizer_config.json", ("special_tokens_map.json", "added_tokens.json")
TOKENIZER_FILES = (TOKENIZER, VOCAB, MERGES, SPIECE, TOKENIZER_CONFIG, *OLD_TOKENIZER_FILES)


def read_clip(source: Source, request: Request) -> Clip:
    """Reads a clip from a folder; see `load_clip` for the errors."""
    folder = source.folder
    config = request.configured(read_config(folder), folder / CONFIG, source.facts)
    tokenizer, found = read_tokenizer(folder, config), read_transform(folder, config)
    config = with_token_ids(config, tokenizer)
    transform = request.transformed(config, found, source.facts)
    check_parts(config, tokenizer, transform, str(folder), CONFIG)
    return Clip(read_weights(source.files, config, request.dtype, CONFIG), config, tokenizer, transform)


FORMAT = Format(
    "Hugging Face",
    CONFIG,
    (WEIGHTS, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json"),
    (PREPROCESSOR, PROCESSOR, *TOKENIZER_FILES),
    lambda config: "model_type" in config,
    read_clip,
)


def save_clip(clip: Clip, folder: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False) -> None:
    """Saves a clip as a folder that `load_clip` and transformers can read.

    `CLIPModel` (or `SiglipModel`, `MetaClip2Model`), `CLIPTokenizer` and `CLIPImageProcessor` of transformers load it
    with `from_pretrained(folder)`. The weights are written last, and atomically. A clip that is already in the folder
    is replaced.

    Args:
      clip: the clip; without an image transform, CLIP's own is written.
      folder: the target; created if it does not exist.
      dtype: dtype of the file, "float32", "float16" or "bfloat16"; default: that of the parameters.
      overwrite: write into a folder that contains other files; they are kept.

    Example:
      >>> import os, tempfile
      >>> from gram_jax.testing import tiny_clip
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_clip(tiny_clip(), folder, dtype="float16")
      ...     sorted(os.listdir(folder))
      ['config.json', 'model.safetensors', 'preprocessor_config.json', 'tokenizer.json', 'tokenizer_config.json']
    """
    folder = Path(folder)
    if clip.tokenizer is None:
        raise InputError("this clip has no tokenizer; add one with clip.replace(tokenizer=...)")
    transform = clip.transform or _default_transform(clip.config)
    check_parts(clip.config, clip.tokenizer, transform, "the clip", CONFIG)
    stale = _check_target(folder, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    clip.tokenizer.save(folder)
    write_json(folder / CONFIG, clip.config.to_hf() | {"dtype": dtype or clip.params["logit_scale"].dtype.name})
    write_json(folder / PREPROCESSOR, transform.to_hf())
    write_weights(clip.params, clip.config, folder / WEIGHTS, dtype)
    for path in stale:
        path.unlink(missing_ok=True)


def read_config(folder: Path) -> ClipConfig:
    """Reads `config.json`."""
    return parsed(ClipConfig.from_hf, folder / CONFIG, read_object(folder / CONFIG))


def read_tokenizer(folder: Path, config: ClipConfig) -> Tokenizer:
    """Reads `tokenizer.json`; for CLIP also `vocab.json` and `merges.txt`, for SigLIP also `spiece.model`."""
    model_type = _tokenizer_type(config)
    others = {"clip": (VOCAB, MERGES), "siglip": (SPIECE,)}.get(model_type, (TOKENIZER,))
    if not (folder / TOKENIZER).is_file() and not all((folder / other).is_file() for other in others):
        raise FileNotFoundError(
            f"{folder} has no {TOKENIZER}, nor {' and '.join(others)}; copy the tokenizer's files from the model"
        )
    try:
        return Tokenizer.from_folder(folder, config.text.context_length, model_type)
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise InputError(f"the tokenizer in {folder} cannot be read ({error}); copy its files again") from error


def with_token_ids(config: ClipConfig, tokenizer: Tokenizer) -> ClipConfig:
    """Returns the configuration with the ids of the tokenizer, if the text transformer reads padding.

    The `config.json` of SigLIP states ids that its tokenizer does not have.
    """
    if config.text.causal:
        return config
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return dataclasses.replace(config, text=dataclasses.replace(config.text, **ids))


def read_transform(folder: Path, config: ClipConfig) -> ImageTransform:
    """Reads the image transform from the first file that has one, in transformers' order."""
    if (folder / PROCESSOR).is_file():  # written by newer versions, with the image processor inside
        nested = read_object(folder / PROCESSOR).get("image_processor")
        if isinstance(nested, dict):
            return parsed(ImageTransform.from_hf, folder / PROCESSOR, nested)
    if (folder / PREPROCESSOR).is_file():
        return parsed(ImageTransform.from_hf, folder / PREPROCESSOR, read_object(folder / PREPROCESSOR))
    return _default_transform(config)


def parsed(parse: Callable[[dict[str, Any]], Any], path: Path, content: dict[str, Any]) -> Any:
    """Parses the content of a file; errors name the file."""
    try:
        return parse(content)
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{path}: {error}") from error


def _tokenizer_type(config: ClipConfig) -> str:
    """Returns the model type with the same tokenizer; other image encoders have CLIP's."""
    if not config.text.causal:
        return "siglip"
    return "metaclip_2" if config.text.pooling == "first_end" else "clip"


def _default_transform(config: ClipConfig) -> ImageTransform:
    side = config.vision.image_size
    if config.logit_bias_init is not None:  # SigLIP's
        return ImageTransform((side, side), None, mean=HALF, std=HALF)
    return ImageTransform(size=side, crop=(side, side))


def _check_target(folder: Path, overwrite: bool) -> list[Path]:
    """Raises FileExistsError unless a folder can be written to; returns stale files of an older clip in it."""
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file; pass a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return []
    try:
        is_clip = read_object(folder / CONFIG).get("model_type") in [*MODEL_TYPES]  # a list: the value may be anything
    except (OSError, InputError):
        is_clip = False
    if not is_clip and not overwrite:
        raise FileExistsError(f"{folder} is not empty and contains no clip; pass another folder, or overwrite=True")
    stale = (PROCESSOR, INDEX, VOCAB, MERGES, SPIECE, *OLD_TOKENIZER_FILES)
    return [*(folder / name for name in stale), *folder.glob("model-*-of-*.safetensors")]
