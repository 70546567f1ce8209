"""The tokenizer of a clip, and class names tokenized for prompts.

The tokenizer itself is transformers' `CLIPTokenizer`, or the one of SigLIP or MetaCLIP 2 (`cleaning.py`). This module
adds OpenAI's repair of texts, a content hash (so that a tokenizer can be a static part of a `Clip`), a fast batch
encoder, and the two forms of class names that prompt tuning needs.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gram_jax.clip.classes import Classes, NameTokens, pack_classes
from gram_jax.clip.cleaning import read_siglip_tokenizer, read_xlm_tokenizer, repair
from gram_jax.clip.tokenizer_file import END, START, WORD_END, TokenizerFile, decode, make_file, read_complete
from gram_jax.errors import InputError, require_int

MIN_VOCAB_SIZE = 2 * 256 + 2  # every byte, inside and at the end of a word, and the two special tokens


class Tokenizer:
    """The tokenizer of a clip with a length limit, compared and hashed by content.

    Two tokenizers are equal if vocabulary, merges, normalization, special tokens and context length are equal; the
    place from which they were loaded does not matter. `bos_token_id` is None if texts have no start token (SigLIP).

    Args:
      hf: a transformers tokenizer, or a `TokenizerFile`; a `CLIPTokenizer`, and a file of one, receives texts repaired
        as OpenAI's tokenizer repairs them (`cleaning.repair`), which transformers leaves out.
      context_length: the largest number of tokens in a text, start and end included; default: the tokenizer's
        `model_max_length`.

    Example:
      >>> tokenizer = train_tokenizer(["a cat", "a dog"] * 4, vocab_size=600, context_length=16)
      >>> tokenizer.encode(["a cat", "A cat, a dog"]).shape
      (2, 7)
      >>> tokenizer.decode(tokenizer.encode(["A  Cat"])[0])
      'a cat'
    """

    def __init__(self, hf: Any, context_length: int | None = None):
        limit = hf.model_max_length if context_length is None else context_length
        if not 3 <= limit <= 1 << 20:  # transformers writes 1e30 for "no limit"
            raise InputError(f"context_length={limit}: pass the model's, such as context_length=77")
        from tokenizers import Tokenizer as Backend

        # A copy: a tokenizer.json may contain truncation and padding, and transformers changes both in use.
        read = isinstance(hf, TokenizerFile)
        state = dict(hf.state if read else json.loads(hf.backend_tokenizer.to_str()))
        state["truncation"] = state["padding"] = None
        self._hf = hf
        self.context_length = int(limit)
        self._backend = Backend.from_str(json.dumps(state))
        self._repairs = read or type(hf).__name__.startswith("CLIPTokenizer")
        ids = hf.ids if read else {name: getattr(hf, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        for name, value in ids.items():
            if value is None and (self._repairs or name != "bos"):
                raise InputError(f"the tokenizer has no {name}_token; CLIP needs {START!r} and {END!r}")
        self.bos_token_id, self.eos_token_id, self.pad_token_id = ids["bos"], ids["eos"], ids["pad"]
        parts = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor")
        content = {part: state[part] for part in parts}
        content |= {key: state["model"].get(key) for key in ("vocab", "merges")}
        content |= ids | {"context_length": self.context_length, "repairs": self._repairs}
        self.content_hash = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_folder(cls, folder: str | Path, context_length: int | None = None, model_type: str = "clip") -> Tokenizer:
        """Reads `tokenizer.json` or, for CLIP, `vocab.json` and `merges.txt`; never uses the network.

        Args:
          folder, context_length: the files, and the limit as above.
          model_type: "clip", "siglip" (also SigLIP 2) or "metaclip_2", as in `config.json`.
        """
        if model_type == "clip" and (complete := read_complete(Path(folder))) is not None:
            return cls(complete, context_length)
        from transformers import CLIPTokenizer

        if model_type == "siglip":
            hf = read_siglip_tokenizer(Path(folder))
        elif model_type == "metaclip_2":
            hf = read_xlm_tokenizer(Path(folder))
        else:
            hf = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        return cls(hf, context_length)

    @property
    def hf(self) -> Any:
        """The tokenizer as transformers' object."""
        if isinstance(self._hf, TokenizerFile):
            self._hf = self._hf.to_transformers()
        return self._hf

    def save(self, folder: str | Path) -> None:
        """Writes the files that transformers and `from_folder` read."""
        self.hf.save_pretrained(str(folder))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, including special ones: the rows that the token embedding needs."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def num_start(self) -> int:
        """Number of start tokens of a text: 1, or 0 if `bos_token_id` is None."""
        return int(self.bos_token_id is not None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.content_hash == other.content_hash

    def __hash__(self) -> int:
        return hash(self.content_hash)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, context_length={self.context_length})"

    def normalize(self, text: str) -> str:
        """Returns a text as the tokenizer sees it: repaired, composed Unicode, lower case, single spaces."""
        return self._backend.normalizer.normalize_str(*self._repaired([text])).strip()

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each text without start and end."""
        distinct = list(dict.fromkeys(texts))
        found = self._backend.encode_batch_fast(self._repaired(distinct), add_special_tokens=False)
        ids_of = {text: encoding.ids for text, encoding in zip(distinct, found, strict=True)}
        return [ids_of[text] for text in texts]

    def _repaired(self, texts: Sequence[str]) -> list[str]:
        return [repair(text) for text in texts] if self._repairs else list(texts)

    def decode(self, token_ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of a row of ids, without special tokens."""
        ids = np.asarray(token_ids).tolist()
        if isinstance(self._hf, TokenizerFile):
            return decode(self._backend, ids)
        return self._hf.decode(ids, skip_special_tokens=True)

    def encode(self, texts: Sequence[str], *, length: int | None = None, truncate: bool = False) -> np.ndarray:
        """Returns token ids of texts, `[SOS] ... [EOS]`, padded at the end, int32 `[N, T]`.

        SigLIP has no `[SOS]`.

        Padding after `[EOS]` does not change a feature, so by default the batch is cut to its longest text.

        Args:
          texts: N strings (a single string counts as one text).
          length: pad to this many tokens instead of to the longest text.
          truncate: cut texts that are too long, before `[EOS]`, instead of raising an error.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise InputError("texts=[]: there is nothing to encode")
        for index, text in enumerate(texts):
            _check_unicode(text, f"text {index}")
        limit = self.context_length if length is None else length
        require_int("length", limit, least=2, most=self.context_length)
        rows = [encoding.ids for encoding in self._backend.encode_batch_fast(self._repaired(texts))]
        if not truncate:
            _check_lengths(texts, rows, limit)
        rows = [row if len(row) <= limit else [*row[: limit - 1], self.eos_token_id] for row in rows]
        return _padded(rows, self.pad_token_id, length)


def _padded(rows: Sequence[Sequence[int]], fill: int, length: int | None = None) -> np.ndarray:
    """Returns rows of ids as an int32 array, filled up to a length or to the longest row."""
    lengths = np.array([len(row) for row in rows])
    ids = np.full((len(rows), int(lengths.max()) if length is None else length), fill, np.int32)
    ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.fromiter(itertools.chain.from_iterable(rows), np.int32)
    return ids


def _check_lengths(texts: Sequence[str], rows: Sequence[Sequence[int]], limit: int) -> None:
    bad = [index for index, row in enumerate(rows) if len(row) > limit]
    if bad:
        text = texts[bad[0]]
        shown = text if len(text) <= 60 else text[:57] + "..."
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise InputError(
            f"text {bad[0]}, {shown!r}, has {len(rows[bad[0]])} tokens, the limit is {limit}{more}; shorten it or "
            "pass truncate=True"
        )


def class_tokens(
    tokenizer: Tokenizer,
    names: Sequence[str],
    template: str = "a photo of a {}.",
    suffix: str = ".",
    *,
    allow_duplicates: bool = False,
) -> Classes:
    """Returns class names as tokens, NumPy arrays that are cut to the longest class; see also `Clip.class_tokens`.

    As in CoOp, underscores become spaces, and the tail after a learned context is `name + suffix`, tokenized as one
    text that follows a space (a name that ends in a full stop may share a token with the suffix). A tokenizer that
    removes punctuation (SigLIP) removes the suffix, too.

    Args:
      tokenizer, names: the clip's tokenizer, and C class names.
      template: a text with one `{}` for the name.
      suffix: the end of a prompt, by default CoOp's full stop; may be empty.
      allow_duplicates: accept names with equal tokens (some published class lists have a few).

    Example:
      >>> tokenizer = train_tokenizer(["a photo of a cat.", "a dog"] * 4, vocab_size=600, context_length=32)
      >>> classes = class_tokens(tokenizer, ["cat", "Dog", "cat_dog"])
      >>> classes.name_length.tolist()
      [1, 1, 2]

    Reference:
      Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022 (arXiv 2109.01134), section 3.2.
    """
    return pack_classes(*name_tokens(tokenizer, names, template, suffix, allow_duplicates=allow_duplicates))


def name_tokens(
    tokenizer: Tokenizer, names: Sequence[str], template: str, suffix: str, *, allow_duplicates: bool = False
) -> NameTokens:
    """Returns the tokens of class names without the rows in which `class_tokens` packs them."""
    if template.count("{}") != 1:
        raise InputError(f"template={template!r}: it must contain {{}} once, for the class name")
    _check_unicode(template, "the template")
    _check_unicode(suffix, "the suffix")
    cleaned = _clean_names(names)
    # The space in front matters to SigLIP 2, whose tokens include it; the other tokenizers remove it.
    name_pieces = tokenizer.pieces([f" {name}" for name in cleaned])
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    seen: dict[tuple[int, ...], int] = {}
    for index, pieces in enumerate(name_pieces):
        if not pieces or special.intersection(pieces):
            raise InputError(f"class {index}, {names[index]!r}, has {'special' if pieces else 'no'} tokens; rename it")
        first = seen.setdefault(tuple(pieces), index)
        if first != index and not allow_duplicates:
            raise InputError(
                f"classes {first}, {names[first]!r}, and {index}, {names[index]!r}, have the same tokens "
                f"({tokenizer.normalize(cleaned[index])!r}); rename one of them, or make one class of them"
            )
    # The tail, too, is encoded with [SOS], if there is one, so that [SOS] and the tail fit the context length.
    token_ids, eot = _encode_classes(tokenizer, names, [template.replace("{}", name) for name in cleaned])
    with_start, tail_end = _encode_classes(tokenizer, names, [f" {name}{suffix}" for name in cleaned])
    start = tokenizer.num_start
    tail_eot = tail_end - start
    name_length = np.minimum([len(pieces) for pieces in name_pieces], tail_eot)
    return NameTokens(token_ids, eot, with_start[:, start:], name_length, tail_eot)


def _clean_names(names: Sequence[str]) -> list[str]:
    if isinstance(names, str):
        raise InputError(f"names={names!r}: pass a list, [{names!r}]")
    if len(names) == 0:
        raise InputError("names=[]: a classifier needs at least one class")
    cleaned = []
    for index, name in enumerate(names):
        _check_unicode(name, f"class {index}")
        cleaned.append(" ".join(name.replace("_", " ").split()))
        if not cleaned[-1]:
            raise InputError(f"class {index} is {name!r}; a class name must not be empty")
    return cleaned


def _check_unicode(text: Any, name: str) -> None:
    """Raises InputError unless a text is a string without half a surrogate pair, which UTF-8 does not allow."""
    if not isinstance(text, str):
        raise InputError(f"{name} is {text!r}; it must be a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name}, {text[:60]!a}, contains half a surrogate pair at {error.start}; remove it, or read the text with "
            "errors='replace'"
        ) from None


def _encode_classes(tokenizer: Tokenizer, names: Sequence[str], texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids `[SOS] text [EOS]` and the position of `[EOS]`; errors name the class of a text that is too long."""
    start = [tokenizer.bos_token_id] * tokenizer.num_start
    rows = [[*start, *pieces, tokenizer.eos_token_id] for pieces in tokenizer.pieces(texts)]
    lengths = np.array([len(row) for row in rows])
    bad = np.flatnonzero(lengths > tokenizer.context_length)
    if bad.size:
        index, text = bad[0], texts[bad[0]].strip()
        raise InputError(
            f"class {index}, {names[index]!r}, is too long: {text!r} has {lengths[index]} tokens, the limit is "
            f"{tokenizer.context_length}; shorten the name or the template"
        )
    return _padded(rows, tokenizer.pad_token_id), lengths - 1


def train_tokenizer(texts: Iterable[str], vocab_size: int, context_length: int) -> Tokenizer:
    """Returns CLIP's tokenizer, a lower-cased byte-level byte-pair encoding, trained on texts.

    The vocabulary has OpenAI's layout: 256 bytes, 256 bytes at the end of a word, the merges in order, start, end.
    Hence there are no unknown tokens, and the end token has the highest id. Equal texts give equal tokenizers, in every
    run and on every machine.

    Args:
      texts: the training texts; read once.
      vocab_size: the largest number of tokens, at least 514; smaller if no more pairs occur twice.
      context_length: the largest number of tokens in a text, start and end included.

    Reference:
      Sennrich et al., Neural Machine Translation of Rare Words with Subword Units, ACL 2016; byte level and layout as
      in Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, trainers

    require_int("vocab_size", vocab_size, least=MIN_VOCAB_SIZE)
    pipeline = Backend.from_str(json.dumps(make_file({START: 0, END: 1}, [], context_length).state))
    words: collections.Counter[str] = collections.Counter()  # a token never crosses a space
    for text in texts:
        _check_unicode(text, "a text")
        words.update(pipeline.normalizer.normalize_str(text).split(" "))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # The trainer numbers the word-final bytes in the order of a randomly seeded hash map, and the numbers decide ties
    # between merges. One private-use character per word-final byte makes the order that of the sorted alphabet.
    final = {byte: chr(0xE000 + index) for index, byte in enumerate(alphabet)}

    def marked_words() -> Iterator[str]:
        for word, count in words.items():
            parts = pipeline.pre_tokenizer.pre_tokenize_str(word)
            line = " ".join(part[:-1] + final[part[-1]] for part, _ in parts)
            yield from itertools.repeat(line, count)

    if not any(marked_words()):
        raise InputError("the texts contain no words to train a tokenizer on")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    start = [*alphabet, *final.values()]
    size = vocab_size - 2
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=2, show_progress=False, initial_alphabet=start)
    backend.train_from_iterator(marked_words(), trainer)
    marks = str.maketrans({mark: byte + WORD_END for byte, mark in final.items()})
    trained = backend.get_vocab()
    tokens = [token.translate(marks) for token in sorted(trained, key=trained.__getitem__)]
    vocab = {token: index for index, token in enumerate([*tokens, START, END])}
    merges = [[part.translate(marks) for part in pair] for pair in json.loads(backend.to_str())["model"]["merges"]]
    return Tokenizer(make_file(vocab, merges, context_length))
