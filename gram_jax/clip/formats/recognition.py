"""Recognizes a checkpoint on disk by the files of a folder; a single file, by the names of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from gram_jax.clip.formats import huggingface, openclip
from gram_jax.clip.formats.shards import read_object, shard_files
from gram_jax.clip.formats.source import Facts, Format, Request, Source
from gram_jax.clip.formats.tensors import PICKLES, SAFETENSORS
from gram_jax.clip.model import Clip
from gram_jax.errors import InputError, examples
from gram_jax.io import read_json

# A format enters here. Where a folder has several, the first one with safetensors is read.
FORMATS: tuple[Format, ...] = (huggingface.FORMAT, openclip.FORMAT)
INDEX = ".index.json"
_FOREIGN = (".msgpack", ".h5", ".onnx", ".gguf", ".ot")  # weights that are not read
MODULES = "modules.json"  # of sentence-transformers
Reader = Callable[[Source, Request], Clip]


def recognize(path: Path, facts: Facts | None = None, places: Sequence[Path] = ()) -> tuple[Reader, Source]:
    """Returns the reader of a checkpoint on disk, and the files that it reads.

    Args:
      path: a folder or a file.
      facts: those of the tag by which it was named.
      places: further folders that may contain the weights; the folder itself comes last.
    """
    if path.is_file():
        return _recognize_file(path, facts)
    path = follow(path)
    places = [*places, path]
    names = {place: {each.name for each in place.iterdir()} for place in places}
    format_, weights = choose_format(path, names[path], set().union(*names.values()))
    place = next((place for place in places if weights in names[place]), None)
    if place is None:
        place, weights = _cached_elsewhere(path, format_)
    file = place / str(weights)
    files = tuple(shard_files(file)) if file.name.endswith(INDEX) else (file,)
    return format_.read, Source(path, files, facts)


def choose_format(folder: Path, names: Collection[str], available: Collection[str]) -> tuple[Format, str | None]:
    """Returns the format of a folder, and the name of its weights, or None if there are none.

    Args:
      folder: contains the configurations.
      names: the files of the folder.
      available: the files among which the weights are.
    """
    found = [each for each in FORMATS if each.config in names and each.is_config(read_object(folder / each.config))]
    if not found and huggingface.CONFIG in names:
        found = [huggingface.FORMAT]  # its reader reports what is wrong
    if not found:
        wanted = " and no ".join(each.config for each in FORMATS)
        loose = sorted(name for name in names if Path(name).suffix in (SAFETENSORS, *PICKLES))
        hint = f"pass one file, {folder / loose[0]}" if loose else "check that it is a complete copy of a clip"
        raise FileNotFoundError(f"{folder / FORMATS[0].config} is missing: the folder has no {wanted}; {hint}")
    choices = [(each, each.weights_among(available)) for each in found]
    choices.sort(key=lambda choice: _rank(choice[1]))  # stable: the order of the formats decides among equals
    return choices[0]


def _rank(weights: str | None) -> int:
    return 2 if weights is None else int(SAFETENSORS not in weights)


def follow(folder: Path) -> Path:
    """Returns the folder of the clip inside one of another layout.

    A folder of the Hugging Face cache leads to the snapshot of its main branch, and one of sentence-transformers to the
    module with the clip.
    """
    if (folder / "snapshots").is_dir():
        main = folder / "refs" / "main"
        snapshot = folder / "snapshots" / (Path(main.read_text().strip()).name if main.is_file() else "")
        if snapshot == folder / "snapshots" or not snapshot.is_dir():
            raise FileNotFoundError(f"{folder}, of the hub's cache, lacks its main branch; download the model again")
        folder = snapshot
    if (folder / MODULES).is_file() and not any((folder / each.config).is_file() for each in FORMATS):
        folder = folder / _clip_module(folder / MODULES)
    return folder


def _cached_elsewhere(folder: Path, format_: Format) -> tuple[Path, str]:
    """Returns the cached snapshot of a pull request or conversion with the weights that a cached snapshot lacks."""
    found = {}
    if folder.parent.name == "snapshots":
        refs = folder.parents[1] / "refs"
        for path in (path for kind in ("pr", "convert") for path in (refs / "refs" / kind).rglob("*")):
            place = folder.parent / Path(path.read_text().strip()).name if path.is_file() else folder
            weights = format_.weights_among([each.name for each in place.iterdir()]) if place.is_dir() else None
            if weights is not None:
                found[str(path.relative_to(refs))] = place, weights
    if not found:
        wanted = " or ".join(format_.weights)
        others = sorted(each.name for each in folder.iterdir() if each.suffix in (SAFETENSORS, *PICKLES, *_FOREIGN))
        holds = f" (it holds {examples(others)})" if others else ""
        raise FileNotFoundError(f"{folder} has no {wanted}{holds}; check that the folder is a complete copy of a clip")
    if len(found) > 1:
        raise InputError(f"{folder} has no weights, but {' and '.join(sorted(found))} have; name one as the revision")
    return found.popitem()[1]


def _clip_module(modules: Path) -> str:
    """Returns the folder of the clip that sentence-transformers' list of modules names."""
    content = read_json(modules)
    for module in content if isinstance(content, list) else []:
        path = module.get("path") if isinstance(module, dict) else None
        if isinstance(path, str) and str(module.get("type")).endswith("CLIPModel"):
            if path and path not in {each.name for each in modules.parent.iterdir()}:
                raise InputError(
                    f"{modules} names the folder {path[:200]!r}, which is not beside it; copy it completely"
                )
            return path
    raise InputError(f"{modules} lists no CLIPModel; only sentence-transformers' clips are supported")


def _recognize_file(file: Path, facts: Facts | None) -> tuple[Reader, Source]:
    """Returns the reader of one file: its folder's format, if its folder has a configuration, or by its tensors."""
    if file.suffix not in (SAFETENSORS, *PICKLES):
        endings = ", ".join((SAFETENSORS, *PICKLES))
        raise InputError(f"{file} is a file, but no weights ({endings}); pass the folder that contains it")
    for each in FORMATS:
        config = file.parent / each.config
        own = each is not huggingface.FORMAT or file.name in each.weights  # OpenCLIP's files have any name
        if own and config.is_file() and each.is_config(read_object(config)):
            return each.read, Source(file.parent, (file,), facts)
    return openclip.read_file, Source(file.parent, (file,), facts)
