"""Hugging Face folders: round trips, also through transformers, and errors that name the problem."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from gram_jax.clip import ImageTransform, Tokenizer, WeightsError, load_clip, save_clip, weights_hash
from gram_jax.clip.formats import hub
from gram_jax.clip.formats.loading import MINI
from gram_jax.testing import tiny_clip, tiny_config

END = tiny_config().text.eos_token_id
FILES = ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def small():
    return tiny_clip(text_layers=2, vision_layers=2)


@pytest.fixture
def folder(small, tmp_path):
    save_clip(small, tmp_path / "clip")
    return tmp_path / "clip"


def edit(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


def assert_same(actual, expected):
    """Compares every bit and every static part: the structures contain configuration, tokenizer and transform."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_round_trip(small, folder):
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert_same(load_clip(folder), small)
    assert_same(load_clip(f"{folder}/"), small)


def test_a_clip_loaded_again_is_not_traced_again(folder):
    traces = []

    @jax.jit
    def scale(clip):
        traces.append(clip.config)
        return clip.params["logit_scale"] * 2

    assert scale(load_clip(folder)) == scale(load_clip(folder))
    assert len(traces) == 1


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
def test_round_trip_through_transformers(small, tmp_path, dtype):
    pytest.importorskip("torch", reason="transformers' CLIPModel is written in it")
    from transformers import CLIPModel

    save_clip(small, tmp_path / "ours", dtype=dtype)
    model = CLIPModel.from_pretrained(tmp_path / "ours")
    assert str(model.dtype) == f"torch.{dtype or 'float32'}"
    model.save_pretrained(tmp_path / "theirs")
    CLIPTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    CLIPImageProcessorPil.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    ours, theirs = load_file(tmp_path / "ours/model.safetensors"), load_file(tmp_path / "theirs/model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.tobytes() == theirs[name].tobytes()
    loaded = load_clip(tmp_path / "theirs", dtype=dtype or "float32")
    expected = (
        small if dtype is None else small.replace(params=jax.tree.map(lambda leaf: leaf.astype(dtype), small.params))
    )
    assert_same(loaded, expected)
    assert weights_hash(loaded.params) == weights_hash(expected.params)


def test_types(small, folder):
    loaded = load_clip(folder, dtype="bfloat16", compute_dtype="bfloat16")
    assert loaded.config.compute_dtype == "bfloat16"
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.params)} == {"bfloat16"}
    with pytest.raises(ValueError, match="dtype='float8'"):
        load_clip(folder, dtype="float8")


def shard(folder, shards=3):
    tensors = load_file(folder / "model.safetensors")
    names = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
    weight_map = {name: names[index % shards] for index, name in enumerate(sorted(tensors))}
    for file in names:
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def test_shards(small, folder):
    shard(folder)
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "processor_config.json"):
        (folder / name).write_text("{}")
    assert_same(load_clip(folder), small)
    # Saving again removes the files of the older clip.
    save_clip(small, folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_a_shard_with_a_name_that_no_file_can_have_is_missing(folder):
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "é" * 300}}))
    with pytest.raises(FileNotFoundError, match=r" 1 of 1 shards: é{200}$"):
        load_clip(folder)


def test_a_missing_shard_is_named(folder):
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r" 1 of 3 shards: model-00002-of-00003.safetensors"):
        load_clip(folder)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"logit_scale": "../other.safetensors"}, "index.json .*'../other.safetensors'"),
        ([], "index.json .*weight_map"),
    ],
)
def test_a_bad_index(folder, weight_map, message):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=message):
        load_clip(folder)


def test_transform_files_in_transformers_order(small, folder):
    side = small.config.vision.image_size
    nested = ImageTransform(size=side + 4, crop=(side, side))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert load_clip(folder).transform == small.transform
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": nested.to_hf()}))
    assert load_clip(folder).transform == nested
    theirs = CLIPImageProcessorPil.from_pretrained(folder)
    assert ImageTransform.from_hf(theirs.to_dict()) == nested
    for name in ("processor_config.json", "preprocessor_config.json"):
        (folder / name).unlink()
    assert load_clip(folder).transform == ImageTransform(size=side, crop=(side, side))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("config.json", FileNotFoundError, "config.json is missing"),
        ("model.safetensors", FileNotFoundError, "has no model.safetensors"),
        ("tokenizer.json", FileNotFoundError, "tokenizer.json, .* vocab.json and merges.txt"),
    ],
)
def test_missing_files(folder, name, error, message):
    (folder / name).unlink()
    with pytest.raises(error, match=message):
        load_clip(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "config.json is not valid JSON"),
        ("config.json", "[]", "config.json contains a list"),
        ("config.json", '{"model_type": "blip"}', "config.json: model_type='blip'"),
        (
            "preprocessor_config.json",
            '{"size": 8, "crop_size": 8}',
            r"\(8, 8\) pixels.* image_size 12",
        ),
        ("tokenizer.json", '{"version": "1.0"}', "the tokenizer in .*clip cannot be read"),
        ("model.safetensors", "", "model.safetensors is not a complete"),
    ],
)
def test_damaged_files(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_clip(folder)


def test_weights_of_another_size(folder):
    edit(folder / "config.json", projection_dim=15)
    with pytest.raises(WeightsError, match=r"text_projection.weight \[16, 24\] instead of \[15, 24\]"):
        load_clip(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eos_token_id": 5}, rf"id {END}, config.json has eos_token_id 5"),
        ({"vocab_size": END}, rf"{END + 1} tokens, config.json has vocab_size {END}"),
    ],
)
def test_tokenizer_of_another_model(folder, changes, message):
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit(folder / "config.json", text_config={**text, **changes})
    with pytest.raises(ValueError, match=message):
        load_clip(folder)


def test_parts_that_do_not_fit_together(small, tmp_path):
    vocab = json.loads(small.tokenizer.hf.backend_tokenizer.to_str())["model"]["vocab"]
    swapped = {**vocab, "<|startoftext|>": END, "<|endoftext|>": END - 1}
    tokenizer = Tokenizer(CLIPTokenizer(vocab=swapped, merges=[], model_max_length=24))
    legacy = tiny_clip(text_layers=1, vision_layers=1, text_eos_token_id=2).replace(tokenizer=tokenizer)
    with pytest.raises(ValueError, match=rf"eos_token_id 2 .* {END - 1} .* {END}"):
        save_clip(legacy, tmp_path / "new")
    longer = Tokenizer(small.tokenizer.hf, 25)
    with pytest.raises(ValueError, match=r"25 tokens, config.json allows 24"):
        save_clip(small.replace(tokenizer=longer), tmp_path / "new")
    with pytest.raises(ValueError, match="no tokenizer"):
        save_clip(small.replace(tokenizer=None), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_saving_refuses_a_folder_with_other_files(small, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=f"{tmp_path} .*overwrite=True"):
        save_clip(small, tmp_path)
    with pytest.raises(FileExistsError, match=r"notes.txt is a file"):
        save_clip(small, tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    save_clip(small, tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert_same(load_clip(tmp_path), small)


def test_saving_writes_in_its_folder_only(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_clip(small, "a/b")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        f"a/b/{name}" for name in FILES
    ]


def test_the_shipped_clip():
    if not MINI.is_dir():
        with pytest.raises(FileNotFoundError, match=str(MINI)):
            load_clip("mini")
        return
    shipped = load_clip("mini")
    assert shipped.tokenizer.vocab_size <= shipped.config.text.vocab_size
    assert shipped.preprocess([np.zeros((9, 9, 3), np.uint8)]).shape[1] == shipped.config.vision.image_size


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "a/b/c", "../x", "C:\\clips\\x", ""])
def test_no_such_folder(name, monkeypatch):
    monkeypatch.setattr(hub, "fetch", lambda *args: pytest.fail("the hub was used"))
    with pytest.raises((FileNotFoundError, ValueError), match=r"there is no folder|config.json is missing"):
        load_clip(name)
