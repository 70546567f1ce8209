"""Words to token ids: CLIP's byte-pair tokenizer, and class names tokenized for prompts.

The tokenizer itself is transformers' `CLIPTokenizer`; this module gives it a hash (so that it can be a static part of a
`Clip`), a fast batch encoder, and the two views of a list of class names that prompt tuning needs.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from gram_jax.errors import InputError

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"  # CLIP marks the last piece of a word with this suffix
MIN_VOCAB_SIZE = 2 * 256 + 2  # every byte, inside and at the end of a word, and the two special tokens


@struct.dataclass
class Classes:
    """Class names as token ids, in the two forms that a text prompt needs.

    Only arrays, so that a step compiled for one list of names serves every list of the same shape, and so that classes
    can be mapped over with `vmap`. Everything behind an end-of-text token is padding and cannot matter.

    Attributes:
      token_ids: int32 [C, T], the filled template, `[SOS] a photo of a NAME . [EOS]`, cut to the longest.
      eot: int32 [C], where the end-of-text token of `token_ids` stands: the position whose feature is read.
      tail_ids: int32 [C, S], what follows a context that stands before the name: `NAME . [EOS]`, cut to the longest.
      name_length: int32 [C], how many tokens of the tail belong to the name.
      tail_eot: int32 [C], where the end-of-text token of `tail_ids` stands.
    """

    token_ids: jax.Array
    eot: jax.Array
    tail_ids: jax.Array
    name_length: jax.Array
    tail_eot: jax.Array


class Tokenizer:
    """A CLIP tokenizer with a length limit, compared and hashed by content.

    Two tokenizers are equal when they turn every text into the same ids: same vocabulary, merges, normalization,
    special tokens and context length, wherever they were loaded from.

    Args:
      hf: a transformers `CLIPTokenizer`.
      context_length: most tokens of a text, start and end included; default: the tokenizer's `model_max_length`.

    Raises:
      InputError: if there is no usable limit, or a special token is missing from the vocabulary.

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
            raise InputError(f"context length {limit} is no usable limit; pass context_length=77 or what the model has")
        # An own copy: a tokenizer.json may carry truncation and padding, and transformers changes both in use.
        state = json.loads(hf.backend_tokenizer.to_str())
        state["truncation"] = state["padding"] = None
        self.hf = hf
        self.context_length = int(limit)
        self._backend = type(hf.backend_tokenizer).from_str(json.dumps(state))
        ids = {name: getattr(hf, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        for name, value in ids.items():
            if value is None:
                raise InputError(f"the tokenizer has no {name}_token; a CLIP tokenizer needs {START!r} and {END!r}")
        self.bos_token_id, self.eos_token_id, self.pad_token_id = ids["bos"], ids["eos"], ids["pad"]
        parts = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor")
        content = {part: state[part] for part in parts} | {key: state["model"][key] for key in ("vocab", "merges")}
        content |= ids | {"context_length": self.context_length}
        self.content_hash = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_folder(cls, folder: str | Path, context_length: int | None = None) -> Tokenizer:
        """Reads `tokenizer.json`, or `vocab.json` and `merges.txt`, as transformers does; never the network."""
        from transformers import CLIPTokenizer

        return cls(CLIPTokenizer.from_pretrained(str(folder), local_files_only=True), context_length)

    def save(self, folder: str | Path) -> None:
        """Writes the files that `CLIPTokenizer.from_pretrained(folder)` reads."""
        self.hf.save_pretrained(str(folder))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included: the rows that the token embedding needs."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.content_hash == other.content_hash

    def __hash__(self) -> int:
        return hash(self.content_hash)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, context_length={self.context_length})"

    def normalize(self, text: str) -> str:
        """What the tokenizer reads of a text: composed Unicode, lower case, single spaces."""
        return self._backend.normalizer.normalize_str(text).strip()

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text without start and end."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, token_ids: Sequence[int] | np.ndarray) -> str:
        """The text of a row of ids, special tokens left out."""
        return self.hf.decode(np.asarray(token_ids).tolist(), skip_special_tokens=True)

    def encode(self, texts: Sequence[str], *, length: int | None = None, truncate: bool = False) -> np.ndarray:
        """Token ids of texts, `[SOS] ... [EOS]`, padded behind.

        The text tower is causal and reads the end-of-text position, so a row may be cut right behind its `[EOS]`
        without changing its feature; by default the batch is cut to its longest text.

        Args:
          texts: N strings (a single string counts as one text).
          length: pad to this many tokens instead of the longest text's.
          truncate: cut texts that are too long, keeping their `[EOS]`, instead of refusing them.

        Returns:
          int32 array [N, T].

        Raises:
          InputError: no texts; an entry that is not a string, or holds half a surrogate pair; a text longer than the
              limit, unless `truncate`.

        Example:
          >>> tokenizer = train_tokenizer(["a cat"] * 9, vocab_size=520, context_length=77)
          >>> tokenizer.encode(["a cat"], length=77).shape
          (1, 77)
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise InputError("no texts to encode: the list is empty")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"text {index} is {text!r}, a {type(text).__name__}; texts must be strings")
            _check_unicode(text, f"text {index}")
        limit = self.context_length if length is None else length
        if not 2 <= limit <= self.context_length:
            raise InputError(f"length={length} must lie between 2 and the context length {self.context_length}")
        rows = [encoding.ids for encoding in self._backend.encode_batch_fast(texts)]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        if lengths.max() > limit:
            if not truncate:
                raise InputError(self._too_long(texts, lengths, limit))
            rows = [row if len(row) <= limit else [*row[: limit - 1], self.eos_token_id] for row in rows]
            lengths = np.minimum(lengths, limit)
        return self._pad(rows, lengths, int(lengths.max()) if length is None else length)

    def _too_long(self, texts: Sequence[str], lengths: np.ndarray, limit: int) -> str:
        bad = np.flatnonzero(lengths > limit)
        text = texts[bad[0]]
        start = text if len(text) <= 60 else text[:57] + "..."
        more = f" ({len(bad)} texts are too long)" if len(bad) > 1 else ""
        return (
            f"text {bad[0]}, {start!r}, has {lengths[bad[0]]} tokens with start and end, the limit is {limit}{more}; "
            "shorten it, or pass truncate=True to cut it"
        )

    def _pad(self, rows: list[list[int]], lengths: np.ndarray, width: int) -> np.ndarray:
        ids = np.full((len(rows), width), self.pad_token_id, np.int32)
        flat = np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(lengths.sum()))
        ids[np.arange(width) < lengths[:, None]] = flat
        return ids


def class_tokens(
    tokenizer: Tokenizer,
    names: Sequence[str],
    template: str = "a photo of a {}.",
    suffix: str = ".",
    *,
    allow_duplicates: bool = False,
) -> Classes:
    """Tokenizes class names for zero-shot use and for prompt tuning.

    As in CoOp, underscores become spaces, and the tail that follows a learned context is `name + suffix`, tokenized as
    one text (a name that ends in a full stop and its suffix may share a token).

    Args:
      tokenizer: the clip's tokenizer.
      names: C class names.
      template: a text with one `{}` for the name.
      suffix: what ends a prompt; CoOp's full stop by default, may be empty.
      allow_duplicates: accept names that are the same to the tokenizer (some published class lists have a few).

    Returns:
      `Classes`, each array cut to its longest class.

    Raises:
      InputError: an empty list; a name that is no string, empty, holds a special token or half a surrogate pair, or is
          too long; two names that the tokenizer cannot tell apart; a template without exactly one `{}`.

    Example:
      >>> tokenizer = train_tokenizer(["a photo of a cat.", "a dog"] * 4, vocab_size=600, context_length=32)
      >>> classes = class_tokens(tokenizer, ["cat", "Dog", "cat_dog"])
      >>> classes.name_length.tolist()
      [1, 1, 2]

    Reference:
      Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022 (arXiv 2109.01134), section 3.2.
    """
    if template.count("{}") != 1:
        raise InputError(f"template {template!r} must hold '{{}}' exactly once, where the class name goes")
    _check_unicode(template, "the template")
    _check_unicode(suffix, "the suffix")
    cleaned = _clean_names(names)
    name_pieces = tokenizer.pieces(cleaned)
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    seen: dict[tuple[int, ...], int] = {}
    for index, pieces in enumerate(name_pieces):
        if not pieces or special.intersection(pieces):
            problem = "holds a special token" if pieces else "has no tokens"
            raise InputError(f"class {index}, {names[index]!r}, {problem}; rename it")
        first = seen.setdefault(tuple(pieces), index)
        if first != index and not allow_duplicates:
            raise InputError(
                f"classes {first}, {names[first]!r}, and {index}, {names[index]!r}, are the same to the tokenizer "
                f"({tokenizer.normalize(cleaned[index])!r}); rename one, or pass allow_duplicates=True"
            )
    # One token of room is kept for [SOS] in the tail too: a context of no tokens must still fit.
    token_ids, eot = _encode_classes(tokenizer, names, [template.replace("{}", name) for name in cleaned])
    with_start, tail_end = _encode_classes(tokenizer, names, [name + suffix for name in cleaned])
    tail_eot = tail_end - 1
    name_length = np.minimum([len(pieces) for pieces in name_pieces], tail_eot)
    arrays = (token_ids, eot, with_start[:, 1:], name_length, tail_eot)
    return Classes(*(jnp.asarray(array, jnp.int32) for array in arrays))


def _clean_names(names: Sequence[str]) -> list[str]:
    if isinstance(names, str):
        raise InputError(f"names is the single string {names!r}; pass a list: [{names!r}]")
    if len(names) == 0:
        raise InputError("the list of class names is empty; a classifier needs at least one class")
    cleaned = []
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise InputError(f"class {index} is {name!r}, a {type(name).__name__}; class names must be strings")
        _check_unicode(name, f"class {index}")
        cleaned.append(" ".join(name.replace("_", " ").split()))
        if not cleaned[-1]:
            raise InputError(f"class {index} has the empty name {name!r}; every class needs a name")
    return cleaned


def _check_unicode(text: str, which: str) -> None:
    """Raises InputError for half a surrogate pair, which Python's strings may hold and no file in UTF-8 does."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{which}, {text[:60]!a}, holds half of a surrogate pair at {error.start}, which is no character; "
            "remove it, or read the text with errors='replace'"
        ) from None


def _encode_classes(tokenizer: Tokenizer, names: Sequence[str], texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids `[SOS] text [EOS]` and the position of `[EOS]`; a text that is too long is reported by its class name."""
    limit = tokenizer.context_length - 2
    lengths = np.array([len(pieces) for pieces in tokenizer.pieces(texts)])
    bad = np.flatnonzero(lengths > limit)
    if bad.size:
        raise InputError(
            f"class {bad[0]}, {names[bad[0]]!r}, is too long: {texts[bad[0]]!r} has {lengths[bad[0]] + 2} tokens with "
            f"start and end, the context holds {tokenizer.context_length}; shorten the name or the template"
        )
    return tokenizer.encode(texts), lengths + 1


def train_tokenizer(texts: Iterable[str], vocab_size: int, context_length: int) -> Tokenizer:
    """Trains CLIP's tokenizer, lower-cased byte-level byte-pair encoding, on texts.

    The vocabulary is laid out as OpenAI's: 256 bytes, 256 bytes that end a word, the merges in order, start, end.
    So every text can be encoded without an unknown token, and the end-of-text token has the highest id.

    Args:
      texts: what to learn from; read once.
      vocab_size: most tokens, at least 514; fewer when the texts have no more pairs that occur twice.
      context_length: most tokens of a text, start and end included.

    Returns:
      A `Tokenizer`, the same for the same texts on every run and machine.

    Raises:
      InputError: if `vocab_size` is below 514, there are no words, or a text holds half a surrogate pair.

    Example:
      >>> tokenizer = train_tokenizer(["greek small letter alpha"] * 3, vocab_size=600, context_length=16)
      >>> tokenizer.encode(["GREEK small letter alpha"]).shape  # [SOS], four whole words, [EOS]
      (1, 6)

    Reference:
      Sennrich et al., Neural Machine Translation of Rare Words with Subword Units, ACL 2016; byte level and layout as
      in Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    if vocab_size < MIN_VOCAB_SIZE:
        raise InputError(f"vocab_size={vocab_size} is too small; the bytes and special tokens take {MIN_VOCAB_SIZE}")
    pipeline = CLIPTokenizer().backend_tokenizer
    texts_of = collections.Counter(texts)
    for text in texts_of:
        _check_unicode(text, "a text")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # The trainer numbers the word-final bytes in the order of a randomly seeded hash map, and ties between merges fall
    # by number. One private character for each word-final byte puts them in the sorted alphabet instead.
    final = {byte: chr(0xE000 + index) for index, byte in enumerate(alphabet)}

    def marked_words():
        for text, count in texts_of.items():
            words = pipeline.pre_tokenizer.pre_tokenize_str(pipeline.normalizer.normalize_str(text))
            line = " ".join(word[:-1] + final[word[-1]] for word, _ in words)
            yield from itertools.repeat(line, count)

    if not any(marked_words()):
        raise InputError("the texts hold no words to train a tokenizer on")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=[*alphabet, *final.values()],
    )
    backend.train_from_iterator(marked_words(), trainer)
    marks = str.maketrans({mark: byte + WORD_END for byte, mark in final.items()})
    trained = backend.get_vocab()
    tokens = [token.translate(marks) for token in sorted(trained, key=trained.__getitem__)]
    vocab = {token: index for index, token in enumerate([*tokens, START, END])}
    merges = [tuple(part.translate(marks) for part in pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    return Tokenizer(CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=context_length), context_length)
