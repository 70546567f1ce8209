"""Prompt tuning and meta-prompt learning of CLIP-like models."""

from gram_jax import clip, data, evaluation
from gram_jax.clip import (
    Clip,
    TextPrompt,
    VisualPrompt,
    embed_tokens,
    encode_classes,
    encode_image,
    encode_text,
    load_clip,
    logits,
    save_clip,
    weights_hash,
)

__all__ = [
    "Clip",
    "TextPrompt",
    "VisualPrompt",
    "clip",
    "data",
    "embed_tokens",
    "encode_classes",
    "encode_image",
    "encode_text",
    "evaluation",
    "load_clip",
    "logits",
    "save_clip",
    "weights_hash",
]
