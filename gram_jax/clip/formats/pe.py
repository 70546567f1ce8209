"""Perception Encoder (PE-Core) under the names of its authors, which are OpenCLIP's and a pool's."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gram_jax.clip.config import ClipConfig, VisionConfig
from gram_jax.clip.formats.table import Naming, Row, Shapes
from gram_jax.clip.formats.vit import OPENAI, OPENAI_CONSTANTS, count_layers, head_count, text_sizes

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
