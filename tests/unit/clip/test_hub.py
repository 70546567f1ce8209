"""Names on the Hugging Face hub, against a stand-in for its HTTP API, with the hub's own client."""

from __future__ import annotations

import json

import pytest

from gram_jax.clip import WeightsError, load_clip, save_clip, weights_hash
from gram_jax.testing import tiny_clip
from tests.hub import serve

CLIP, OTHER = tiny_clip(text_layers=1, vision_layers=1), tiny_clip(1, text_layers=1, vision_layers=1)


@pytest.fixture(autouse=True)
def no_progress(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serve(monkeypatch, tmp_path / "cache") as hub:
        yield hub


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    save_clip(CLIP, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    save_clip(OTHER, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without(files, name="model.safetensors"):
    return {key: content for key, content in files.items() if key != name}


def is_clip(loaded, expected=CLIP):
    return weights_hash(loaded.params) == weights_hash(expected.params)


def test_only_files_of_the_format_are_downloaded(hub, files):
    extra = {"flax_model.msgpack": b"", "pytorch_model.bin": b"", "model.py": b"", "open_clip_model.safetensors": b""}
    hub.repositories["some/clip"] = {"main": files | extra}
    for name in ("some/clip", "hf-hub:some/clip", "some/clip@main"):
        loaded = load_clip(name)
        assert is_clip(loaded)
        assert (loaded.config, loaded.tokenizer, loaded.transform) == (CLIP.config, CLIP.tokenizer, CLIP.transform)
    assert sorted(hub.requests) == sorted(f"some/clip/{name}" for name in files)


def test_revisions(hub, files, others):
    hub.repositories["some/clip"] = {"main": files, "refs/pr/3": others}
    assert is_clip(load_clip("some/clip@refs/pr/3"), OTHER)
    assert is_clip(load_clip("some/clip", revision="refs/pr/3"), OTHER)
    assert is_clip(load_clip("some/clip"))
    with pytest.raises(FileNotFoundError, match="'some/clip' at revision 'v2' does not exist"):
        load_clip("some/clip@v2")
    with pytest.raises(ValueError, match="one revision"):
        load_clip("some/clip@v2", revision="v3")


def test_the_hubs_own_pull_request_is_found_and_others_are_not_used(hub, files, others):
    main = without(files) | {"pytorch_model.bin": b"not read"}
    hub.repositories["some/clip"] = {
        "main": main,
        "refs/pr/7": others,
        "refs/pr/18": main | files,
        "refs/pr/19": others,
    }
    hub.authors = {("some/clip", 7): "somebody", ("some/clip", 18): "SFconvertbot", ("some/clip", 19): "someone"}
    assert is_clip(load_clip("some/clip"))
    assert "some/clip/pytorch_model.bin" not in hub.requests


def test_a_branch_of_conversions_is_found(hub, files):
    main = without(files) | {"pytorch_model.bin": b"not read"}
    hub.repositories["some/clip"] = {"main": main, "refs/convert/safetensors": files}
    assert is_clip(load_clip("some/clip"))


def test_shards(hub, files):
    from safetensors.numpy import load, save

    tensors = load(files["model.safetensors"])
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    weight_map = {name: shards["text" in name] for name in tensors}
    parts = {shard: save({name: tensors[name] for name in tensors if weight_map[name] == shard}) for shard in shards}
    index = {"model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode()}
    hub.repositories["some/clip"] = {"main": without(files) | parts | index | {"other-1-of-2.safetensors": b""}}
    assert is_clip(load_clip("some/clip"))
    assert "some/clip/other-1-of-2.safetensors" not in hub.requests


def test_sentence_transformers(hub, files):
    modules = [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
    nested = {f"0_CLIPModel/{name}": content for name, content in files.items()}
    hub.repositories["some/clip"] = {"main": nested | {"modules.json": json.dumps(modules).encode()}}
    assert is_clip(load_clip("some/clip"))


def test_without_a_network_the_cache_serves(hub, files, monkeypatch):
    hub.repositories["some/clip"] = {"main": files}
    hub.repositories["old/clip"] = {"main": without(files) | {"pytorch_model.bin": b""}, "refs/pr/1": files}
    hub.authors["old/clip", 1] = "SFconvertbot"
    load_clip("some/clip"), load_clip("old/clip")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert is_clip(load_clip("some/clip"))
    assert is_clip(load_clip("old/clip"))
    with pytest.raises(FileNotFoundError, match="'other/clip' is not a local folder"):
        load_clip("other/clip")


def cache_as_transformers_leaves_it(cache, files, pulls):
    """Writes the main branch without weights, and pull requests with weights only."""
    folder, commits = cache / "models--owner--clip", {"main": "1" * 40, **pulls}
    for revision, commit in commits.items():
        snapshot = folder / "snapshots" / commit
        snapshot.mkdir(parents=True)
        names = sorted(without(files)) if revision == "main" else ["model.safetensors"]
        for name in names:
            (snapshot / name).write_bytes(files[name])
        (folder / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / revision).write_text(commit)
    return folder


def test_weights_in_a_pull_request_of_the_cache(files, tmp_path, monkeypatch):
    folder = cache_as_transformers_leaves_it(tmp_path, files, {"refs/pr/18": "2" * 40})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("owner/clip", "owner/clip@refs/pr/18", folder):
        assert is_clip(load_clip(name))


def test_a_cache_with_two_pull_requests_asks(files, tmp_path):
    folder = cache_as_transformers_leaves_it(tmp_path, files, {"refs/pr/18": "2" * 40, "refs/pr/7": "3" * 40})
    with pytest.raises(ValueError, match="no weights, but refs/pr/18 and refs/pr/7"):
        load_clip(folder)


def test_errors_name_the_model_and_the_remedy(hub, files):
    hub.repositories["some/gated"] = {"main": files}
    hub.gated.add("some/gated")
    with pytest.raises(FileNotFoundError, match=r"'some/gated' .*accept.*hf auth login"):
        load_clip("some/gated")
    with pytest.raises(FileNotFoundError, match=r"'some/clip' is neither a local folder nor a model on"):
        load_clip("some/clip")
    hub.repositories["some/empty"] = {"main": without(files)}
    with pytest.raises(FileNotFoundError, match=r"has no model.safetensors"):
        load_clip("some/empty")
    hub.repositories["some/damaged"] = {"main": files | {"model.safetensors": b"{"}}
    with pytest.raises(WeightsError, match="is not a complete safetensors file"):
        load_clip("some/damaged")
