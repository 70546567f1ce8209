"""The tokenizers of SigLIP, SigLIP 2 and MetaCLIP 2 against transformers' classes, on small vocabularies made here."""

from __future__ import annotations

import contextlib
import json
import random

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import Siglip2Tokenizer, XLMRobertaTokenizer

from gram_jax.clip import Tokenizer, class_tokens
from gram_jax.clip.spiece import read_spiece
from gram_jax.errors import InputError

WORDS = """a photo of the small large red dog's cats cat bird sitting on under greek capital letter alpha beta omega
black white chess queen king playing card 12 345 it's St. résumé naïve straße don't we'll THE Photo"""
TEXTS = [
    "A photo of a  small CAT.", "st. john's", "it's_a dog!", "résumé naïve", "", "zebra 日本 🙂", "tab\tand\nline",
    "Red (card) 12-345", "ÀÉÎ straße",
]  # fmt: skip
NAMES = ["cat", "small_dog", "St. Bird", "red king's queen"]


def corpus():
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS.split(), k=rng.randint(1, 8))) for _ in range(400)]


def write(folder, backend, **config):
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """A unigram vocabulary trained by sentencepiece, read by transformers, and the same as a tokenizer.json."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="transformers' SigLIP tokenizer needs it")
    from transformers import SiglipTokenizer

    folder = tmp_path_factory.mktemp("siglip")
    (folder / "corpus.txt").write_text("\n".join(corpus()).lower())
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "spiece"), vocab_size=100, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, minloglevel=2, add_dummy_prefix=False,
    )  # fmt: skip
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    vocab = [(model.id_to_piece(index), model.get_score(index)) for index in range(model.get_piece_size())]
    backend = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=2, byte_fallback=False))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    write(folder, backend, eos_token={"content": "</s>"}, pad_token="</s>", unk_token="<unk>")
    return SiglipTokenizer(str(folder / "spiece.model")), folder


def gemma(folder, **config):
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=[*special, *bytes_], show_progress=False)
    lines = [f" {word}" for text in corpus() for word in text.lower().split()]  # Gemma's tokens begin with the space
    backend.train_from_iterator(lines, trainer)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    write(folder, backend, tokenizer_class="GemmaTokenizer", padding_side="right", **config)


def test_siglip_is_that_of_transformers(siglip):
    reference, folder = siglip
    ours = Tokenizer.from_folder(folder, 24, "siglip")
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id, ours.num_start) == (None, 1, 1, 0)
    expected = reference([*TEXTS, *corpus()[:60]], padding="max_length", max_length=24)["input_ids"]
    np.testing.assert_array_equal(ours.encode([*TEXTS, *corpus()[:60]], length=24), expected)
    long = ["small cat " * 20]
    expected = reference(long, padding="max_length", max_length=24, truncation=True)["input_ids"]
    np.testing.assert_array_equal(ours.encode(long, truncate=True), expected)
    assert ours.encode(["a cat."]).tolist() == ours.encode(["A  (cat)"]).tolist()


def test_siglip_2_is_that_of_transformers(tmp_path):
    gemma(tmp_path, eos_token="<eos>", bos_token="<bos>", pad_token="<pad>", add_bos_token=False, add_eos_token=True)
    reference = Siglip2Tokenizer.from_pretrained(tmp_path, padding_side="right")
    ours = Tokenizer.from_folder(tmp_path, 40, "siglip")
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (None, 1, 0)
    texts = [text for text in [*TEXTS, *corpus()[:60]] if len(ours.pieces([text])[0]) < 40]
    expected = reference(texts, padding="max_length", max_length=40)["input_ids"]
    np.testing.assert_array_equal(ours.encode(texts, length=40), expected)
    assert ours.encode(["a Cat"]).tolist() == ours.encode(["A cat"]).tolist() != ours.encode(["a cat."]).tolist()


def test_a_name_follows_a_space(tmp_path):
    """Gemma's tokens include the space before a word: the tail must be that of the whole text."""
    gemma(tmp_path)
    ours = Tokenizer.from_folder(tmp_path, 40, "siglip")
    classes = class_tokens(ours, NAMES)
    for index, name in enumerate(NAMES):
        whole = ours.encode([f"of {name.replace('_', ' ')}."])[0].tolist()
        start = len(ours.pieces(["of"])[0])
        end = int(classes.tail_eot[index])
        assert classes.tail_ids[index, : end + 1].tolist() == whole[start:]
        assert whole[start + end] == ours.eos_token_id
        assert classes.name_length[index] == len(ours.pieces([f" {name.replace('_', ' ')}"])[0])


def test_siglip_classes_have_no_start(siglip):
    ours = Tokenizer.from_folder(siglip[1], 24, "siglip")
    classes = class_tokens(ours, NAMES)
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]
    expected = siglip[0](texts, padding=True)["input_ids"]
    np.testing.assert_array_equal(classes.token_ids, expected)
    for index, name in enumerate(NAMES):
        tail = siglip[0](name.replace("_", " "))["input_ids"]
        assert classes.tail_ids[index, : len(tail)].tolist() == tail
        assert int(classes.tail_eot[index]) == int(classes.name_length[index]) == len(tail) - 1
    with pytest.raises(ValueError, match=r"class 1, '\?\?\?', has no tokens"):
        class_tokens(ours, ["cat", "???"])


def test_metaclip_2_is_that_of_transformers(tmp_path):
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    words = sorted({word for text in corpus() for word in text.split()})
    vocab += [(f"▁{word}", -5.0 - index / 100) for index, word in enumerate(words)]
    vocab += [(letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyz.'"]
    reference = XLMRobertaTokenizer(vocab=vocab, model_max_length=24)
    reference.save_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path, 24, "metaclip_2")
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (0, 2, 1)
    expected = reference([*TEXTS, *corpus()[:60]], padding="max_length", max_length=24)["input_ids"]
    np.testing.assert_array_equal(ours.encode([*TEXTS, *corpus()[:60]], length=24), expected)


def test_saved_tokenizers_are_equal(tmp_path, siglip):
    gemma(tmp_path)
    for folder in (siglip[1], tmp_path):
        ours = Tokenizer.from_folder(folder, 40, "siglip")
        ours.save(tmp_path / "saved")
        again = Tokenizer.from_folder(tmp_path / "saved", 40, "siglip")
        assert again == ours
        assert again.encode(TEXTS).tolist() == ours.encode(TEXTS).tolist()
        assert ours != Tokenizer.from_folder(folder, 39, "siglip")


def test_a_missing_special_token(tmp_path):
    gemma(tmp_path, pad_token="<nothing>")
    with pytest.raises(ValueError, match=r"'<nothing>', the pad_token of"):
        Tokenizer.from_folder(tmp_path, 40, "siglip")


def test_spiece_model_is_that_of_transformers(siglip, tmp_path):
    """sentencepiece's own file, with its own rules of characters (a compiled NFKC)."""
    reference, folder = siglip
    (tmp_path / "spiece.model").write_bytes((folder / "spiece.model").read_bytes())
    ours = Tokenizer.from_folder(tmp_path, 24, "siglip")
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id, ours.vocab_size) == (None, 1, 1, 100)
    texts = [*TEXTS, *corpus()[:60], "ﬁve ＣＡＴＳ", "cat\u3000dog\u00a0 king", "Ⅷ ½"]
    expected = reference(texts, padding="max_length", max_length=24)["input_ids"]
    np.testing.assert_array_equal(ours.encode(texts, length=24), expected)


def test_damaged_rules_of_characters_are_refused(siglip, tmp_path):
    path = tmp_path / "spiece.model"
    # A last field 3, the normalizer, whose field 2, the compiled rules, is no table.
    path.write_bytes((siglip[1] / "spiece.model").read_bytes() + b"\x1a\x04\x12\x02xx")
    with pytest.raises(InputError, match=r"spiece\.model.*precompiled_charsmap"):
        read_spiece(path)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_damaged_spiece_model_is_refused(siglip, tmp_path_factory, data):
    content = bytearray((siglip[1] / "spiece.model").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.model"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(InputError):
        read_spiece(path)
