"""The frozen backbone: architecture, forward passes, weights in and out, tokenizer, image transform."""

from gram_jax.clip.config import ClipConfig, TextConfig, VisionConfig
from gram_jax.clip.forward import embed_tokens, encode_classes, encode_image, encode_patches, encode_text, logits
from gram_jax.clip.images import ImageError, ImageTransform
from gram_jax.clip.loading import load_clip, save_clip
from gram_jax.clip.model import Clip, init_params
from gram_jax.clip.prompts import MaskedTokens, TextPrompt, VisualPrompt
from gram_jax.clip.tokenizer import Classes, Tokenizer, class_tokens, train_tokenizer
from gram_jax.clip.weights import WeightsError, weights_hash

__all__ = [
    "Classes",
    "Clip",
    "ClipConfig",
    "ImageError",
    "ImageTransform",
    "MaskedTokens",
    "TextConfig",
    "TextPrompt",
    "Tokenizer",
    "VisionConfig",
    "VisualPrompt",
    "WeightsError",
    "class_tokens",
    "embed_tokens",
    "encode_classes",
    "encode_image",
    "encode_patches",
    "encode_text",
    "init_params",
    "load_clip",
    "logits",
    "save_clip",
    "train_tokenizer",
    "weights_hash",
]
