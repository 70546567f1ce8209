from .classes import Classes
from .config import ClipConfig, ResNetConfig, TextConfig, VisionConfig
from .formats.huggingface import save_clip
from .formats.loading import convert, load_clip
from .formats.table import WeightsError
from .formats.weights import weights_hash
from .forward import embed_tokens, encode_classes, encode_image, encode_patches, encode_text, logits, pair_probabilities
from .images import ImageError, ImageTransform
from .model import Clip, init_params
from .prompts import MaskedTokens, TextPrompt, VisualPrompt
from .slots import Slots, bottleneck
from .tokenizer import Tokenizer, class_tokens, train_tokenizer

__all__ = [
    "Classes",
    "Clip",
    "ClipConfig",
    "ImageError",
    "ImageTransform",
    "MaskedTokens",
    "ResNetConfig",
    "Slots",
    "TextConfig",
    "TextPrompt",
    "Tokenizer",
    "VisionConfig",
    "VisualPrompt",
    "WeightsError",
    "bottleneck",
    "class_tokens",
    "convert",
    "embed_tokens",
    "encode_classes",
    "encode_image",
    "encode_patches",
    "encode_text",
    "init_params",
    "load_clip",
    "logits",
    "pair_probabilities",
    "save_clip",
    "train_tokenizer",
    "weights_hash",
]
