"""CLIP's tokenizer with OpenAI's 49,408 tokens, id for id as the tokenizers of OpenAI's and open_clip's packages.

The packages are the reference; their tokenizers are loaded from their files, without the rest, which needs torchvision.
"""

from __future__ import annotations

import importlib.util
import random
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import gram_jax
from gram_jax.clip.cleaning import repair
from gram_jax.data.templates import ENSEMBLES, ensemble

for package in ("clip", "open_clip"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the reference is the package {package}", allow_module_level=True)
sys.path.insert(0, str(Path(gram_jax.__file__).parents[1] / "docs"))
tokens = importlib.import_module("tokens")
NAMES = tokens.class_names()
# fmt: off
ODD = [
    "it’s a café", "“Häagen-Dazs”", "&amp;lt;b&gt; &eacute;", "a\r\nb\u2028c\x85d", "ﬁsh ﬂower", "ＦＵＬＬ １２３",
    "ΑΣ ΟΔΟΣ", "İstanbul", "DON'T we'LL", "👍🏽 😀🏳️‍🌈", "x" * 500, "anti" * 60, "a\x00b\x1b[31mred\x1b[0m",
    "schÃ¶n l’Ã©tÃ©", "naïve e\u0301", "a\u200bb\ufeffc", "\x1ca\tb", "<|endoftext|> a", "<|StartOfText|>",
    "½ ٣ ² Ⅷ",
    "\u0345", "a\u0345b .\u0345.", "α\u0345 x\u0345 1\u0345", "Í… Í…a",
    "中文 日本語 한국어", "a\ufffdb", "", " \n ", "!?...", "_",
]
# fmt: on


def reference(package, file):
    spec = importlib.util.spec_from_file_location(f"{package}_tokenizer", tokens.package(package) / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


@pytest.fixture(scope="module")
def openai():
    return reference("clip", "simple_tokenizer.py")


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.openai_tokenizer()


def test_vocabulary(openai, tokenizer):
    assert tokenizer.hf.get_vocab() == openai.encoder
    assert (tokenizer.vocab_size, tokenizer.bos_token_id, tokenizer.eos_token_id) == (49408, 49406, 49407)


@pytest.mark.parametrize("dataset", NAMES)
def test_class_names(openai, tokenizer, dataset):
    names = [name.replace("_", " ") for name in NAMES[dataset]]
    assert tokenizer.pieces(names) == [openai.encode(name) for name in names]
    texts = [f"a photo of a {name}." for name in names]
    assert tokenizer.pieces(texts) == [openai.encode(text) for text in texts]


def test_templates(openai, tokenizer):
    rng = random.Random(0)
    names = [name for each in NAMES.values() for name in rng.sample(each, 3)]
    texts = [template.format(name) for key in ENSEMBLES for template in ensemble(key) for name in names]
    assert tokenizer.pieces(texts) == [openai.encode(text) for text in texts]


def test_open_clip_agrees(tokenizer):
    """Its special tokens have other names, so that texts with ours are left out."""
    pytest.importorskip("torch", reason="open_clip's tokenizer imports it")
    other = reference("open_clip", "tokenizer.py")
    texts = [text for text in ODD if "<|" not in text] + [name for each in NAMES.values() for name in each[::20]]
    assert tokenizer.pieces(texts) == [other.encode(text) for text in texts]


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_odd_texts(openai, tokenizer, text):
    assert tokenizer.pieces([text]) == [openai.encode(text)]


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cn", "Co", "Cs")), max_size=30))
def test_any_text(openai, tokenizer, text):
    """Letters that a library's tables do not have yet are left out, also where the repair of mojibake makes one."""
    assume(not any(unicodedata.category(letter) == "Cn" for letter in repair(text)))
    assert tokenizer.pieces([text]) == [openai.encode(text)]


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_plain_texts_need_no_repair(text):
    import ftfy

    if "&" not in text:
        assert ftfy.fix_text(text) == text
        assert repair(text) == " ".join(text.split()).lower()


def test_the_table_of_tokens():
    """Longest tails that were counted by hand with OpenAI's own tokenizer."""
    lines = tokens.FILE.read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    found = {name: (int(count), int(longest)) for name, count, _, longest, *_ in rows}
    expected = {"imagenet": (1000, 13), "stanford_cars": (196, 18), "sun397": (397, 7), "food101": (101, 8)}
    assert found | expected | {"fgvc_aircraft": (100, 10)} == found
