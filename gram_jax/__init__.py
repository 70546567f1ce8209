"""Prompt tuning and meta-prompt learning of CLIP-like models."""

from gram_jax import clip, data, evaluation, meta, objectives, regulators, tasks, tuners
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
from gram_jax.meta import adapt, load_meta, make_meta_step, save_meta

__all__ = [
    "Clip",
    "TextPrompt",
    "VisualPrompt",
    "adapt",
    "clip",
    "data",
    "embed_tokens",
    "encode_classes",
    "encode_image",
    "encode_text",
    "evaluation",
    "load_clip",
    "load_meta",
    "logits",
    "make_meta_step",
    "meta",
    "objectives",
    "regulators",
    "save_clip",
    "save_meta",
    "tasks",
    "tuners",
    "weights_hash",
]
