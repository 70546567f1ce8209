"""experiments.convert_clip, and programs on its results and on formats that it reads, as processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from safetensors.numpy import save_file

import gram_jax as gram
from gram_jax.clip import save_clip, weights_hash
from gram_jax.testing import tiny_clip
from tests.hub import serve


def program(name, *flags, **variables):
    command = [sys.executable, "-m", f"experiments.{name}", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | variables)


@pytest.fixture
def hugging_face(tmp_path):
    save_clip(tiny_clip(), tmp_path / "clip")
    return tmp_path / "clip"


def test_convert_and_use(hugging_face, tmp_path):
    out, workdir = tmp_path / "out", f"--workdir={tmp_path / 'run'}"
    done = program("convert_clip", hugging_face, out, "--dtype=float16", workdir)
    assert done.returncode == 0, done.stderr
    assert f"{hugging_face} is saved in {out} as float16" in done.stdout
    assert weights_hash(gram.load_clip(out).params) in done.stdout
    done = program("zero_shot", f"--clip={out}", "--dataset=glyphs:chess", "--template={}.", workdir)
    assert done.returncode == 0, done.stderr


def test_a_hub_name_with_weights_in_a_pull_request(hugging_face, tmp_path, monkeypatch):
    files = {path.name: path.read_bytes() for path in hugging_face.iterdir()}
    main = {name: content for name, content in files.items() if name != "model.safetensors"}
    with serve(monkeypatch, tmp_path / "unused") as hub:
        hub.repositories["some/clip"] = {"main": main | {"pytorch_model.bin": b"not read"}, "refs/pr/18": files}
        hub.authors["some/clip", 18] = "SFconvertbot"
        flags = ["--source=some/clip", f"--out={tmp_path / 'out'}", f"--workdir={tmp_path / 'run'}"]
        done = program("convert_clip", *flags, HF_ENDPOINT=hub.url, HF_HUB_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert weights_hash(gram.load_clip(tmp_path / "out").params) == weights_hash(tiny_clip().params)


def test_errors_are_one_line(tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    file = tmp_path / "epoch_1.safetensors"
    save_file({"visual.class_embedding": tiny_clip().params["vision"]["class_embedding"].__array__()}, file)
    cases = {
        f"--source={file}": "ViT-B-16-quickgelu",
        f"--source=ViT-B-16:{file}": "lacks tensors that show the sizes",
        "--source=ViT-B-16:dfn3b": "'dfn2b'",
        "--source=": "--source is empty",
    }
    for source, message in cases.items():
        done = program("convert_clip", source, f"--out={tmp_path / 'out'}", workdir)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()
