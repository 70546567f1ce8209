"""A clip from a folder or the Hugging Face hub, and back into a folder."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gram_jax.clip.config import ClipConfig
from gram_jax.clip.formats.weights import read_weights, write_weights
from gram_jax.clip.images import ImageTransform
from gram_jax.clip.model import Clip
from gram_jax.clip.tokenizer import Tokenizer
from gram_jax.errors import InputError

MINI = Path(__file__).parents[2] / "assets" / "mini"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, PREPROCESSOR, PROCESSOR = "config.json", "preprocessor_config.json", "processor_config.json"
TOKENIZER, VOCAB, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
TOKENIZER_CONFIG, OLD_TOKENIZER_FILES = "tokenizer_config.json", ("special_tokens_map.json", "added_tokens.json")
# All that is ever fetched from the hub: no pickles, no code.
HUB_FILES = [
    *(CONFIG, PREPROCESSOR, PROCESSOR, TOKENIZER, VOCAB, MERGES, TOKENIZER_CONFIG, *OLD_TOKENIZER_FILES),
    *(WEIGHTS, INDEX, "model-*-of-*.safetensors"),
]
MAX_JSON = 256 << 20  # bytes of a JSON file
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_clip(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    compute_dtype: str = "float32",
    revision: str | None = None,
) -> Clip:
    """Loads a CLIP in Hugging Face's format: configuration, weights, tokenizer and image transform.

    Weights are read from `model.safetensors`, whole or in shards; pickled ones are refused. A folder without
    preprocessor configuration gets CLIP's own transform at the image size of its `config.json`.

    Args:
      name_or_path: "mini" (the small clip that comes with the package), a local folder, or a name on the Hugging Face
        hub, such as "openai/clip-vit-large-patch14". A local folder wins over a name.
      dtype: "float32", "float16" or "bfloat16"; what the parameters are kept in.
      compute_dtype: "float32" or "bfloat16"; what the matrix products are computed in (see `ClipConfig`).
      revision: branch, tag or commit on the hub, such as "refs/pr/3".

    Returns:
      The clip.

    Raises:
      FileNotFoundError: no such folder or hub name, the hub cannot be reached, or a file of the model is missing.
      WeightsError: the weights are damaged or do not fit `config.json`; all that is wrong is listed.
      InputError: the weights are pickled, the model is no CLIP, or its parts do not belong together.

    Example:
      >>> import tempfile
      >>> from gram_jax.testing import tiny_clip
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_clip(tiny_clip(), folder)
      ...     load_clip(folder).config == tiny_clip().config
      True

    Reference:
      The format is that of Wolf et al., Transformers: State-of-the-Art Natural Language Processing, EMNLP 2020.
    """
    folder = _find(name_or_path, revision)
    config = _parsed(ClipConfig.from_hf, folder / CONFIG, _read_json(folder / CONFIG))
    config = dataclasses.replace(config, compute_dtype=compute_dtype)
    tokenizer = _read_tokenizer(folder, config)
    transform = _read_transform(folder, config)
    _check_parts(config, tokenizer, transform, str(folder))
    params = read_weights(_weight_files(folder, str(name_or_path)), config, dtype)
    return Clip(params, config, tokenizer, transform)


def save_clip(clip: Clip, folder: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False) -> None:
    """Saves a clip as a folder that `load_clip` and transformers read.

    `CLIPModel`, `CLIPTokenizer` and `CLIPImageProcessor` of transformers load it with `from_pretrained(folder)`. The
    weights appear last, and whole or not at all. An older clip in the folder is replaced, its files removed.

    Args:
      clip: the clip; without an image transform, CLIP's own is written.
      folder: where to; made if it does not exist.
      dtype: "float32", "float16" or "bfloat16" of the file; default: as the parameters are.
      overwrite: write into a folder that holds something else than a clip; its other files stay.

    Raises:
      FileExistsError: the folder holds something else than a clip, or is a file.
      InputError: the clip has no tokenizer, or parts that do not belong together.

    Example:
      >>> import tempfile
      >>> from gram_jax.testing import tiny_clip
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_clip(tiny_clip(), folder, dtype="float16")
      ...     sorted(os.listdir(folder))
      ['config.json', 'model.safetensors', 'preprocessor_config.json', 'tokenizer.json', 'tokenizer_config.json']

    Reference:
      The layout is that of Hugging Face transformers.
    """
    folder = Path(folder)
    if clip.tokenizer is None:
        raise InputError("this clip has no tokenizer, and a folder without one cannot be loaded; use clip.replace(...)")
    transform = clip.transform or _default_transform(clip.config)
    _check_parts(clip.config, clip.tokenizer, transform, "the clip")
    stale = _check_target(folder, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    config = {**clip.config.to_hf(), "dtype": dtype or clip.params["logit_scale"].dtype.name}
    clip.tokenizer.save(folder)
    for name, content in ((CONFIG, config), (PREPROCESSOR, transform.to_hf())):
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_weights(clip.params, clip.config, folder / WEIGHTS, dtype)
    for path in stale:
        path.unlink(missing_ok=True)


def _find(name_or_path: str | os.PathLike[str], revision: str | None) -> Path:
    """The local folder of a clip, fetched from the hub if need be."""
    name = os.fspath(name_or_path)
    path = MINI if name == "mini" else Path(name).expanduser()
    if path.is_dir():
        return path
    if name == "mini":
        raise FileNotFoundError(f"the mini clip is missing from this installation ({MINI}); install gram_jax again")
    if path.suffix in PICKLES and path.is_file():
        raise InputError(_pickle_message(f"{path} is a pickle", "FOLDER OR NAME OF THE MODEL", "NEW FOLDER"))
    if path.exists():
        raise InputError(f"{path} is a file; pass the folder that holds it with its {CONFIG}")
    if not isinstance(name_or_path, str) or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise FileNotFoundError(f"there is no folder {name!r}; check the path, or pass a hub name like 'owner/model'")
    return _fetch(name, revision)


def _fetch(name: str, revision: str | None) -> Path:
    from huggingface_hub import errors, snapshot_download

    at = "" if revision is None else f" at revision {revision!r}"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES))
    except errors.GatedRepoError as error:
        reason = "asks for its terms to be accepted; accept them on its page on the hub, then log in: hf auth login"
        raise FileNotFoundError(f"the model {name!r} on the Hugging Face hub {reason}") from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"the model {name!r} has no revision {revision!r} on the Hugging Face hub") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        reason = "check the spelling; for a private model log in first: hf auth login"
        raise FileNotFoundError(
            f"{name!r} is neither a local folder nor a model on the Hugging Face hub; {reason}"
        ) from error
    except Exception as error:  # no network, a proxy, an outage: each HTTP library has errors of its own
        reason = "connect once, or copy the model's folder here and pass its path"
        raise FileNotFoundError(
            f"{name!r}{at} is no local folder, and the Hugging Face hub or its cache on this machine did not yield it "
            f"({type(error).__name__}: {error}); {reason}"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if (size := path.stat().st_size) > MAX_JSON:
            raise InputError(f"{size} bytes, the limit is {MAX_JSON}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing; check that the folder is a clip's, completely copied") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no valid JSON ({error}); download or write it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; it must be a JSON object")
    return content


def _parsed(parse: Callable[[dict[str, Any]], Any], path: Path, content: dict[str, Any]) -> Any:
    """What a parser makes of a file's content; its errors name the file."""
    try:
        return parse(content)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: {error}") from error


def _weight_files(folder: Path, name: str) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        shards = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise InputError(f"{folder / INDEX} has no usable weight_map; download it again")
        names = sorted(set(shards.values()))
        outside = [shard for shard in names if Path(shard).name != shard]
        if outside:
            raise InputError(f"{folder / INDEX} names a shard outside the folder, {outside[0]!r}; do not trust it")
        there = {path.name for path in folder.iterdir()}  # asked for by name, a shard may have one no file can have
        missing = [shard for shard in names if shard not in there]
        if missing:
            shown = ", ".join(shard[:200] for shard in missing[:20])
            raise FileNotFoundError(f"{folder} lacks {len(missing)} of {len(names)} shards: {shown}")
        return [folder / shard for shard in names]
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise InputError(_pickle_message(f"{folder} has its weights as {', '.join(pickles)}", str(folder), str(folder)))
    if Path(name).is_dir() or name == "mini":
        raise FileNotFoundError(f"{folder} holds no {WEIGHTS}; check that it is a clip's folder, completely copied")
    problem = f"the model {name!r} on the Hugging Face hub has no {WEIGHTS}, so its weights are a pickle"
    hint = "Often a converted copy waits in one of its pull requests: pass revision='refs/pr/NUMBER'. Or: "
    raise FileNotFoundError(_pickle_message(problem, name, name.rpartition("/")[2], hint))


def _pickle_message(problem: str, source: str, target: str, hint: str = "") -> str:
    # Converted in place, a folder keeps its tokenizer and preprocessor; elsewhere they have to come along.
    parts = ["CLIPModel"] if source == target else ["CLIPModel", "CLIPTokenizer", "CLIPImageProcessor"]
    steps = (f"{part}.from_pretrained({json.dumps(source)}).save_pretrained({json.dumps(target)})" for part in parts)
    code = "; ".join([f"from transformers import {', '.join(parts)}", *steps])
    return (
        f"{problem}, which can run any code when it is opened. {hint}Convert it where that may happen, with torch "
        f"and transformers:\n    python -c {shlex.quote(code)}\nthen load {target!r}"
    )


def _read_tokenizer(folder: Path, config: ClipConfig) -> Tokenizer:
    if not (folder / TOKENIZER).is_file() and not ((folder / VOCAB).is_file() and (folder / MERGES).is_file()):
        raise FileNotFoundError(
            f"{folder} has no tokenizer; copy {TOKENIZER}, or {VOCAB} and {MERGES}, from the original model"
        )
    try:
        return Tokenizer.from_folder(folder, config.text.context_length)
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise InputError(f"the tokenizer in {folder} cannot be read ({error}); copy its files again") from error


def _read_transform(folder: Path, config: ClipConfig) -> ImageTransform:
    # In transformers' order: newer versions write one processor_config.json with the image processor inside.
    if (folder / PROCESSOR).is_file():
        nested = _read_json(folder / PROCESSOR).get("image_processor")
        if isinstance(nested, dict):
            return _parsed(ImageTransform.from_hf, folder / PROCESSOR, nested)
    if (folder / PREPROCESSOR).is_file():
        return _parsed(ImageTransform.from_hf, folder / PREPROCESSOR, _read_json(folder / PREPROCESSOR))
    return _default_transform(config)


def _default_transform(config: ClipConfig) -> ImageTransform:
    side = config.vision.image_size
    return ImageTransform(size=side, crop=(side, side))


def _check_parts(config: ClipConfig, tokenizer: Tokenizer, transform: ImageTransform, name: str) -> None:
    text, side = config.text, config.vision.image_size
    if tokenizer.vocab_size > text.vocab_size:
        raise InputError(
            f"{name}: the tokenizer has {tokenizer.vocab_size} tokens, the text transformer embeds {text.vocab_size}; "
            "use the tokenizer of this model"
        )
    if tokenizer.context_length > text.context_length:
        raise InputError(
            f"{name}: the tokenizer allows {tokenizer.context_length} tokens, the text transformer takes "
            f"{text.context_length}; use the tokenizer of this model"
        )
    end, ids = tokenizer.eos_token_id, (tokenizer.bos_token_id, tokenizer.pad_token_id)
    if text.eos_rule == "first" and end != text.eos_token_id:
        raise InputError(
            f"{name}: the tokenizer ends a text with id {end}, {CONFIG} looks for eos_token_id {text.eos_token_id}; "
            "correct text_config.eos_token_id, or use the tokenizer of this model"
        )
    if text.eos_rule == "highest" and end < max(ids):
        raise InputError(
            f"{name}: {CONFIG} has eos_token_id 2, so the end of a text is its highest id, but the tokenizer's end is "
            f"{end}, below its start or padding {max(ids)}; state the real text_config.eos_token_id"
        )
    if transform.output_size not in (None, (side, side)):
        height, width = transform.output_size
        raise InputError(
            f"{name}: the image transform makes {height} x {width} pixels, the image transformer takes {side} x "
            f"{side}; use the preprocessor configuration of this model"
        )


def _check_target(folder: Path, overwrite: bool) -> list[Path]:
    """Refuses to mix a clip into something else; returns what an older clip would leave behind to confuse a reader."""
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file; pass the name of a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return []
    try:
        is_clip = _read_json(folder / CONFIG).get("model_type") == "clip"
    except (OSError, ValueError):
        is_clip = False
    if not is_clip and not overwrite:
        raise FileExistsError(f"{folder} is not empty and holds no clip; pass another folder, or overwrite=True")
    stale = (PROCESSOR, INDEX, VOCAB, MERGES, *OLD_TOKENIZER_FILES)
    return [*(folder / name for name in stale), *folder.glob("model-*-of-*.safetensors")]
