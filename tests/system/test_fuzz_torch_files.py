"""PyTorch's checkpoint files after accidents and attacks: they are read, or refused in one line; nothing runs."""

from __future__ import annotations

import functools
import io
import itertools
import os
import pickletools
import sys
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gram_jax.clip.formats.torch_file import read_torch
from gram_jax.errors import InputError
from tests.system.fuzzing import kept, tried

torch = pytest.importorskip("torch", reason="PyTorch writes the files that are damaged")

KINDS = ("zip", "stream", "script")
SLOWEST = 1.0  # seconds of processor time of one file
NUMBERS = (0, 1, 127, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63 - 1, 2**63, 2**64 - 1)
ATTACKS = (
    *(b"cos\nsystem\n", b"cbuiltins\neval\n", b"R", b"\x81", b"b", b"o", b"\x82\x01", b"Q", b"(", b"t", b"h\x00"),
    *(b"c__torch__\nM\n)\x81", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"\x93", b"\x94"),
    *(b"X\x02\x00\x00\x00os", b"]", b"}", b"a", b"s", b"2", b"0", b"."),
    *(b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x8b\xff\xff\xff\x7f"),
)


@functools.cache
def whole(kind: str) -> bytes:
    """A valid file."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).eval()
    buffer = io.BytesIO()
    if kind == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.trace(model, torch.ones(1, 3)), buffer)
    else:
        state = {"state_dict": model.state_dict(), "view": torch.ones(6).half()[::2], "epoch": 3, "rate": 0.5}
        torch.save(state, buffer, _use_new_zipfile_serialization=kind == "zip")
    return buffer.getvalue()


@functools.cache
def parts(kind: str) -> tuple[bytes, bytes, bytes]:
    """The bytes before the pickle of the tensors, the pickle, and the bytes behind it."""
    data = whole(kind)
    start = 0
    if kind == "stream":
        stream = io.BytesIO(data)
        for _ in range(3):
            list(pickletools.genops(stream))
        start = stream.tell()
    else:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            start = data.index(archive.read(name))
    end = start + next(at for opcode, _, at in pickletools.genops(data[start:]) if opcode.name == "STOP") + 1
    return data[:start], data[start:end], data[end:]


@functools.cache
def opcodes(kind: str) -> list[bytes]:
    """The opcodes of the pickle of the tensors."""
    pickled = parts(kind)[1]
    starts = [at for _, _, at in pickletools.genops(pickled)] + [len(pickled)]
    return [pickled[start:end] for start, end in itertools.pairwise(starts)]


def damaged(random: np.random.Generator, data: bytes) -> bytes:
    """Bytes after a few accidents."""
    changed = bytearray(data)
    for _ in range(random.integers(1, 5)):
        place, length = int(random.integers(len(changed) + 1)), int(random.choice([1, 1, 2, 4, 8, 40]))
        match random.integers(6):
            case 0:
                del changed[place:]
            case 1:
                del changed[place : place + length]
            case 2:
                changed[place:place] = random.bytes(length)
            case 3:
                size = int(random.choice([1, 2, 4, 8]))
                number = NUMBERS[random.integers(len(NUMBERS))] % 256**size
                changed[place : place + size] = number.to_bytes(size, "little")
            case _:
                if place < len(changed):
                    changed[place] ^= int(random.integers(1, 256))
    return bytes(changed)


def rearranged(random: np.random.Generator, items: list[bytes]) -> bytes:
    """A pickle whose opcodes are swapped, repeated, lost, or joined by those of an attack."""
    items = list(items)
    for _ in range(random.integers(1, 6)):
        first, second = (int(random.integers(len(items))) for _ in range(2))
        match random.integers(5):
            case 0:
                items[first], items[second] = items[second], items[first]
            case 1:
                items.insert(first, items[second])
            case 2 if len(items) > 2:
                del items[first]
            case 3:
                items[first] = damaged(random, items[first])
            case _:
                items.insert(first, ATTACKS[random.integers(len(ATTACKS))])
    return b"".join(items)


def case(random: np.random.Generator) -> bytes:
    """A file: damaged anywhere, or with a pickle that is damaged or rearranged inside a valid file."""
    kind = KINDS[random.integers(len(KINDS))]
    how = random.integers(3)
    if how == 0:
        return damaged(random, whole(kind))
    before, pickled, behind = parts(kind)
    pickled = damaged(random, pickled) if how == 1 else rearranged(random, opcodes(kind))
    if kind == "stream":
        return before + pickled + behind
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole(kind))) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            if "/code/" not in name:
                new.writestr(name, pickled if name.endswith("/data.pkl") else old.read(name))
    return buffer.getvalue()


def attempt(path: Path) -> bool:
    """Reads a file and all of its tensors; returns whether it was accepted."""
    found = tried(lambda: read_torch(path), InputError, names=path.name)
    if found is None:
        return False
    for array in found.values():
        array.tobytes()
    return True


def run(count: int, seed: int) -> tuple[int, float]:
    """Reads so many cases; returns how many were accepted, and the time of the slowest."""
    for kind in KINDS:  # imports what reading needs
        parts(kind), opcodes(kind)
    accepted, slowest = 0, 0.0
    with kept(limit=64 << 20) as folder:
        path = folder / "model.bin"
        for kind in KINDS:
            path.write_bytes(whole(kind))
            assert attempt(path)
        loaded = set(sys.modules)
        for index in range(count):
            path.write_bytes(data := case(np.random.default_rng((seed, index))))
            began = time.process_time()
            try:
                accepted += attempt(path)
            except BaseException as error:
                raise AssertionError(f"case {index} of seed {seed}, {data!r}") from error
            slowest = max(slowest, time.process_time() - began)
        assert os.listdir(folder) == ["model.bin"]
        assert set(sys.modules) == loaded
    return accepted, slowest


def test_damaged_and_hostile_files():
    accepted, slowest = run(600, seed=0)
    assert 0 < accepted < 600
    assert slowest < SLOWEST


@pytest.mark.slow
def test_many_damaged_and_hostile_files():
    count = 100_000
    accepted, slowest = run(count, seed=1)
    print(f"{accepted} of {count} accepted, slowest {slowest:.3f} s")  # noqa: T201
    assert 0 < accepted < count
    assert slowest < SLOWEST
