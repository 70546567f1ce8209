"""Hostile pickles in every layout of PyTorch's files: none runs, and the message names what it asked for."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import posix
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gram_jax.clip.formats import torch_globals, unpickle
from gram_jax.clip.formats.torch_file import read_torch
from gram_jax.errors import InputError

MARKER = "executed"
COMMAND = f"touch {MARKER}"


class Reduced:
    """An object whose pickle is a call."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce_ex__(self, protocol):
        return self.parts


def text(value: str) -> bytes:
    """The opcode BINUNICODE."""
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def built_global(module: str, name: str) -> bytes:
    """A STACK_GLOBAL whose names are taken from the memo."""
    return text(name) + b"q\x00" + text(module) + b"h\x00" + b"\x93"


CALL = text(COMMAND) + b"\x85R"
IN_DICT = b"}" + text("weight")
HOSTILE = {
    "os.system": (pickle.dumps(Reduced(os.system, (COMMAND,)), 2), "posix.system"),
    "protocol 0": (f"cos\nsystem\n(S'{COMMAND}'\ntR.".encode(), "os.system"),
    "eval": (pickle.dumps(Reduced(builtins.eval, (f"__import__('os').system('{COMMAND}')",)), 4), "builtins.eval"),
    "exec": (pickle.dumps({"state_dict": [Reduced(builtins.exec, ("1",))]}, 3), "builtins.exec"),
    "posix": (pickle.dumps(Reduced(posix.mkdir, (MARKER,)), 5), "posix.mkdir"),
    "subprocess": (pickle.dumps(({}, [({"a": Reduced(subprocess.Popen, (["touch", MARKER],))},)]), 2), "Popen"),
    "python 2": (b"\x80\x02c__builtin__\neval\n" + CALL + b".", "__builtin__.eval"),
    "import": (b"\x80\x02cimportlib\nimport_module\n" + text("antigravity") + b"\x85R.", "importlib.import_module"),
    "getattr": (pickle.dumps(Reduced(builtins.getattr, (1, "real")), 2), "getattr"),
    "stack global": (b"\x80\x04" + text("os") + text("system") + b"\x93" + CALL + b".", "os.system"),
    "stack global of parts": (b"\x80\x04" + built_global("posix", "system") + CALL + b".", "posix.system"),
    "dotted name": (b"\x80\x04" + text("torch") + text("os.system") + b"\x93" + CALL + b".", "torch.os.system"),
    "persistent id": (b"\x80\x02cos\nsystem\n" + CALL + b"Q.", "os.system"),
    "text in a persistent id": (b"\x80\x02" + text("cos\nsystem\n") + b"Q.", "'cos"),
    "persistent id of a call": (b"\x80\x02(" + text("storage") + b"ccollections\nOrderedDict\nt" + b"Q.", "storage"),
    "module in a persistent id": (b"\x80\x02(" + text("module") + text("a") + b"tQ.", "'module'"),
    "protocol 0 persistent id": (b"\x80\x02Pname\n.", "PERSID"),
    "INST": (b"(ios\nsystem\n.", "os.system"),
    "OBJ": (b"\x80\x02(cos\nsystem\n" + text(COMMAND) + b"o.", "os.system"),
    "OBJ of a known name": (b"\x80\x02(ccollections\nOrderedDict\no.", "OBJ"),
    "NEWOBJ": (b"\x80\x02csubprocess\nPopen\n" + text(COMMAND) + b"\x85\x81.", "subprocess.Popen"),
    "NEWOBJ of a known name": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "collections.OrderedDict"),
    "NEWOBJ_EX": (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "NEWOBJ_EX"),
    "call of a list": (b"\x80\x02]" + CALL + b".", "'list'"),
    "call of text": (b"\x80\x02" + text("os.system") + CALL + b".", "'str'"),
    "call of a result": (b"\x80\x02ccollections\nOrderedDict\n)R" + CALL + b".", "'StateDict'"),
    "call of a storage class": (b"\x80\x02ctorch\nFloatStorage\n" + CALL + b".", "'StorageType'"),
    "arguments that are no tuple": (b"\x80\x02ccollections\nOrderedDict\n]R.", "collections.OrderedDict"),
    "BUILD of a list": (b"\x80\x02]}" + text("__setstate__") + b"cos\nsystem\nsb.", "os.system"),
    "BUILD with plain state": (b"\x80\x02]}" + text("__setstate__") + text("x") + b"sb.", "'list'"),
    "BUILD of a function": (b"\x80\x02ccollections\nOrderedDict\n}b.", "collections.OrderedDict"),
    "BUILD of a dtype": (b"\x80\x02ctorch\nfloat32\n}b.", "DType"),
    "EXT1": (b"\x80\x02\x82\x01)R.", "EXT1 of '1'"),
    "EXT2": (b"\x80\x02\x83\x01\x02)R.", "EXT2 of '513'"),
    "EXT4": (b"\x80\x02\x84\x01\x00\x00\x01)R.", "EXT4 of '16777217'"),
    "frozen set": (b"\x80\x04(\x91.", "FROZENSET"),
    "buffer": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "torch's own functions": (b"\x80\x02ctorch\nload\n" + CALL + b".", "torch.load"),
    "torch's hub": (b"\x80\x02ctorch.hub\nload\n" + CALL + b".", "torch.hub.load"),
    "a class in torch": (b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81.", "torch.nn.modules.linear.Linear"),
    "numpy": (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n" + CALL + b".", "numpy.core.multiarray._reconstruct"),
}  # fmt: skip


def stream(pickled: bytes) -> bytes:
    """The older layout, up to the pickle."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
    return b"".join(pickle.dumps(part, 2) for part in head) + pickled + pickle.dumps([], 2)


def archive(pickled: bytes, *others: str) -> bytes:
    """A zip archive with a pickle in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        for name in others:
            file.writestr(name, b"")
    return buffer.getvalue()


LAYOUTS = {
    "zip": archive,
    "script": lambda pickled: archive(pickled, "archive/constants.pkl"),
    "stream": stream,
    "pickle": bytes,
    "behind tensors": lambda pickled: archive(b"\x80\x02(" + IN_DICT + b"(K\x01ts" + pickled.rstrip(b".") + b"t."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_by_name_and_never_run(name, layout, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickled, named = HOSTILE[name]
    path = tmp_path / "model.bin"
    path.write_bytes(LAYOUTS[layout](pickled))
    loaded = set(sys.modules)
    with pytest.raises(InputError, match=r"model\.bin") as caught:
        read_torch(path)
    assert named in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["model.bin"]
    assert set(sys.modules) - loaded <= {"encodings.cp437"}


def read(pickled: bytes):
    return unpickle.unpickle(io.BytesIO(pickled), torch_globals.find, torch_globals.load_storage)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_those_that_pickle_reads(protocol):
    shared = ["shared"]
    value = {
        "numbers": [0, -1, 255, 256, 65535, -(2**31), 2**31, 2**62, -(2**200), 0.5, -1e308],
        "text": ["", "a", "é" * 300, "\U0001f600", "x" * 70_000],
        "others": (None, True, False, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, [], [[[]]]),
        "twice": (shared, shared),
        5: {"k": {"k": {}}},
    }
    found = read(pickle.dumps(value, protocol))
    assert found == pickle.loads(pickle.dumps(value, protocol))
    assert found["twice"][0] is found["twice"][1]


def test_bytes_and_text_of_python_2():
    assert read(pickle.dumps({"b": b"\x00\xff" * 200}, 4)) == {"b": b"\x00\xff" * 200}
    assert read(b"\x80\x02U\x03abcT\x02\x00\x00\x00de\x86.") == ("abc", "de")


@pytest.mark.parametrize(
    ("pickled", "problem"),
    [
        (b"", "early"),
        (b"\x80\x02", "early"),
        (b"\x80\x02.", "empty stack"),
        (b"\x80\x02(.", "empty stack"),
        (b"\x80\x02t.", "mark"),
        (b"\x80\x02h\x05.", "entry 5"),
        (b"\x80\x02K\x01K\x02a.", "list"),
        (b"\x80\x02}]K\x01s.", "key of type list"),
        (b"\x80\x02}))s.", "key of type tuple"),
        (b"\x80\x02}\x8a\x08" + b"\xff" * 7 + b"\x1fNs.", "key of type int"),
        (b"\x80\x02\xff.", "xff"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.", "collections.OrderedDict with wrong"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f.", "LONG4"),
        (b"\x80\x02cos", "newline"),
        (b"\x80\x02X\xff\xff\xff\xffabc", "expected"),
        (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7fabc", "expected"),
    ],
)
def test_damaged_pickles(pickled, problem):
    with pytest.raises(ValueError, match=problem):
        read(pickled)


def test_the_number_of_steps_is_limited(monkeypatch):
    monkeypatch.setattr(unpickle, "MAX_STEPS", 100)
    with pytest.raises(InputError, match="100"):
        read(b"\x80\x02" + b"]" * 200 + b".")


def test_deep_nesting_needs_no_recursion(tmp_path):
    depth = 30_000
    assert isinstance(read(b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."), list)
    assert isinstance(read(b"\x80\x02)" + b"\x85" * depth + b"."), tuple)
    path = Path(tmp_path) / "model.bin"
    path.write_bytes(archive(b"\x80\x02" + (b"}" + text("model")) * depth + b"K\x01" + b"s" * depth + b"."))
    with pytest.raises(InputError, match="no tensors"):
        read_torch(path)


def test_a_module_inside_itself(tmp_path):
    path = Path(tmp_path) / "model.pt"
    pickled = b"\x80\x02c__torch__\nM\n)\x81q\x00}" + text("self") + b"h\x00sb."
    path.write_bytes(archive(pickled, "archive/constants.pkl"))
    with pytest.raises(InputError, match="cycle"):
        read_torch(path)


def test_modules_that_contain_each_other_many_times(tmp_path):
    """Each of 40 modules has the next one twice, so that there are 2^40 paths."""
    create = b"c__torch__\nM\n)\x81"
    opcodes = create + b"q\x00"
    for index in range(40):
        opcodes += create + b"}" + text("a") + b"h" + bytes([index]) + b"s" + text("b") + b"h" + bytes([index]) + b"sb"
        opcodes += b"q" + bytes([index + 1])
    path = Path(tmp_path) / "model.pt"
    path.write_bytes(archive(b"\x80\x02" + opcodes + b".", "archive/constants.pkl"))
    with pytest.raises(InputError, match="attributes"):
        read_torch(path)
