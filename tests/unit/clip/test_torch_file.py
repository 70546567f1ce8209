"""PyTorch's checkpoint files: every layout and dtype against PyTorch itself, and every damage is one error."""

from __future__ import annotations

import collections
import importlib.util
import json
import re
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gram_jax.clip.formats import torch_file, torch_globals
from gram_jax.clip.formats.shards import shard_files
from gram_jax.clip.formats.tensors import open_tensors
from gram_jax.clip.formats.torch_file import OPENAI_FILES, read_torch
from gram_jax.errors import InputError

torch = pytest.importorskip("torch", reason="PyTorch writes the files that these tests read")

LAYOUTS = ["zip", "stream"]
DTYPES = ["float32", "float64", "float16", "bfloat16", "complex64", "complex128", "bool"]
DTYPES += ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


def save(value, path: Path, layout: str = "zip", **options) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=layout == "zip", **options)
    return path


def to_numpy(tensor) -> np.ndarray:
    """The values of a tensor by PyTorch, bfloat16 as float32, which holds it exactly."""
    tensor = tensor.detach().resolve_conj()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def check(found, expected) -> None:
    """Compares a file with tensors by name."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        array, reference = found[name], to_numpy(tensor)
        assert str(array.dtype) == str(tensor.dtype).removeprefix("torch.")
        assert array.shape == reference.shape == found.tensors[name].shape
        assert not array.flags.writeable or not array.size
        np.testing.assert_array_equal(array.astype(reference.dtype), reference)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)
        self.linear = torch.nn.Linear(3, 3)

    def forward(self, x):
        return self.linear(self.norm(x))


class Model(torch.nn.Module):
    """A module with what archives contain: nested modules, buffers, views and plain attributes."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.Sequential(Block(), Block())
        self.proj = torch.nn.Parameter(torch.randn(4, 3).t())
        self.register_buffer("input_resolution", torch.tensor(224))
        self.width = 3

    def forward(self, x):
        return self.blocks(x) @ self.proj + torch.ones(1, 4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, layout, tmp_path):
    torch.manual_seed(0)
    values = torch.randint(0, 100, (3, 5)) if dtype.startswith("uint") else torch.randn(3, 5, dtype=torch.float64) * 50
    tensors = {"a": values.to(getattr(torch, dtype)), "scalar": torch.ones((), dtype=getattr(torch, dtype))}
    check(read_torch(save(tensors, tmp_path / "model.bin", layout)), tensors)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_of_storages(layout, tmp_path):
    base = torch.arange(60.0).reshape(3, 4, 5)
    views = {
        "whole": base,
        "transposed": base.permute(2, 0, 1),
        "strided": base[1:, ::2, 1::3],
        "row": base[2, 3],
        "scalar": base[1, 1, 1],
        "expanded": base[0, :1].expand(4, 5),
        "empty": base[:, :0],
        "nothing": torch.zeros(0),
        "half": base.half()[:, 1].t(),
        "tokens": torch.arange(7).expand((1, -1)),
        "odd strides": base.as_strided((1, 5), (1 << 50, 1)),
    }
    path = save(views, tmp_path / "model.bin", layout)
    found = read_torch(path)
    check(found, views)
    whole, strided = found["whole"], found["strided"]
    assert np.shares_memory(whole, strided)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parameters_and_tied_weights(layout, tmp_path):
    parameter = torch.nn.Parameter(torch.randn(3, 2))
    special = torch.nn.Parameter(torch.randn(2))
    special.decay = 0.5
    values = {"a": parameter, "tied": parameter, "frozen": torch.nn.Parameter(torch.ones(2), False), "s": special}
    found = read_torch(save(values, tmp_path / "model.bin", layout))
    check(found, values)
    first, second = found["a"], found["tied"]
    assert np.shares_memory(first, second)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols_of_pickles(protocol, layout, tmp_path):
    state = Model().state_dict()
    path = save(state, tmp_path / "model.bin", layout, pickle_protocol=protocol)
    check(read_torch(path), state)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_training_checkpoints(key, layout, tmp_path):
    model = Model()
    state = model.state_dict()
    optimizer = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    checkpoint = {
        "epoch": 7,
        "name": "run",
        "rate": 0.5,
        "done": True,
        key: collections.OrderedDict(state),
        "optimizer": optimizer,
        "best": None,
        "device": torch.device("cuda", 1),
        "sizes": [torch.Size([1, 2]), torch.float16],
    }
    found = read_torch(save(checkpoint, tmp_path / "model.pt", layout))
    check(found, state)
    assert found.metadata == {"epoch": 7, "name": "run", "rate": 0.5, "done": True, "device": "cuda:1"}
    assert found.left_out == ("optimizer", "best", "sizes")


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("how", ["script", "trace"])
def test_archives_of_modules(how, half, tmp_path):
    torch.manual_seed(1)
    model = Model().eval()
    example = torch.randn(2, 3)
    if half:
        model, example = model.half(), example.half()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, that archives are deprecated
        traced = torch.jit.script(model) if how == "script" else torch.jit.trace(model, example)
        torch.jit.save(traced, tmp_path / "model.pt")
        expected = torch.jit.load(tmp_path / "model.pt").state_dict()
    found = read_torch(tmp_path / "model.pt")
    assert set(found) == set(expected) == set(model.state_dict())
    check(found, {name: expected[name] for name in found})
    assert found.metadata.get("width", 3) == 3
    assert found.left_out == ()


def test_lists_in_archives(tmp_path):
    class Lists(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))
            self.sizes = [1, 2, 3]
            self.rates = [0.5, 0.25]
            self.flags = [True]
            self.names = {"a": 1}

        def forward(self, x):
            return x * self.weight * self.sizes[0] * self.rates[0] * float(self.flags[0]) * self.names["a"]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Lists()), tmp_path / "model.pt")
    found = read_torch(tmp_path / "model.pt")
    check(found, {"weight": torch.ones(2)})
    assert set(found.left_out) == {"sizes", "rates", "flags", "names"}


def write_shards(folder: Path, *shards) -> Path:
    names = [f"pytorch_model-{index + 1:05d}-of-{len(shards):05d}.bin" for index in range(len(shards))]
    for name, tensors in zip(names, shards, strict=True):
        save(tensors, folder / name)
    where = {key: name for name, tensors in zip(names, shards, strict=True) for key in tensors}
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


def test_shards(tmp_path):
    first, second = {"a": torch.randn(2), "b": torch.randn(3)}, {"c": torch.randn(2).half()}
    found = open_tensors(shard_files(write_shards(tmp_path, first, second)))
    assert found.shapes == {"a": (2,), "b": (3,), "c": (2,)}
    assert found.repeated == ()
    with found.reading(found.shapes) as read:
        for name, tensor in (first | second).items():
            np.testing.assert_array_equal(read(name), tensor.numpy())


def test_shards_with_the_same_tensor(tmp_path):
    index = write_shards(tmp_path, {"a": torch.ones(2), "b": torch.ones(2)}, {"a": torch.ones(2)})
    (problem,) = open_tensors(shard_files(index)).repeated
    assert re.search(r"a in both .*00001-of-00002\.bin and .*00002-of-00002\.bin", problem)


def test_prefixes_of_parallel_training(tmp_path):
    path = save({f"module._orig_mod.{name}": torch.ones(2) for name in "ab"}, tmp_path / "model.pt")
    found = open_tensors([path])
    assert found.shapes == {"a": (2,), "b": (2,)}
    with found.reading("a") as read:
        assert read("a").tolist() == [1, 1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: torch.eye(3).to_sparse(), r"_rebuild_sparse_tensor.*to_dense"),
        (lambda: torch.eye(3).to_sparse_csr(), r"_rebuild_sparse.*to_dense"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), r"_rebuild_qtensor.*dequantize"),
        (lambda: torch.ones(2, dtype=torch.complex64).conj(), "resolve_conj"),
        (lambda: torch.ones(3, device="meta"), "_rebuild_meta_tensor_no_storage"),
        (lambda: torch.ones(3).to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
        (lambda: torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (lambda: np.float64(3.0), "scalar"),
    ],
    ids=["sparse", "csr", "quantized", "conjugated", "meta", "float8", "module", "numpy"],
)
def test_what_is_not_read_is_named(make, named, layout, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, of layouts that are in beta, or deprecated
        path = save({"a": torch.ones(2), "b": make()}, tmp_path / "model.bin", layout)
    with pytest.raises(InputError, match=named) as caught:
        read_torch(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "value", [[torch.ones(2)], torch.ones(2), {}, {"a": 1}, {0: torch.ones(2)}, {"": torch.ones(1)}]
)
def test_files_without_named_tensors(value, tmp_path):
    with pytest.raises(InputError, match="save a state dict"):
        read_torch(save(value, tmp_path / "model.bin"))


def test_names_are_of_limited_length(tmp_path):
    with pytest.raises(InputError, match="xxx") as caught:
        read_torch(save({"x" * 100_000: torch.ones(2)}, tmp_path / "model.bin"))
    assert len(str(caught.value)) < 1000


BIG = 1 << 62
REBUILD = torch_globals.find("torch._utils._rebuild_tensor_v2").function
FLOATS = torch_globals.Storage("0", 40, np.dtype("float32"))


@pytest.mark.parametrize(
    "arguments",
    [
        (FLOATS, 0, (11,), (1,)),
        (FLOATS, 1, (10,), (1,)),
        (FLOATS, 9, (2,), (1,)),
        (FLOATS, 0, (2, 3), (5, 3)),
        (FLOATS, -1, (1,), (1,)),
        (FLOATS, 0, (-1,), (1,)),
        (FLOATS, 9, (2,), (-1,)),
        (FLOATS, 0, (BIG,), (0,)),
        (FLOATS, BIG, (0,), (1,)),
        (FLOATS, 0, (2,), (1, 1)),
        (FLOATS, 0, (1,) * 65, (1,) * 65),
        (FLOATS, 0, (True,), (1,)),
        (FLOATS, 0, (1.0,), (1,)),
        (FLOATS, 0, [1], (1,)),
        (FLOATS, None, (1,), (1,)),
        ("0", 0, (1,), (1,)),
        (torch_globals.Storage("0", 40, None), 0, (1,), (1,)),
    ],
)
def test_tensors_outside_their_storages_are_refused(arguments):
    with pytest.raises(InputError):
        REBUILD(*arguments, False, None)
    assert REBUILD(FLOATS, 0, (10,), (1,), False, None).shape == (10,)


def patched(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert data.count(old) >= 1
    path.write_bytes(data.replace(old, new))
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_storages_that_claim_more_than_the_file_has(layout, tmp_path):
    tensors = {"a": torch.arange(77.0)}
    path = patched(save(tensors, tmp_path / "model.bin", layout), b"K\x4d", b"K\x7f")  # 77 becomes 127
    with pytest.raises(InputError, match=r"model\.bin.*storage"):
        read_torch(path)


def test_expanded_tensors_larger_than_the_file_are_refused(tmp_path):
    path = save({"a": torch.ones(1).expand(1 << 40)}, tmp_path / "model.bin")
    with pytest.raises(InputError, match=r"'a'.*1099511627776.*contiguous"):
        read_torch(path)


def test_missing_and_compressed_members(tmp_path):
    path = save({"a": torch.ones(100)}, tmp_path / "model.bin")
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match=r"byteorder.*is compressed"):
        read_torch(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            if name != "model/data/0":
                archive.writestr(name, content)
    with pytest.raises(InputError, match="storage '0' of 'a' is missing"):
        read_torch(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, b"big" if name == "model/byteorder" else content)
    with pytest.raises(InputError, match="byte order is b'big'"):
        read_torch(path)
    with zipfile.ZipFile(path, "w") as archive:  # written by another program, without alignment
        for name, content in contents.items():
            archive.writestr(name, content)
    check(read_torch(path), {"a": torch.ones(100)})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "model.bin"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "DOCTYPE"[:5]),
        (bytes(257) + b"ustar" + bytes(300), "tar archive"),
        (struct.pack("<Q", 2) + b"{}", "model.bin"),
        (b"PK\3\4", "no end"),
        (b"PK\3\4" + b"PK\5\6" + bytes(18), "0 members"),
        (b"\x80\x02}.", "torch.save"),
    ],
)
def test_files_of_other_formats(content, problem, tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(problem)) as caught:
        read_torch(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_incomplete_files(layout, tmp_path):
    whole = save(Model().state_dict(), tmp_path / "whole.bin", layout).read_bytes()
    path = tmp_path / "model.bin"
    for length in range(0, len(whole), 41):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"model\.bin"):
            read_torch(path)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_torch(tmp_path / "none.bin")


def test_tensors_stay_in_the_file(tmp_path):
    path = save({"a": torch.ones(4 << 20), "b": torch.ones(4 << 20)}, tmp_path / "model.bin")
    tracemalloc.start()
    found = read_torch(path)
    arrays = [found["a"], found["b"]]
    assert all(array[-1] == 1 for array in arrays)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_openai_files_have_the_published_digest(tmp_path, monkeypatch):
    path = save({"a": torch.ones(2)}, tmp_path / "RN50.pt")
    with pytest.raises(InputError, match=rf"RN50\.pt.*{OPENAI_FILES['RN50.pt']}.*rename"):
        read_torch(path)
    check(read_torch(path, verify=False), {"a": torch.ones(2)})
    digest = __import__("hashlib").sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(torch_file.OPENAI_FILES, "RN50.pt", digest)
    check(read_torch(path), {"a": torch.ones(2)})


def test_the_digests_are_those_of_the_clip_package():
    spec = importlib.util.find_spec("clip")
    if spec is None:
        pytest.skip("clip-anytorch lists OpenAI's files")
    source = (Path(spec.origin).parent / "clip.py").read_text()
    found = dict(re.findall(r"https://[\w./]+/([0-9a-f]{64})/([\w-]+\.pt)", source))
    assert {name: digest for digest, name in found.items()} == OPENAI_FILES
