"""The vision transformer CLIP under its two public namings: Hugging Face's, and OpenAI's, which OpenCLIP shares."""

from __future__ import annotations

import math
from typing import NamedTuple

from gram_jax.clip.config import ClipConfig, TextConfig, VisionConfig
from gram_jax.clip.formats.table import Naming, Path, Row, Shapes, WeightsError

# Width of an attention head in vision transformers of OpenAI and OpenCLIP; 64 at every other width they have.
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}
HEAD_WIDTH = 64


class _Leaf(NamedTuple):
    """A leaf under both namings; the layouts and the part are as in `Row`."""

    path: Path
    hf: str
    openai: str
    hf_layout: str = "same"
    openai_layout: str = "same"
    openai_part: int | None = None


def _pair(path: Path, hf: str, openai: str, kernel: str) -> list[_Leaf]:
    """Returns the weight and the bias of a norm ("scale") or of a dense layer ("kernel")."""
    layout = "transposed" if kernel == "kernel" else "same"
    return [
        _Leaf((*path, kernel), f"{hf}.weight", f"{openai}.weight", layout, layout),
        _Leaf((*path, "bias"), f"{hf}.bias", f"{openai}.bias"),
    ]


def _attention(path: Path, hf: str, openai: str) -> list[_Leaf]:
    """Returns queries, keys and values, which OpenAI's naming holds in one tensor."""
    names = list(enumerate({"q_proj": "query", "k_proj": "key", "v_proj": "value"}.items()))
    return [
        *(
            _Leaf((*path, own, "kernel"), f"{hf}.{name}.weight", f"{openai}.in_proj_weight", *2 * ("transposed",), part)
            for part, (name, own) in names
        ),
        *(
            _Leaf((*path, own, "bias"), f"{hf}.{name}.bias", f"{openai}.in_proj_bias", openai_part=part)
            for part, (name, own) in names
        ),
        *_pair((*path, "out"), f"{hf}.out_proj", f"{openai}.out_proj", "kernel"),
    ]


def _layers(tower: str, openai: str) -> list[_Leaf]:
    hf, openai, path = f"{tower}_model.encoder.layers.{{}}", f"{openai}.resblocks.{{}}", (tower, "layers")
    return [
        *_pair((*path, "norm_1"), f"{hf}.layer_norm1", f"{openai}.ln_1", "scale"),
        *_attention((*path, "attention"), f"{hf}.self_attn", f"{openai}.attn"),
        *_pair((*path, "norm_2"), f"{hf}.layer_norm2", f"{openai}.ln_2", "scale"),
        *_pair((*path, "mlp", "up"), f"{hf}.mlp.fc1", f"{openai}.mlp.c_fc", "kernel"),
        *_pair((*path, "mlp", "down"), f"{hf}.mlp.fc2", f"{openai}.mlp.c_proj", "kernel"),
    ]


_VISION, _TEXT = "vision_model.embeddings", "text_model.embeddings"
_TEXT_LEAVES = (
    _Leaf(("logit_scale",), "logit_scale", "logit_scale"),
    _Leaf(("text", "token_embedding"), f"{_TEXT}.token_embedding.weight", "token_embedding.weight"),
    _Leaf(("text", "position_embedding"), f"{_TEXT}.position_embedding.weight", "positional_embedding"),
    *_layers("text", "transformer"),
    *_pair(("text", "final_norm"), "text_model.final_layer_norm", "ln_final", "scale"),
    _Leaf(("text", "projection"), "text_projection.weight", "text_projection", "transposed"),
)
_VISION_LEAVES = (
    _Leaf(("vision", "class_embedding"), f"{_VISION}.class_embedding", "visual.class_embedding"),
    _Leaf(("vision", "patch_embedding"), f"{_VISION}.patch_embedding.weight", "visual.conv1.weight", *2 * ("patches",)),
    _Leaf(("vision", "position_embedding"), f"{_VISION}.position_embedding.weight", "visual.positional_embedding"),
    *_pair(("vision", "pre_norm"), "vision_model.pre_layrnorm", "visual.ln_pre", "scale"),  # the format's misspelling
    *_layers("vision", "visual.transformer"),
    *_pair(("vision", "post_norm"), "vision_model.post_layernorm", "visual.ln_post", "scale"),
    _Leaf(("vision", "projection"), "visual_projection.weight", "visual.proj", "transposed"),
)


def _hf_rows(leaves: tuple[_Leaf, ...]) -> tuple[Row, ...]:
    return tuple(Row(leaf.hf, leaf.path, leaf.hf_layout) for leaf in leaves)


def _openai_rows(leaves: tuple[_Leaf, ...]) -> tuple[Row, ...]:
    return tuple(Row(leaf.openai, leaf.path, leaf.openai_layout, leaf.openai_part) for leaf in leaves)


# The text transformer is the same under other image encoders (ResNet, Perception Encoder).
OPENAI_TEXT = _openai_rows(_TEXT_LEAVES)
OPENAI_CONSTANTS = ("attn_mask", "input_resolution", "context_length", "vocab_size")


def text_sizes(shapes: Shapes, activation: str) -> TextConfig:
    """Returns the text transformer's sizes from the shapes of OpenAI's tensors; heads are 64 wide.

    The end token has the highest id, and the start token the one below, as in OpenAI's vocabulary.
    """
    vocab_size, width = shapes["token_embedding.weight"]
    return TextConfig(
        vocab_size=vocab_size,
        width=width,
        layers=count_layers(shapes, "transformer.resblocks."),
        heads=head_count("text", width, HEAD_WIDTH),
        mlp_width=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        context_length=shapes["positional_embedding"][0],
        activation=activation,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
    )


def _sizes(shapes: Shapes, activation: str) -> ClipConfig:
    width, _, patch, _ = shapes["visual.conv1.weight"]
    side = math.isqrt(shapes["visual.positional_embedding"][0] - 1)
    vision = VisionConfig(
        width=width,
        layers=count_layers(shapes, "visual.transformer.resblocks."),
        heads=head_count("vision", width, HEAD_WIDTHS.get(width, HEAD_WIDTH)),
        mlp_width=shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
        image_size=side * patch,
        patch_size=patch,
        activation=activation,
    )
    return ClipConfig(text_sizes(shapes, activation), vision, embed_dim=shapes["text_projection"][1])


def count_layers(shapes: Shapes, prefix: str) -> int:
    """Returns the number of layers whose tensors' names start with `prefix` and a number."""
    return len({name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix)})


def head_count(tower: str, width: int, head_width: int) -> int:
    """Returns the number of attention heads; raises WeightsError unless heads of this width fill the tower."""
    if width % head_width:
        raise WeightsError(
            f"the {tower} transformer is {width} wide, no multiple of {head_width}, the usual width of a head, and the "
            "tensors do not show the number of heads; put the file into a folder with the model's open_clip_config.json"
        )
    return width // head_width


HUGGINGFACE = Naming(
    "Hugging Face's CLIP",
    f"{_VISION}.class_embedding",
    _hf_rows((*_TEXT_LEAVES, *_VISION_LEAVES)),
    constants=(".position_ids",),  # in old files
)
OPENAI = Naming(
    "OpenAI's and OpenCLIP's vision transformer",
    "visual.class_embedding",
    _openai_rows((*_TEXT_LEAVES, *_VISION_LEAVES)),
    OPENAI_CONSTANTS,
    _sizes,
    optional=frozenset(("vision", "pre_norm", leaf) for leaf in ("scale", "bias")),
)
