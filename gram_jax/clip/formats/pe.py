"""Perception Encoder (PE-Core) under the names of its authors, which are OpenCLIP's and a pool's, and under timm's."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gram_jax.clip.config import ClipConfig, VisionConfig
from gram_jax.clip.formats.table import Naming, Row, Shapes
from gram_jax.clip.formats.vit import OPENAI, OPENAI_CONSTANTS, OPENAI_TEXT, count_layers, head_count, text_sizes

# timm's names of the image towers: width, layers, heads, hidden width of the perceptron, and side of a patch.
TIMM_MODELS = {
    "vit_pe_core_tiny_patch16_384": (192, 12, 3, 768, 16),
    "vit_pe_core_small_patch16_384": (384, 12, 6, 1536, 16),
    "vit_pe_core_base_patch16_224": (768, 12, 12, 3072, 16),
    "vit_pe_core_large_patch14_336": (1024, 24, 16, 4096, 14),
    "vit_pe_core_gigantic_patch14_448": (1536, 50, 16, 8960, 14),
}
_NO_CLASS_TOKEN = "vit_pe_core_gigantic_patch14_448"
HEAD_WIDTHS = {1536: 96}  # of the vision transformer; 64 at every other width
POOL_HEADS = 8
_POOL = "visual.attn_pool"


def _pool() -> Iterator[Row]:
    path = ("vision", "pool")
    yield Row(f"{_POOL}.probe", (*path, "probe"), "probe")
    for name, layout, leaf in (("weight", "transposed", "kernel"), ("bias", "same", "bias")):
        for part, own in enumerate(("query", "key", "value")):
            yield Row(f"{_POOL}.attn.in_proj_{name}", (*path, "attention", own, leaf), layout, part)
        yield Row(f"{_POOL}.attn.out_proj.{name}", (*path, "attention", "out", leaf), layout)
        yield Row(f"{_POOL}.mlp.c_fc.{name}", (*path, "mlp", "up", leaf), layout)
        yield Row(f"{_POOL}.mlp.c_proj.{name}", (*path, "mlp", "down", leaf), layout)
        yield Row(f"{_POOL}.layernorm.{name}", (*path, "norm", "scale" if name == "weight" else "bias"))


def _sizes(shapes: Shapes, activation: str) -> ClipConfig:
    width, _, patch, _ = shapes["visual.conv1.weight"]
    class_token = "visual.class_embedding" in shapes
    side = math.isqrt(shapes["visual.positional_embedding"][0] - class_token)
    vision = VisionConfig(
        width=width,
        layers=count_layers(shapes, "visual.transformer.resblocks."),
        heads=head_count("vision", width, HEAD_WIDTHS.get(width, 64)),
        mlp_width=shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
        image_size=side * patch,
        patch_size=patch,
        activation=activation,
        class_token=class_token,
        pooling="attention",
        pool_heads=POOL_HEADS,
        pool_mlp_width=shapes[f"{_POOL}.mlp.c_fc.weight"][0],
        rotary=True,
    )
    return ClipConfig(text_sizes(shapes, activation), vision, embed_dim=shapes["text_projection"][1])


PERCEPTION = Naming(
    "the Perception Encoder",
    f"{_POOL}.probe",
    (*OPENAI.rows, *_pool()),
    OPENAI_CONSTANTS,
    _sizes,
    optional=frozenset({("vision", "class_embedding")}),
)


def timm_config(model: str, image_size: int, activation: str) -> VisionConfig:
    """Returns the image tower of a key of `TIMM_MODELS`, at an image size in pixels."""
    width, layers, heads, mlp_width, patch_size = TIMM_MODELS[model]
    return VisionConfig(
        width=width,
        layers=layers,
        heads=heads,
        mlp_width=mlp_width,
        image_size=image_size,
        patch_size=patch_size,
        activation=activation,
        class_token=model != _NO_CLASS_TOKEN,
        pooling="attention",
        pool_heads=POOL_HEADS,
        pool_mlp_width=4 * width,
        rotary=True,
        projection="dense",
    )


def _pair(name: str, *path: str, layout: str = "transposed") -> Iterator[Row]:
    yield Row(f"{name}.weight", ("vision", *path, "kernel" if layout == "transposed" else "scale"), layout)
    yield Row(f"{name}.bias", ("vision", *path, "bias"))


def _fused(name: str, path: tuple[str, ...], parts: tuple[str, ...]) -> Iterator[Row]:
    for tensor, layout, leaf in (("weight", "transposed", "kernel"), ("bias", "same", "bias")):
        for part, own in enumerate(parts):
            yield Row(f"{name}.{tensor}", ("vision", *path, own, leaf), layout, part, parts=len(parts))


def _timm() -> Iterator[Row]:
    """Yields the tensors of the image tower under timm's names."""
    trunk = "visual.trunk"
    block, pool = f"{trunk}.blocks.{{}}", f"{trunk}.attn_pool"
    yield Row(f"{trunk}.cls_token", ("vision", "class_embedding"), "probe")
    yield Row(f"{trunk}.pos_embed", ("vision", "position_embedding"), "single")
    yield Row(f"{trunk}.patch_embed.proj.weight", ("vision", "patch_embedding"), "patches")
    yield from _pair(f"{trunk}.norm_pre", "pre_norm", layout="same")
    yield from _pair(f"{block}.norm1", "layers", "norm_1", layout="same")
    yield from _fused(f"{block}.attn.qkv", ("layers", "attention"), ("query", "key", "value"))
    yield from _pair(f"{block}.attn.proj", "layers", "attention", "out")
    yield from _pair(f"{block}.norm2", "layers", "norm_2", layout="same")
    yield from _pair(f"{block}.mlp.fc1", "layers", "mlp", "up")
    yield from _pair(f"{block}.mlp.fc2", "layers", "mlp", "down")
    yield from _pair(f"{trunk}.norm", "post_norm", layout="same")
    yield Row(f"{pool}.latent", ("vision", "pool", "probe"), "probe")
    yield from _pair(f"{pool}.q", "pool", "attention", "query")
    yield from _fused(f"{pool}.kv", ("pool", "attention"), ("key", "value"))
    yield from _pair(f"{pool}.proj", "pool", "attention", "out")
    yield from _pair(f"{pool}.norm", "pool", "norm", layout="same")
    yield from _pair(f"{pool}.mlp.fc1", "pool", "mlp", "up")
    yield from _pair(f"{pool}.mlp.fc2", "pool", "mlp", "down")
    yield Row(f"{trunk}.head.weight", ("vision", "projection"), "transposed")
    yield Row(f"{trunk}.head.bias", ("vision", "projection_bias"))


PERCEPTION_TIMM = Naming(
    "timm's Perception Encoder",
    "visual.trunk.attn_pool.latent",
    (*OPENAI_TEXT, *_timm()),
    OPENAI_CONSTANTS,
    optional=frozenset({("vision", "class_embedding")}),
)
