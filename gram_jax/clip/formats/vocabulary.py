"""OpenAI's vocabulary of 49,408 tokens, which the files of OpenAI and most of OpenCLIP's do not contain."""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gram_jax.clip.tokenizer import END, START, WORD_END, Tokenizer
from gram_jax.errors import InputError

FILE = "bpe_simple_vocab_16e6.txt.gz"
VOCAB_SIZE = 49408
PACKAGES = ("open_clip", "clip")  # their installed copies contain the file
HUB_NAME = "openai/clip-vit-base-patch16"
_MERGES = VOCAB_SIZE - 2 * 256 - 2
_MAX_BYTES = 16 << 20  # of the uncompressed file


def openai_tokenizer(folder: Path, vocab_size: int, context_length: int) -> Tokenizer:
    """Returns OpenAI's tokenizer, from the first of these places that has its vocabulary.

    The folder of the weights; an installed open_clip or clip package; `~/.cache/clip`, where these packages download;
    the local cache of the Hugging Face hub; the hub itself.

    Args:
      folder: the folder of the weights.
      vocab_size: rows of the token embedding; another number than 49,408 means another tokenizer.
      context_length: the largest number of tokens in a text.

    Raises:
      FileNotFoundError: no place has it; the message names the file and where to put it.
    """
    if vocab_size != VOCAB_SIZE:
        raise FileNotFoundError(
            f"{folder} has no tokenizer.json, nor vocab.json and merges.txt, and {vocab_size} tokens are not OpenAI's "
            f"vocabulary ({VOCAB_SIZE}); copy the tokenizer's files from the model"
        )
    for path in _places(folder):
        if path.is_file():
            return Tokenizer(_from_merges(path), context_length)
    downloaded = _from_hub()
    if downloaded is None:
        raise FileNotFoundError(
            f"the weights in {folder} come without their tokenizer, and OpenAI's vocabulary is not on this machine; "
            f"put {FILE} (github.com/openai/CLIP, clip/{FILE}) into {folder}"
        )
    return Tokenizer.from_folder(downloaded, context_length)


def _places(folder: Path) -> Iterator[Path]:
    yield folder / FILE
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)  # does not import the package, which would import PyTorch
        for place in (spec and spec.submodule_search_locations) or ():
            yield Path(place) / FILE
    yield Path.home() / ".cache" / "clip" / FILE


def _from_merges(path: Path) -> Any:
    """Returns the tokenizer of a list of merges: bytes, bytes at the end of a word, merges in order, start, end."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    try:
        with gzip.open(path) as file:
            lines = file.read(_MAX_BYTES).decode().split("\n")[1 : _MERGES + 1]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not OpenAI's vocabulary ({error}); download it again") from error
    merges = [tuple(line.split()) for line in lines]
    if len(merges) != _MERGES or any(len(merge) != 2 for merge in merges):
        raise InputError(f"{path} has {len(merges)} merges of two tokens, not {_MERGES}; download it again")
    # OpenAI's order: printable characters first, then those that stand for other bytes.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(byte + WORD_END for byte in alphabet), *map("".join, merges), START, END]
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != VOCAB_SIZE:
        raise InputError(f"{path} repeats merges; download it again")
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)  # type: ignore[arg-type]  # pairs


def _from_hub() -> Path | None:
    """Returns a folder with the tokenizer of OpenAI's model on the hub, preferably from the local cache."""
    from huggingface_hub import hf_hub_download

    for cached in (True, False):
        try:
            return Path(hf_hub_download(HUB_NAME, "tokenizer.json", local_files_only=cached)).parent
        except Exception:  # not in the cache; no network: each HTTP library has its own errors
            continue
    return None
