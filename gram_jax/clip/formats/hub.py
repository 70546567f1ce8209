"""Downloads clips from the Hugging Face hub: small files first, then only the weights that will be read."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from gram_jax.clip.formats.recognition import FORMATS, INDEX, MODULES, choose_format, follow
from gram_jax.clip.formats.shards import read_object
from gram_jax.clip.formats.tensors import SAFETENSORS
from gram_jax.errors import InputError

logger = logging.getLogger(__name__)

CONVERTER = "SFconvertbot"  # the hub's own program that opens pull requests with safetensors
_NAMES = sorted({name for each in FORMATS for name in (each.config, *each.others)} | {MODULES})
SMALL = [*_NAMES, *(f"*/{name}" for name in _NAMES)]  # sentence-transformers' are in a folder below


def fetch(name: str, revision: str | None = None) -> tuple[Path, list[Path]]:
    """Returns the local copy of a model on the hub, and the folders that contain its weights.

    Where the main branch has pickled weights only, the hub's own copies in safetensors, in a pull request or a branch
    of conversions, are preferred. Pull requests by others are read only if `revision` names them. Without a network,
    the local cache is used.

    Raises:
      FileNotFoundError: the model does not exist, or neither the hub nor the cache provides it.
    """
    from huggingface_hub import HfApi, snapshot_download

    api = HfApi()
    logger.info("looking for %s on the Hugging Face hub", name)
    with _explained(name, revision):
        try:
            names = api.list_repo_files(name, revision=revision)
        except Exception as error:
            if _is_answer(error):
                raise
            return _cached(name, revision)
        root = Path(snapshot_download(name, revision=revision, allow_patterns=SMALL))
        folder = follow(root)
        prefix = "" if folder == root else f"{folder.name}/"
        own = [each.removeprefix(prefix) for each in names if each.startswith(prefix)]
        format_, weights = choose_format(folder, own, own)
        converted = None
        if revision is None and not prefix and (weights is None or SAFETENSORS not in weights):
            converted = _converted(api, name, [each for each in format_.weights if SAFETENSORS in each])
        source, weights = converted or (revision, weights)
        if weights is None:
            return folder, []
        place = _download_weights(name, source, prefix, weights)
        return folder, [place]


def _download_weights(name: str, revision: str | None, prefix: str, weights: str) -> Path:
    """Downloads one file, or an index and its shards; returns their folder."""
    from huggingface_hub import snapshot_download

    place = Path(snapshot_download(name, revision=revision, allow_patterns=[prefix + weights])) / prefix
    if weights.endswith(INDEX):
        shards = read_object(place / weights).get("weight_map")
        if isinstance(shards, dict):  # otherwise the reader reports the damage
            patterns = [prefix + shard for shard in sorted({str(shard) for shard in shards.values()})]
            snapshot_download(name, revision=revision, allow_patterns=patterns)
    return place


def _converted(api: object, name: str, wanted: Sequence[str]) -> tuple[str, str] | None:
    """Returns the revision of a converted copy by the hub itself, and the name of its weights, or None."""
    with contextlib.suppress(Exception):  # the search is an extra: without it, the main branch is read
        refs = api.list_repo_refs(name, include_pull_requests=True)  # type: ignore[attr-defined]
        settings = {"author": CONVERTER, "discussion_type": "pull_request"}
        found = api.get_repo_discussions(name, **settings)  # type: ignore[attr-defined]
        trusted = {f"refs/pr/{each.num}" for each in found if each.author == CONVERTER}
        pulls = [each.ref for each in refs.pull_requests or [] if each.ref in trusted]
        for ref in [*(each.ref for each in refs.converts), *reversed(pulls)]:
            names = set(api.list_repo_files(name, revision=ref))  # type: ignore[attr-defined]
            weights = next((each for each in wanted if each in names), None)
            if weights is not None:
                return ref, weights
    return None


def _cached(name: str, revision: str | None) -> tuple[Path, list[Path]]:
    """Returns the same from the local cache; what a pull request lacks comes from the main branch."""
    from huggingface_hub import snapshot_download

    find = functools.partial(snapshot_download, name, allow_patterns=SMALL, local_files_only=True)
    place = Path(find(revision=revision))
    if revision is None or any((place / each.config).is_file() for each in FORMATS):
        return place, []
    return Path(find()), [place]


def _is_answer(error: Exception) -> bool:
    """Returns whether the hub itself gave this error; other errors mean that it was not reached."""
    from huggingface_hub import errors

    return isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError | errors.HFValidationError)


@contextlib.contextmanager
def _explained(name: str, revision: str | None) -> Iterator[None]:
    """Turns the errors of the hub's client into one line that names the model and the remedy."""
    from huggingface_hub import errors

    model = f"{name!r}" if revision is None else f"{name!r} at revision {revision!r}"
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # no network, a proxy, an outage: each HTTP library has its own errors
        if isinstance(error, FileNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
            raise
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
