"""CLIP's tokenizer read from `tokenizer.json` without transformers, whose import takes longer than a step.

transformers writes its whole tokenizer into this file: vocabulary, merges, and the same normalizer, splitting and
decoding for every CLIP. A file that holds exactly these is complete without transformers. Other files (older layouts,
tokens that were added) are left to transformers, which converts them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from gram_jax.io import read_json

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"  # the suffix of the last piece of a word
_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "NFC"},
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        {"type": "Lowercase"},
    ],
}
_PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Removed", "invert": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}
_DECODER = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
_MODEL = {
    "type": "BPE", "dropout": None, "unk_token": END, "continuing_subword_prefix": "", "end_of_word_suffix": WORD_END,
    "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
}  # fmt: skip
_TOKENS = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
_ABOUT = {"backend": "tokenizers", "tokenizer_class": "CLIPTokenizer"}
_PLACE = ("is_local", "local_files_only", "name_or_path")  # of the files; no part of a tokenizer


class TokenizerFile(NamedTuple):
    """A complete tokenizer: the content of `tokenizer.json`, and the largest number of tokens in a text."""

    state: dict[str, Any]
    model_max_length: int

    @property
    def ids(self) -> dict[str, int]:
        """The ids of the start, end and padding tokens."""
        vocab = self.state["model"]["vocab"]
        return {"bos": vocab[START], "eos": vocab[END], "pad": vocab[END]}

    def to_transformers(self) -> Any:
        """Returns transformers' object of the same tokenizer."""
        from transformers import CLIPTokenizer

        vocab, merges = self.state["model"]["vocab"], [tuple(pair) for pair in self.state["model"]["merges"]]
        return CLIPTokenizer(vocab, merges, model_max_length=self.model_max_length)  # type: ignore[arg-type]  # pairs


def make_file(vocab: dict[str, int], merges: list[Any], model_max_length: int) -> TokenizerFile:
    """Returns CLIP's tokenizer with a vocabulary and its merges, pairs of tokens in order."""
    state = _around(vocab) | {"model": {**_MODEL, "vocab": vocab, "merges": merges}}
    return TokenizerFile(state, model_max_length)


def _around(vocab: dict[str, int]) -> dict[str, Any]:
    """Returns what the state of CLIP's tokenizer contains besides its model."""
    return {
        "version": "1.0",
        "normalizer": _NORMALIZER,
        "pre_tokenizer": _PRE_TOKENIZER,
        "decoder": _DECODER,
        "added_tokens": sorted((_added(token, vocab[token]) for token in (START, END)), key=lambda each: each["id"]),
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [END, vocab[END]],
            "cls": [START, vocab[START]],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
    }


def read_complete(folder: Path) -> TokenizerFile | None:
    """Returns the tokenizer in a folder; None if its files need transformers, or do not exist.

    Args:
      folder: holds `tokenizer.json` and `tokenizer_config.json`.
    """
    files = [folder / name for name in ("tokenizer.json", "tokenizer_config.json")]
    if not all(file.is_file() for file in files):
        return None
    state, about = (read_json(file) for file in files)
    if not isinstance(state, dict) or not isinstance(about, dict):
        return None
    about = {name: value for name, value in about.items() if name not in _PLACE}
    limit = about.pop("model_max_length", None)
    model = state.get("model")
    if about != _ABOUT | _TOKENS or not isinstance(limit, int) or not isinstance(model, dict):
        return None
    vocab, settings = model.get("vocab"), {key: model[key] for key in model if key not in ("vocab", "merges")}
    if settings != _MODEL or not isinstance(vocab, dict) or not {START, END} <= vocab.keys():
        return None
    found = {key: value for key, value in state.items() if key not in ("model", "truncation", "padding")}
    return TokenizerFile(state, limit) if found == _around(vocab) else None


def decode(backend: Any, token_ids: list[int]) -> str:
    """Returns the text of token ids without special tokens, as transformers' object decodes it."""
    return backend.decode(token_ids, skip_special_tokens=True).replace(WORD_END, " ").strip()


def _added(token: str, number: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, **flags, "special": True}
