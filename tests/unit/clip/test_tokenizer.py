"""The tokenizer against OpenAI's algorithm written out, a training loop by hand, and CoOp's slices."""

from __future__ import annotations

import collections
import copy
import itertools
import json
import pickle
import random
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import regex
from transformers import CLIPTokenizer

from gram_jax.clip import Tokenizer, class_tokens, train_tokenizer

WORDS = """a photo of the small large red dog's cats cat bird sitting on under greek capital letter alpha beta omega
with tonos black white chess queen king playing card 12 345 !? ... résumé naïve straße don't we'll they've I'm"""
PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
ODD = [
    "",
    " ",
    "A  PHOTO\tof\na Cat",
    "St. John's!!",
    "¡ñandú! 日本語 🙂🙂",
    "x" * 30,
    "don't we'll",
    "é e\u0301",
    "12 ½ ٣",
    "\u2028a",
]


@pytest.fixture(scope="module")
def corpus():
    rng = random.Random(0)
    words = WORDS.split()
    return [" ".join(rng.choices(words, k=rng.randint(1, 8))) for _ in range(400)]


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return train_tokenizer(corpus, 600, 40)


def byte_characters():
    """OpenAI's `bytes_to_unicode`: printable bytes map to themselves, the others to characters from 256."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}


def split(text):
    """Yields the words of a text as tuples of byte characters, with the last character marked."""
    text = regex.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).lower()
    characters = byte_characters()
    for word in regex.findall(PATTERN, text):
        pieces = [characters[byte] for byte in word.encode()]
        yield (*pieces[:-1], pieces[-1] + "</w>")


def merge(word, pair):
    merged, index = [], 0
    while index < len(word):
        size = 2 if tuple(word[index : index + 2]) == pair else 1
        merged.append("".join(word[index : index + size]))
        index += size
    return tuple(merged)


def apply_merges(word, ranks):
    while len(word) > 1:
        best = min(itertools.pairwise(word), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        word = merge(word, best)
    return word


def learned(tokenizer):
    model = json.loads(tokenizer.hf.backend_tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def test_encode_is_openais_algorithm(tokenizer, corpus):
    vocab, merges = learned(tokenizer)
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    for text in [*corpus[:100], *ODD]:
        pieces = [vocab[piece] for word in split(text) for piece in apply_merges(word, ranks)]
        expected = [vocab["<|startoftext|>"], *pieces, vocab["<|endoftext|>"]]
        assert tokenizer.encode([text], length=40, truncate=True)[0, : len(expected)].tolist() == expected[:40], text


def test_encode_pads_as_transformers(tokenizer, corpus):
    expected = tokenizer.hf(corpus, padding=True)["input_ids"]
    ids = tokenizer.encode(corpus)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, expected)
    expected = tokenizer.hf(corpus, padding="max_length", max_length=40)["input_ids"]
    np.testing.assert_array_equal(tokenizer.encode(corpus, length=40), expected)


def test_truncation_is_that_of_transformers(tokenizer, corpus):
    expected = tokenizer.hf(corpus, padding=True, truncation=True, max_length=7)["input_ids"]
    np.testing.assert_array_equal(tokenizer.encode(corpus, length=7, truncate=True), expected)
    tokenizer.hf.backend_tokenizer.no_truncation()


def test_training_is_byte_pair_encoding(corpus):
    """Computes one merge at a time from counts over the whole corpus; ties go to the pair with lower ids."""
    counts = collections.Counter(word for text in corpus for word in split(text))
    characters = sorted(byte_characters().values())
    tokens = [*characters, *(character + "</w>" for character in characters)]
    ids = {token: index for index, token in enumerate(tokens)}
    merges = []
    for _ in range(80):
        pairs = collections.Counter()
        for word, count in counts.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], ids[pair[0]], ids[pair[1]]))
        merges.append(best)
        ids.setdefault("".join(best), len(ids))
        counts = collections.Counter({merge(word, best): count for word, count in counts.items()})
    vocab, found = learned(train_tokenizer(corpus, 512 + 80 + 2, 40))
    assert found == merges
    assert vocab == {**ids, "<|startoftext|>": 592, "<|endoftext|>": 593}


def test_training_ignores_order_and_process(corpus, tokenizer, tmp_path):
    shuffled = random.Random(1).sample(corpus, len(corpus))
    assert train_tokenizer(iter(shuffled), 600, 40) == tokenizer
    (tmp_path / "corpus.json").write_text(json.dumps(corpus))
    code = (
        "import json, sys; from gram_jax.clip.tokenizer import train_tokenizer; "
        "print(train_tokenizer(json.load(open(sys.argv[1])), 600, 40).content_hash)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "corpus.json")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == tokenizer.content_hash


def test_every_text_can_be_encoded(tokenizer):
    everything = "".join(chr(code) for code in range(0x21, 0x3000) if unicodedata.category(chr(code))[0] not in "CZM")
    texts = [everything[start : start + 5] for start in range(0, len(everything), 5)]
    for pieces in tokenizer.pieces(texts):
        assert tokenizer.eos_token_id not in pieces
    assert tokenizer.eos_token_id == tokenizer.vocab_size - 1  # both end-of-text rules read the same position


def test_training_refusals():
    with pytest.raises(ValueError, match=r"vocab_size=100: .*514"):
        train_tokenizer(["a"], 100, 16)
    with pytest.raises(ValueError, match="no words"):
        train_tokenizer(["", " "], 600, 16)
    with pytest.raises(ValueError, match=r"a text, .*\\ud800.* at 4"):
        train_tokenizer(["cat \ud800"], 600, 16)


def test_equal_by_content(tokenizer, corpus, tmp_path):
    tokenizer.save(tmp_path)
    loaded = Tokenizer.from_folder(tmp_path)
    assert loaded == tokenizer
    assert hash(loaded) == hash(tokenizer)
    assert loaded.context_length == 40
    np.testing.assert_array_equal(
        CLIPTokenizer.from_pretrained(tmp_path)(corpus, padding=True)["input_ids"], tokenizer.encode(corpus)
    )
    assert pickle.loads(pickle.dumps(tokenizer)) == tokenizer
    assert copy.deepcopy(tokenizer) == tokenizer
    assert Tokenizer.from_folder(tmp_path, 39) != tokenizer
    assert train_tokenizer(corpus, 599, 40) != tokenizer
    assert train_tokenizer([*corpus, "zebra " * 500], 600, 40) != tokenizer
    # Padding and truncation are state that transformers leaves behind; they do not belong to the tokenizer.
    tokenizer.hf(corpus, padding=True, truncation=True, max_length=9)
    assert Tokenizer(tokenizer.hf, 40) == tokenizer
    assert Tokenizer(tokenizer.hf, 40).encode(corpus).shape == tokenizer.encode(corpus).shape


def test_reads_the_old_files(tokenizer, corpus, tmp_path):
    vocab, merges = learned(tokenizer)
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]))
    loaded = Tokenizer.from_folder(tmp_path, 40)
    assert loaded == tokenizer
    np.testing.assert_array_equal(loaded.encode(corpus), tokenizer.encode(corpus))


def test_a_limit_is_required(tokenizer):
    vocab, merges = learned(tokenizer)
    with pytest.raises(ValueError, match="context_length="):
        Tokenizer(CLIPTokenizer(vocab=vocab, merges=merges))


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        ([], {}, r"texts=\[\]"),
        (["a", 3], {}, "text 1 is 3"),
        (["a", "b \ud800"], {}, r"text 1, 'b \\ud800'.* at 2"),
        (["a"], {"length": 41}, "length=41: .* 2 to 40"),
        (["a", "cat " * 50], {}, r"text 1, 'cat cat .*\.\.\.', has 52 tokens.* 40.*truncate=True"),
        (["cat cat cat", "cat cat"], {"length": 3}, "text 0, 'cat cat cat', has 5 .* 3 .and 1 more"),
    ],
)
def test_encode_refusals(tokenizer, texts, settings, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(texts, **settings)


def test_a_single_string_is_one_text(tokenizer):
    np.testing.assert_array_equal(tokenizer.encode("a cat"), tokenizer.encode(["a cat"]))


NAMES = ["cat", "small_dog's", "Résumé bird", "St.", "b 52", "a . . ."]


@pytest.mark.parametrize("suffix", [".", "", " !"])
def test_class_tails_are_coops_slices(tokenizer, suffix):
    """Compares with CoOp, which tokenizes `X X X X name.` and uses the tokens after the start and the four X."""
    classes = class_tokens(tokenizer, NAMES, suffix=suffix)
    names = [name.replace("_", " ") for name in NAMES]
    whole = tokenizer.hf([f"x x x x {name}{suffix}" for name in names])["input_ids"]
    for index, name in enumerate(names):
        tail = whole[index][5:]
        assert classes.tail_ids[index, : len(tail)].tolist() == tail
        assert classes.tail_eot[index] == len(tail) - 1
        assert tail[-1] == tokenizer.eos_token_id
        pieces = tokenizer.hf(name, add_special_tokens=False)["input_ids"]
        assert classes.name_length[index] == min(len(pieces), len(tail) - 1)
    assert classes.tail_ids.shape == (len(NAMES), max(map(len, whole)) - 5)
    arrays = vars(classes) | {"tree": classes.tree.ids, "apart": classes.apart.ids}
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int32)}


def test_class_templates(tokenizer):
    classes = class_tokens(tokenizer, NAMES, "the {} on a card!")
    texts = [f"the {name.replace('_', ' ')} on a card!" for name in NAMES]
    expected = np.array(tokenizer.hf(texts, padding=True)["input_ids"])
    np.testing.assert_array_equal(classes.token_ids, expected)
    np.testing.assert_array_equal(classes.eot, (expected == tokenizer.eos_token_id).argmax(1))


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        ([], {}, r"names=\[\]"),
        ("cat", {}, r"names='cat': .*\['cat'\]"),
        (["cat", None], {}, "class 1 is None"),
        (["cat", "_ "], {}, "class 1 is '_ '"),
        (["cat", "\udfff"], {}, r"class 1, '\\udfff'"),
        (["cat"], {"suffix": "\ud800"}, r"the suffix, '\\ud800'"),
        (["cat", "<|endoftext|>"], {}, "class 1, '<.endoftext.>', has special tokens"),
        (
            ["red_cat", "cat", "Red  CAT"],
            {},
            r"classes 0, 'red_cat', and 2, 'Red  CAT'.*\('red cat'\)",
        ),
        (["cat", "dog " * 40], {}, r"class 1, 'dog .* has \d+ tokens.* 40"),
        (["cat"], {"template": "a photo"}, "template='a photo'"),
        (["cat"], {"template": "{} and {}"}, r"template='\{\} and \{\}'"),
    ],
)
def test_class_refusals(tokenizer, names, settings, message):
    with pytest.raises(ValueError, match=message):
        class_tokens(tokenizer, names, **settings)


def test_duplicates_are_allowed_on_request(tokenizer):
    classes = class_tokens(tokenizer, ["cat", "Cat", "dog", "cat"], allow_duplicates=True)
    np.testing.assert_array_equal(classes.token_ids[[1, 3]], classes.token_ids[[0, 0]])
    np.testing.assert_array_equal(classes.token_ids[2], class_tokens(tokenizer, ["dog"]).token_ids[0])
