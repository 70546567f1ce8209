"""OpenAI's vocabulary: token ids against OpenCLIP's tokenizer, and the places where it is found."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from gram_jax.clip.formats import vocabulary
from tests.openclip import open_clip


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """Removes all places of the vocabulary but the folder of the weights."""
    monkeypatch.setattr(vocabulary, "PACKAGES", ())
    monkeypatch.setattr(vocabulary, "_from_hub", lambda: None)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_openais_vocabulary(tmp_path):
    open_clip()
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = vocabulary.openai_tokenizer(tmp_path, vocabulary.VOCAB_SIZE, 77)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.vocab_size) == (49406, 49407, 49408)
    texts = ["a photo of a cat.", "Über-naïve café №5, it's 3.14!", "日本 emoji 🎉 ok", "x" * 40, "don't_do_that  now"]
    for text in texts:
        assert tokenizer.pieces([text])[0] == SimpleTokenizer().encode(text), text


def test_places_of_the_vocabulary(tmp_path, nowhere, monkeypatch):
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("open_clip, which contains the vocabulary, is not installed")
    source = Path(spec.submodule_search_locations[0]) / vocabulary.FILE
    find = lambda: vocabulary.openai_tokenizer(tmp_path / "clip", 49408, 77)  # noqa: E731
    (tmp_path / "clip").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"put {vocabulary.FILE} .* into {tmp_path / 'clip'}"):
        find()
    cache = tmp_path / "home/.cache/clip"
    cache.mkdir(parents=True)
    shutil.copy(source, cache)
    found = find()
    (tmp_path / "clip" / vocabulary.FILE).write_bytes(source.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=rf"clip/{vocabulary.FILE} is not OpenAI's vocabulary"):
        find()
    shutil.rmtree(cache)
    (tmp_path / "clip" / vocabulary.FILE).unlink()
    found.save(tmp_path / "hub")
    monkeypatch.setattr(vocabulary, "_from_hub", lambda: tmp_path / "hub")
    assert find() == found
    with pytest.raises(FileNotFoundError, match="632 tokens are not OpenAI's"):
        vocabulary.openai_tokenizer(tmp_path, 632, 24)
