"""Index files: the shards of one model's weights, as Hugging Face writes them for safetensors and PyTorch alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gram_jax.errors import InputError
from gram_jax.io import read_json

MAX_JSON = 256 << 20  # bytes of a JSON file


def shard_files(index: Path) -> list[Path]:
    """Returns the shards that an index file names, by name; all exist, in the folder of the index.

    Raises:
      InputError: the index is damaged, or names a file outside its folder.
      FileNotFoundError: the index or a shard is missing.
    """
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise InputError(f"{index} has no valid weight_map; download it again")
    folder, names = index.parent, sorted(set(shards.values()))
    outside = [shard for shard in names if Path(shard).name != shard]
    if outside:
        raise InputError(f"{index} names a shard outside the folder, {outside[0][:200]!r}; do not trust it")
    existing = {path.name for path in folder.iterdir()}  # a shard may have a name that no file can have
    missing = [shard for shard in names if shard not in existing]
    if missing:
        shown = ", ".join(shard[:200] for shard in missing[:20])
        raise FileNotFoundError(f"{folder} lacks {len(missing)} of {len(names)} shards: {shown}")
    return [folder / shard for shard in names]


def read_object(path: Path) -> dict[str, Any]:
    """Returns the content of a file that contains one JSON object, of limited size."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; check that the folder is a complete copy of a clip")
    if (size := path.stat().st_size) > MAX_JSON:
        raise InputError(f"{path} has {size} bytes, the limit is {MAX_JSON}; download it again")
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} contains a {type(content).__name__}; it must be a JSON object")
    return content
