"""What the fuzz tests share: damaged bytes, altered JSON, and the rules that every reader keeps.

A reader of files from outside either reads, or raises one of its documented errors with a message that names the file;
it writes nothing; and memory does not follow what a file claims.
"""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

_COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=5, derandomize=True, **_COMMON)
@given(st.text())
def _read_unicode(_: str) -> None:
    """Makes Hypothesis build its table of characters, once in a checkout: a minute while memory is traced."""


_read_unicode()


def few(count: int = 15, **strategies: Any) -> Callable:
    """A test of so many examples, the same every time."""
    return lambda test: settings(max_examples=count, derandomize=True, **_COMMON)(given(**strategies)(test))


def many(test: Callable, count: int = 2000) -> Callable:
    """The same test with thousands of examples, others every time; slow."""
    # Hypothesis keeps settings on the function that `given` made: a second one is made from the same parts.
    inner, strategies = test.hypothesis.inner_test, test.hypothesis._given_kwargs
    return pytest.mark.slow(settings(max_examples=count, **_COMMON)(given(**strategies)(inner)))


@st.composite
def damaged(draw: Callable, whole: bytes) -> bytes:
    """A file after a few accidents: flipped, lost, added and overwritten bytes."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from([1, 1, 4, 8, 64]))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "remove", "number", "zeros"]))
        if kind == "cut":
            del data[place:]
        elif kind == "remove":
            del data[place : place + length]
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=length))
        elif kind == "zeros":
            data[place : place + length] = bytes(length)
        elif kind == "number":
            number = draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1]))
            data[place : place + 8] = number.to_bytes(8, draw(st.sampled_from(["little", "big"])))
        elif place < len(data):
            data[place] ^= draw(st.integers(1, 255))
    return bytes(data)


_ODD = st.one_of(
    st.sampled_from([None, True, False, 0, 1, -1, 2**31, 2**60, 2**64, 10**400]),
    st.sampled_from([0.5, float("nan"), float("inf"), -1e308]),
    st.sampled_from(["", "\ud800", "\0", "../../x", "/etc/passwd", "é" * 300, "x" * 5000, "9" * 5000, "{}", "1e400"]),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=3), st.one_of(st.none(), st.integers(), st.text(max_size=3)), max_size=3),
)


@st.composite
def altered(draw: Callable, document: Any) -> Any:
    """A JSON document of which a few values are others, are missing or are too many."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        holders = [holder for holder in _holders(document) if holder]
        if not holders:
            return draw(_ODD)
        # Deep ones as often as shallow ones, which are few.
        depth = draw(st.integers(0, 3))
        holder = holders[0] if depth == 0 else holders[draw(st.integers(0, len(holders) - 1))]
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = keys[draw(st.integers(0, len(keys) - 1))]
        kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "wrap"]))
        if kind == "replace":
            holder[key] = draw(_ODD)
        elif kind == "remove":
            del holder[key]
        elif kind == "wrap":
            holder[key] = [holder[key]]
        elif isinstance(holder, dict):
            holder[draw(st.text(max_size=4))] = draw(_ODD)
        else:
            holder.insert(key, draw(_ODD))
    return document


def _holders(document: Any) -> Iterator[Any]:
    if isinstance(document, dict | list):
        yield document
        for value in document.values() if isinstance(document, dict) else document:
            yield from _holders(value)


@contextlib.contextmanager
def kept(limit: int = 64 << 20) -> Iterator[Path]:
    """A folder to put files in; what is around it must not change, nor its own files; memory is bounded (bytes)."""
    before_cwd = os.getcwd()
    with tempfile.TemporaryDirectory() as outside, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's and NumPy's, of each odd file
        folder = Path(outside) / "a" / "b"
        folder.mkdir(parents=True)
        (Path(outside) / "precious.txt").write_text("precious")
        os.chdir(folder.parent)
        tracemalloc.start()
        try:
            yield folder
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            os.chdir(before_cwd)
        assert peak < limit, f"{peak} bytes"
        assert sorted(os.listdir(outside)) == ["a", "precious.txt"]
        assert (Path(outside) / "precious.txt").read_text() == "precious"
        assert os.listdir(folder.parent) == ["b"]


def tried(read: Callable[[], Any], *errors: type[Exception], names: str) -> Any:
    """What a reader gives; or None where it raises one of its documented errors, whose message names the file."""
    raised = None
    try:
        return read()
    except errors as error:
        raised = error
    assert names in str(raised), f"{raised!r} does not name {names}"
    assert len(str(raised)) < 20_000
    return None
