"""Reads `spiece.model`, sentencepiece's unigram vocabulary, without that library. Some SigLIPs have no other file."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gram_jax.errors import InputError

MAX_BYTES = 64 << 20
_UNIGRAM, _UNKNOWN = 1, 2  # the type of a model, and of a piece
_LENGTHS = {1: 8, 5: 4}  # bytes of a value, by the wire type


def read_spiece(path: Path) -> Any:
    """Returns the tokenizer of a unigram model as an object of the `tokenizers` library, without special tokens.

    Reference:
      github.com/google/sentencepiece, src/sentencepiece_model.proto.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    if (size := path.stat().st_size) > MAX_BYTES:
        raise InputError(f"{path} has {size} bytes, the limit is {MAX_BYTES}; download it again")
    try:
        fields = list(_fields(path.read_bytes()))
        trainer, normalizer = (dict(_fields(_last(fields, number, b""))) for number in (2, 3))
        pieces = [dict(_fields(value)) for number, value in fields if number == 1]
        vocab = [(piece[1].decode(), struct.unpack("<f", piece.get(2, bytes(4)))[0]) for piece in pieces]
        unknown = [index for index, piece in enumerate(pieces) if piece.get(3) == _UNKNOWN]
        rules = normalizer.get(2, b"")  # of characters, compiled; empty if characters remain as they are
        compiled = [normalizers.Precompiled(rules)] if rules else []
    except Exception as error:  # the tokenizers library raises no narrower class
        raise InputError(f"{path} is no complete sentencepiece model ({error}); download it again") from error
    if trainer.get(3, _UNIGRAM) != _UNIGRAM or len(unknown) != 1:
        raise InputError(f"{path}: only unigram models with one unknown piece are supported; use tokenizer.json")
    backend = Tokenizer(models.Unigram(vocab, unk_id=unknown[0], byte_fallback=False))
    backend.normalizer = normalizers.Sequence(
        [
            *compiled,
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Strip(),
        ]
    )
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return backend


def _last(fields: list[tuple[int, Any]], number: int, default: Any) -> Any:
    return next((value for key, value in reversed(fields) if key == number), default)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yields the numbers and values of a protobuf message: integers, or bytes of everything else."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire == 2:
            size, position = _varint(message, position)
        elif wire in _LENGTHS:
            size = _LENGTHS[wire]
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if position + size > len(message):
            raise ValueError(f"it ends within a value, at byte {len(message)}")
        yield number, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """Returns an integer of 7 bits per byte, and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
        if shift > 63:
            raise ValueError(f"a number of more than 64 bits at byte {position}")
