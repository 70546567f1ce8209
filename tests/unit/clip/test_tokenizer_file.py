"""Tokenizers read without transformers, compared with transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

import gram_jax
from gram_jax.clip.tokenizer import Tokenizer
from gram_jax.clip.tokenizer_file import TokenizerFile, read_complete

MINI = Path(gram_jax.__file__).parent / "assets/mini"
TEXTS = ["A photo of a  cat's\t\u00e9?!", "x" * 40, "\u65e5\u672c <|endoftext|> b", "12 34", "", "don't STOP\u00a0now"]


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(MINI, tmp_path / "mini", ignore=shutil.ignore_patterns("*.safetensors"))
    return tmp_path / "mini"


def change(file: Path, *keys: str, value: object) -> None:
    content = json.loads(file.read_text())
    *path, last = keys
    part = content
    for key in path:
        part = part[key]
    part[last] = value
    file.write_text(json.dumps(content))


def test_same_tokenizer_as_transformers():
    ours = Tokenizer.from_folder(MINI)
    theirs = Tokenizer(CLIPTokenizer.from_pretrained(MINI, local_files_only=True))
    assert ours.content_hash == theirs.content_hash
    ids = theirs.encode(TEXTS, truncate=True)
    np.testing.assert_array_equal(ours.encode(TEXTS, truncate=True), ids)
    assert [ours.decode(row) for row in ids] == [theirs.decode(row) for row in ids]
    assert type(ours.hf) is CLIPTokenizer
    assert ours.hf(TEXTS)["input_ids"] == theirs.hf(TEXTS)["input_ids"]


def test_saved_again_it_is_still_complete(folder, tmp_path):
    for tokenizer in (Tokenizer.from_folder(folder), Tokenizer(CLIPTokenizer.from_pretrained(folder))):
        tokenizer.save(tmp_path / "again")
        assert isinstance(read_complete(tmp_path / "again"), TokenizerFile)
        assert Tokenizer.from_folder(tmp_path / "again") == tokenizer


@pytest.mark.parametrize(
    ("file", "keys", "value"),
    [
        ("tokenizer.json", ["normalizer"], {"type": "Lowercase"}),
        ("tokenizer.json", ["pre_tokenizer", "pretokenizers", 0, "behavior"], "Isolated"),
        ("tokenizer.json", ["added_tokens", 0, "normalized"], True),
        ("tokenizer.json", ["model", "fuse_unk"], True),
        ("tokenizer.json", ["model"], []),
        ("tokenizer_config.json", ["pad_token"], "!"),
        ("tokenizer_config.json", ["added_tokens_decoder"], {"1": "x"}),
        ("tokenizer_config.json", ["model_max_length"], 1e30),
    ],
)
def test_any_other_file_is_left_to_transformers(folder, file, keys, value):
    assert read_complete(folder) is not None
    change(folder / file, *keys, value=value)
    assert read_complete(folder) is None


def test_missing_files_are_left_to_transformers(folder):
    (folder / "tokenizer_config.json").unlink()
    assert read_complete(folder) is None


def test_loading_the_mini_clip_imports_no_transformers():
    code = "import sys, gram_jax; c = gram_jax.load_clip('mini'); c.tokenizer.encode(['a cat'])\n"
    code += "assert not {'transformers', 'torch', 'orbax', 'pandas', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
