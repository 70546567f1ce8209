"""Readers of arrays: safetensors of weights and of what was learned, feature stores, prepared corpora."""

from __future__ import annotations

import functools
import json

import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from gram_jax import artifacts, meta, regulators, tasks, tuners
from gram_jax.array_file import ArrayFileError, read_arrays, write_arrays
from gram_jax.clip.formats.weights import WeightsError, read_weights, write_weights
from gram_jax.data import StoreError, load_corpus, open_bank, open_store
from gram_jax.data.pairs.prepared import read_captions, read_manifest
from gram_jax.testing import tiny_clip
from tests.system.fuzzing import altered, damaged, few, kept, many, tried

CLIP = tiny_clip(text_layers=1, vision_layers=1)
TUNER, REGULATOR = tuners.coop(num_tokens=2), regulators.affine()
PROMPT = TUNER.init(jax.random.key(0), CLIP, None)
META = meta.init_meta(PROMPT, REGULATOR.init(jax.random.key(1), PROMPT), learning_rate=0.1)


@functools.cache
def saved(kind: str) -> bytes:
    """The bytes of a file of this kind."""
    with kept() as folder:
        path = folder / "x"
        if kind == "prompt":
            artifacts.save_prompt(path, PROMPT, TUNER, CLIP)
        elif kind == "meta":
            artifacts.save_meta(path, META, TUNER, REGULATOR, CLIP)
        elif kind == "hierarchy":
            features = np.eye(4, 16, dtype=np.float32)
            config = tasks.ClusteringConfig(domains=1, min_members=2)
            built = tasks.from_groups(["a"] * 4, ["b", "b", "c", "c"], features, features, config)
            tasks.save_hierarchy(path, built)
        else:
            write_weights(CLIP.params, CLIP.config, path)
        return path.read_bytes()


READERS = {
    "prompt": lambda path: artifacts.load_prompt(path, CLIP),
    "meta": lambda path: artifacts.load_meta(path, CLIP),
    "hierarchy": lambda path: tasks.load_hierarchy(path, clip=CLIP),
}
KINDS = st.sampled_from(sorted(READERS))


@few(kind=KINDS, data=st.data())
def test_damaged_files_of_what_was_learned(kind, data):
    with kept() as folder:
        path = folder / "learned.safetensors"
        path.write_bytes(data.draw(st.one_of(damaged(saved(kind)), st.binary(max_size=100))))
        tried(lambda: READERS[kind](path), ArrayFileError, names="learned.safetensors")


test_damaged_files_of_what_was_learned_many = many(test_damaged_files_of_what_was_learned)


@few(50, kind=KINDS, data=st.data())
def test_whole_files_with_odd_contents(kind, data):
    """The digest is right, and the rest is not what gram_jax writes."""
    with kept() as folder:
        path = folder / "learned.safetensors"
        path.write_bytes(saved(kind))
        tree, header = read_arrays(path)
        if data.draw(st.booleans()):
            names = sorted(tree)
            name = names[data.draw(st.integers(0, len(names) - 1))]
            odd = [np.zeros((), np.float32), np.zeros((2, 0), np.int8), {"x": np.zeros(3)}, {}, np.arange(5.0)]
            tree = {**tree, data.draw(st.sampled_from([name, "more"])): data.draw(st.sampled_from(odd))}
            if data.draw(st.booleans()):
                tree.pop(name, None)
        if data.draw(st.booleans()):
            header = data.draw(altered(header))
        try:
            write_arrays(path, tree, header)
        except (ValueError, TypeError):
            return
        tried(lambda: READERS[kind](path), ArrayFileError, names="")


test_whole_files_with_odd_contents_many = many(test_whole_files_with_odd_contents)


def safetensors(header: bytes, claimed: int | None = None, data: bytes = b"") -> bytes:
    return (len(header) if claimed is None else claimed).to_bytes(8, "little") + header + data


@pytest.mark.parametrize("claimed", [2**60, 2**64 - 1, 2**31, 100_000_001])
@pytest.mark.parametrize("read", [READERS["prompt"], lambda path: read_weights([path], CLIP.config)])
def test_a_header_that_claims_a_huge_size_takes_no_memory(claimed, read):
    with kept(4 << 20) as folder:
        path = folder / "x.safetensors"
        path.write_bytes(safetensors(b"{}", claimed))
        with pytest.raises(ValueError, match=r"x\.safetensors"):
            read(path)


HEADER = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"gram_jax": "{}"}}


@few(50, header=altered(HEADER), data=st.binary(max_size=16))
def test_headers_of_safetensors(header, data):
    with kept(4 << 20) as folder:
        path = folder / "x.safetensors"
        path.write_bytes(safetensors(json.dumps(header).encode(), None, data))
        tried(lambda: read_arrays(path), ArrayFileError, names="x.safetensors")
        tried(lambda: read_weights([path], CLIP.config), WeightsError, names="x.safetensors")


test_headers_of_safetensors_many = many(test_headers_of_safetensors)


@few(content=damaged(saved("weights")))
def test_damaged_weights(content):
    with kept() as folder:
        path = folder / "model.safetensors"
        path.write_bytes(content)
        tried(lambda: read_weights([path], CLIP.config), WeightsError, names="model.safetensors")


test_damaged_weights_many = many(test_damaged_weights, 500)


@functools.cache
def whole_store() -> tuple[dict, dict[str, bytes]]:
    corpus = load_corpus(pairs=5)
    with kept() as folder:
        bank = open_bank(CLIP, corpus, folder, dtype="float16")
        for group in ([0, 1, 2], [3, 4]):
            bank.keep(np.array(group), np.ones((len(group), *bank.shape)))
        about = json.loads((folder / "store.json").read_text())
        return about, {path.name: path.read_bytes() for path in folder.iterdir()}


@few(50, data=st.data())
def test_feature_stores(data):
    about, contents = whole_store()
    contents = dict(contents)
    if data.draw(st.booleans()):
        contents["store.json"] = json.dumps(data.draw(altered(about))).encode()
    else:
        name = sorted(contents)[data.draw(st.integers(0, len(contents) - 1))]
        contents[name] = data.draw(st.one_of(damaged(contents[name]), st.binary(max_size=90)))
    with kept(8 << 20) as folder:
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        found = tried(lambda: open_store(folder), StoreError, FileNotFoundError, names=str(folder))
        if found is not None:
            assert found.images[0].dtype == np.float32


test_feature_stores_many = many(test_feature_stores)


SHAPES = [{"shape": (2**60,)}, {"shape": (2**62, 2**62)}, {"descr": "|O"}, {"shape": (-1, 16)}]


@pytest.mark.parametrize("header", SHAPES)
def test_an_array_that_claims_a_huge_shape_or_objects_is_refused(header):
    about, contents = whole_store()
    with kept(4 << 20) as folder:
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        path = min(folder.glob("rows-*.npy"))
        descr = np.lib.format.dtype_to_descr(np.load(path).dtype)
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": (3,)} | header)
        with pytest.raises(StoreError, match=path.name):
            open_store(folder)
    assert about["items"] == 5


@pytest.mark.parametrize("name", ["pickle", "archive"])
def test_a_pickle_or_an_archive_in_place_of_an_array_is_never_opened(name):
    with kept() as folder:
        for file, content in whole_store()[1].items():
            (folder / file).write_bytes(content)
        path = min(folder.glob("rows-*.npy"))
        with open(path, "wb") as file:
            if name == "archive":
                np.savez(file, a=np.zeros(3))
            else:
                np.save(file, np.array([{}], object), allow_pickle=True)
        with pytest.raises(StoreError, match=f"{path.name} cannot be read"):
            open_store(folder)


MANIFEST = {
    "format": 1, "content_hash": "0" * 64, "pairs": 2, "record_bytes": 9, "source": "s", "skipped": {}, "duplicates": 0,
}  # fmt: skip


@few(50, manifest=altered(MANIFEST), captions=damaged(b'"a"\n"b"\n'))
def test_manifests_and_captions(manifest, captions):
    with kept(8 << 20) as folder:
        (folder / "manifest.json").write_text(json.dumps(manifest))
        (folder / "captions.jsonl").write_bytes(captions)
        found = tried(lambda: read_manifest(folder), ValueError, names="manifest.json")
        if found is not None:
            texts = tried(lambda: read_captions(folder, found.pairs), ValueError, names="captions.jsonl")
            assert texts is None or all(isinstance(text, str) for text in texts)


test_manifests_and_captions_many = many(test_manifests_and_captions)
