"""`load_clip`: finds a checkpoint by its name or path, recognizes the format and calls the reader.

A format is a module of this package with a function `read_clip(path, dtype, compute_dtype)`. `_reader` chooses it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from gram_jax.clip.formats import huggingface
from gram_jax.clip.model import Clip
from gram_jax.errors import InputError

MINI = Path(__file__).parents[2] / "assets" / "mini"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_clip(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    compute_dtype: str = "float32",
    revision: str | None = None,
) -> Clip:
    """Returns a CLIP in Hugging Face's format: configuration, weights, tokenizer and image transform.

    Weights are read from `model.safetensors`, in one file or in shards; pickles are refused. A folder without a
    preprocessor configuration gets CLIP's own transform, at the image size of its `config.json`.

    Args:
      name_or_path: "mini" (the small clip in this package), a local folder, or a name on the Hugging Face hub such as
        "openai/clip-vit-large-patch14". A local folder takes precedence over a name.
      dtype: dtype of the parameters: "float32", "float16" or "bfloat16".
      compute_dtype: dtype of the matrix products: "float32" or "bfloat16" (see `ClipConfig`).
      revision: branch, tag or commit on the hub, such as "refs/pr/3".

    Raises:
      WeightsError: the weights are damaged or do not fit `config.json`; all problems are listed.
      InputError: the weights are pickled, the model is not a CLIP, or its parts do not fit together.

    Example:
      >>> load_clip("mini").config.embed_dim
      128
    """
    name = os.fspath(name_or_path)
    path = MINI if name == "mini" else Path(name).expanduser()
    if not path.exists():
        if name == "mini":
            raise FileNotFoundError(f"{MINI} is missing; install gram_jax again")
        if not isinstance(name_or_path, str) or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
            raise FileNotFoundError(f"there is no folder {name!r}; check the path, or pass a hub name, owner/model")
        path = _download(name, revision)
        if not huggingface.has_weights(path):
            problem = f"{name!r} on the Hugging Face hub has no {huggingface.WEIGHTS}, only pickled weights"
            hint = "try revision='refs/pr/NUMBER' of a pull request with a converted copy, or "
            raise FileNotFoundError(_pickle_message(problem, name, name.rpartition("/")[2], hint))
    return _reader(path)(path, dtype, compute_dtype)


def _reader(path: Path) -> Callable[[Path, str, str], Clip]:
    """Returns the reader of the format of a file or folder. This is the place to recognize further formats."""
    if path.is_file():
        if path.suffix in PICKLES:
            raise InputError(_pickle_message(f"{path} is a pickle", "FOLDER OR NAME OF THE MODEL", "NEW FOLDER"))
        raise InputError(f"{path} is a file; pass the folder that contains it")
    pickles = sorted(each.name for each in path.iterdir() if each.suffix in PICKLES)
    if pickles and not huggingface.has_weights(path):
        raise InputError(_pickle_message(f"the weights in {path} are pickled, {pickles[0]}", str(path), str(path)))
    return huggingface.read_clip


def _download(name: str, revision: str | None) -> Path:
    """Returns the local copy of a model on the Hugging Face hub."""
    from huggingface_hub import errors, snapshot_download

    model = f"{name!r}" if revision is None else f"{name!r} at revision {revision!r}"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=huggingface.HUB_FILES))
    except Exception as error:  # no network, a proxy, an outage: each HTTP library has its own errors
        if isinstance(error, errors.GatedRepoError):
            problem = "requires that you accept its terms on the Hugging Face hub; do so, then run: hf auth login"
        elif isinstance(error, errors.RevisionNotFoundError):
            problem = "does not exist on the Hugging Face hub; check the revision"
        elif isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
            problem = "is neither a local folder nor a model on the Hugging Face hub; check the spelling, or log in "
            problem += "(hf auth login) if it is private"
        else:
            problem = "is not a local folder, and the Hugging Face hub or its local cache did not provide it "
            problem += f"({type(error).__name__}: {error}); connect once, or copy the model's folder and pass its path"
        raise FileNotFoundError(f"{model} {problem}") from error


def _pickle_message(problem: str, source: str, target: str, hint: str = "") -> str:
    """Returns a message with the command that converts a pickled model."""
    # Converted in place, a folder keeps its tokenizer and preprocessor; otherwise they must be saved too.
    parts = ["CLIPModel"] if source == target else ["CLIPModel", "CLIPTokenizer", "CLIPImageProcessor"]
    steps = (f"{part}.from_pretrained({json.dumps(source)}).save_pretrained({json.dumps(target)})" for part in parts)
    code = "; ".join([f"from transformers import {', '.join(parts)}", *steps])
    return (
        f"{problem}; a pickle can run any code: {hint}convert it in a safe place, where torch and transformers are "
        f"installed, with: python -c {shlex.quote(code)} and load {target!r}"
    )
