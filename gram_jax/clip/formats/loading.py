"""`load_clip` and `convert`: from a name or path to a clip, and from any format to a Hugging Face folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gram_jax.clip.formats import hub, tags
from gram_jax.clip.formats.huggingface import save_clip
from gram_jax.clip.formats.recognition import Reader, recognize
from gram_jax.clip.formats.source import Facts, Request, Source
from gram_jax.clip.formats.weights import DTYPES
from gram_jax.clip.images import ImageTransform
from gram_jax.clip.model import Clip
from gram_jax.errors import InputError, require_known

MINI = Path(__file__).parents[2] / "assets" / "mini"
OPENAI_CACHE = Path("~/.cache/clip")  # where OpenAI's package downloads its files
_HUB_NAME = re.compile(r"(hf-hub:)?(?P<name>[\w-][\w.-]*(/[\w-][\w.-]*)?)(@(?P<revision>[\w./-]+))?")
_MODEL_NAME = re.compile(r"(?P<model>\w[\w-]+):(?P<rest>.+)", re.DOTALL)


def load_clip(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    compute_dtype: str = "float32",
    revision: str | None = None,
    activation: str | None = None,
    transform: ImageTransform | None = None,
) -> Clip:
    """Returns a CLIP with its configuration, weights, tokenizer and image transform, from any public format.

    A name is one of these:

    * "mini", the small clip in this package;
    * a folder in the format of Hugging Face, OpenCLIP, sentence-transformers or the hub's cache;
    * OpenAI's file, such as "ViT-B-16.pt", or a file beside its configuration;
    * a name on the Hugging Face hub, "owner/model" or "owner/model@refs/pr/3";
    * OpenCLIP's model and pretrained tag, "ViT-B-16:dfn2b", or OpenAI's name of a model, "ViT-B/16";
    * OpenCLIP's model and a file of its training, "ViT-B-16-quickgelu:epoch_32.pt".

    A local path takes precedence over a name. Pickled weights (`.bin`, `.pt`) are read without executing them.

    Args:
      name_or_path: the name.
      dtype: dtype of the parameters: "float32", "float16" or "bfloat16".
      compute_dtype: dtype of the matrix products: "float32" or "bfloat16" (see `ClipConfig`).
      revision: branch, tag or commit on the hub, such as "refs/pr/3".
      activation: "gelu" or "quick_gelu", for a file that does not state it; the wrong one costs accuracy silently.
      transform: the image transform, instead of the checkpoint's own.

    Raises:
      WeightsError: the weights are damaged or do not fit the configuration; all problems are listed.
      InputError: the model is not a CLIP, its parts do not fit together, or it does not state its activation.

    Example:
      >>> load_clip("mini").config.embed_dim
      128
    """
    require_known("dtype", dtype, DTYPES)
    if activation is not None:
        require_known("activation", activation, ("gelu", "quick_gelu"))
    read, source = _find(name_or_path, revision)
    return read(source, Request(dtype, compute_dtype, activation, transform))


def convert(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    revision: str | None = None,
    activation: str | None = None,
    transform: ImageTransform | None = None,
) -> None:
    """Saves a clip in any public format as a Hugging Face folder, which transformers' `CLIPModel` can read.

    Args:
      source: a name or path, as for `load_clip`.
      folder: the target, as for `save_clip`.
      dtype: dtype of the weights in the folder.
      revision, activation, transform: as for `load_clip`.
    """
    clip = load_clip(source, dtype=dtype, revision=revision, activation=activation, transform=transform)
    save_clip(clip, folder)


def _find(name_or_path: str | os.PathLike[str], revision: str | None) -> tuple[Reader, Source]:
    """Returns the reader and the files of a name or path."""
    name = os.fspath(name_or_path)
    path = MINI if name == "mini" else Path(name.removeprefix("local-dir:")).expanduser()
    if path.exists():
        return recognize(path)
    if name == "mini":
        raise FileNotFoundError(f"{MINI} is missing; install gram_jax again")
    name = tags.from_openai_name(name) or name
    if not isinstance(name_or_path, str):
        raise FileNotFoundError(f"there is no folder {name!r}; check the path")
    if (match := _HUB_NAME.fullmatch(name)) is not None:
        if revision is not None and match["revision"] is not None:
            raise InputError(f"{name!r} and revision={revision!r}: give one revision")
        return _recognize_hub(match["name"], revision or match["revision"], None)
    if (match := _MODEL_NAME.fullmatch(name)) is not None and "\\" not in name:
        return _find_model(match["model"], match["rest"], revision)
    raise FileNotFoundError(f"there is no folder {name!r}; check the path, or pass a hub name, owner/model")


def _find_model(model: str, rest: str, revision: str | None) -> tuple[Reader, Source]:
    """Finds OpenCLIP's `MODEL:TAG` or `MODEL:FILE`."""
    if (path := Path(rest).expanduser()).exists():
        return recognize(path, tags.facts_of_model(model))
    if path.suffix in tags.FILES or "/" in rest:
        tags.require_model(model)
        raise FileNotFoundError(f"there is no file {rest!r}; check the path")
    repository, facts = tags.facts_of_tag(model, rest)
    own = OPENAI_CACHE.expanduser() / tags.openai_file(model)
    if facts.name.endswith(":openai") and own.is_file():
        return recognize(own, facts)
    return _recognize_hub(repository, revision, facts)


def _recognize_hub(name: str, revision: str | None, facts: Facts | None) -> tuple[Reader, Source]:
    folder, places = hub.fetch(name, revision)
    return recognize(folder, facts, places)
