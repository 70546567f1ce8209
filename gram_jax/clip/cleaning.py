"""What happens to a text before it is cut into tokens, and the readers of tokenizers other than CLIP's."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from gram_jax.clip.spiece import read_spiece
from gram_jax.errors import InputError
from gram_jax.io import read_json

# Printable ASCII without "&": neither ftfy nor html.unescape changes it.
_PLAIN = re.compile(r"[ -%'-~]*")
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def repair(text: str) -> str:
    """Returns a text as OpenAI's tokenizer cuts it: repaired by ftfy, HTML entities resolved twice, in lower case.

    White space becomes one space, and none remains at the ends. The models were trained on texts repaired so: a curly
    apostrophe is a straight one, a ligature its letters, and wrongly decoded UTF-8 is decoded again. The iota below,
    U+0345, counts as white space: OpenAI's pattern, which ignores case, takes it for neither a letter nor a sign.

    Example:
      >>> repair("L&amp;#8217;été  sur l’eau")
      "l'été sur l'eau"

    Reference:
      github.com/openai/CLIP, clip/simple_tokenizer.py, `basic_clean` and `whitespace_clean`.
    """
    if not _PLAIN.fullmatch(text):
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text))).replace("\u0345", " ")
    return " ".join(text.split()).lower()


def read_siglip_tokenizer(folder: Path) -> Any:
    """Returns the tokenizer of SigLIP (unigram) or SigLIP 2 (Gemma's pairs with byte fallback) as transformers' object.

    It is read from `tokenizer.json` or, for SigLIP, from `spiece.model`.

    A text ends with the end token and has no start token. SigLIP removes ASCII punctuation and changes to lower case,
    SigLIP 2 changes to lower case only. Both are added to the normalizer of the file, unless it has them.

    Reference:
      github.com/google-research/big_vision, evaluators/proj/image_text/prompt_engineering.py, `_canonicalize`.
    """
    from tokenizers import Regex, normalizers, processors

    backend = _backend(folder) if (folder / "tokenizer.json").is_file() else read_spiece(folder / "spiece.model")
    model = json.loads(backend.to_str())["model"]
    unigram = model["type"] == "Unigram"
    if not unigram and not model.get("byte_fallback"):
        raise InputError(f"{folder}: the tokenizer is a {model['type']} without byte fallback, not one of SigLIP's")
    own: list[Any] = [normalizers.Lowercase()]
    if unigram:
        own = [
            normalizers.Replace("▁", " "),
            *own,
            normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    file = _normalizers(backend.normalizer)
    if file[: len(own)] != _normalizers(normalizers.Sequence(own)):
        backend.normalizer = normalizers.Sequence([*own, *([backend.normalizer] if file else [])])
    defaults = {"eos_token": "</s>", "pad_token": "</s>"} if unigram else {"eos_token": "<eos>", "pad_token": "<pad>"}
    tokens = _special_tokens(folder, {**defaults, "unk_token": "<unk>"}, backend)
    tokens.pop("bos_token", None)
    end = tokens["eos_token"]
    backend.post_processor = processors.TemplateProcessing(
        f"$A {end}", special_tokens=[(end, backend.token_to_id(end))]
    )
    return _wrap(backend, tokens)


def read_xlm_tokenizer(folder: Path) -> Any:
    """Returns the tokenizer of MetaCLIP 2 (XLM-V, unigram) as transformers' object: `<s> text </s>`."""
    backend = _backend(folder)
    defaults = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return _wrap(backend, _special_tokens(folder, defaults, backend))


def _backend(folder: Path) -> Any:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.no_padding()
    backend.no_truncation()
    return backend


def _normalizers(normalizer: Any) -> list[Any]:
    """Returns the steps of a normalizer as JSON objects."""
    if normalizer is None:
        return []
    state = json.loads(normalizer.__getstate__())
    return state["normalizers"] if state["type"] == "Sequence" else [state]


def _special_tokens(folder: Path, defaults: dict[str, str], backend: Any) -> dict[str, str]:
    """Returns the special tokens by name, from the files of a folder where they name them."""
    tokens = dict(defaults)
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        content = read_json(folder / file) if (folder / file).is_file() else {}
        for name in _SPECIAL if isinstance(content, dict) else ():
            token = content.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                tokens[name] = token
    for name, token in tokens.items():
        if name in defaults and backend.token_to_id(token) is None:
            raise InputError(f"tokenizer.json has no token {token!r}, the {name} of {folder}")
    return tokens


def _wrap(backend: Any, tokens: dict[str, str]) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
