from . import artifacts, clip, data, evaluation, export, meta, objectives, regulators, reporting, tasks, tuners, tuning
from .artifacts import load_meta, load_prompt, save_meta, save_prompt
from .classifier import PromptClassifier
from .clip import (
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
from .export import load_exported
from .meta import adapt, make_meta_step

__all__ = [
    "Clip",
    "PromptClassifier",
    "TextPrompt",
    "VisualPrompt",
    "adapt",
    "artifacts",
    "clip",
    "data",
    "embed_tokens",
    "encode_classes",
    "encode_image",
    "encode_text",
    "evaluation",
    "export",
    "load_clip",
    "load_exported",
    "load_meta",
    "load_prompt",
    "logits",
    "make_meta_step",
    "meta",
    "objectives",
    "regulators",
    "reporting",
    "save_clip",
    "save_meta",
    "save_prompt",
    "tasks",
    "tuners",
    "tuning",
    "weights_hash",
]
