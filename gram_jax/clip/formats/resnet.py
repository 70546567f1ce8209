"""CLIP with OpenAI's modified ResNet, under the names of OpenAI and OpenCLIP."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gram_jax.clip.config import ClipConfig, ResNetConfig
from gram_jax.clip.formats.table import Naming, Path, Row, Shapes, WeightsError
from gram_jax.clip.formats.vit import HEAD_WIDTH, OPENAI_CONSTANTS, OPENAI_TEXT, count_layers, head_count, text_sizes

_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "variance"}
_POOL = "visual.attnpool"


def _convolution(convolution: str, norm: str, path: Path, start: int = 0) -> Iterator[Row]:
    yield Row(f"{convolution}.weight", (*path, "kernel"), "convolution", start=start)
    for name, own in _NORM.items():
        yield Row(f"{norm}.{name}", (*path, "norm", own), start=start)


def _stage(number: int) -> Iterator[Row]:
    """Yields the tensors of a stage: its first block, which has a shortcut, and the stack of the others."""
    for part, block, start in (("first", "0", 0), ("rest", "{}", 1)):
        name, path = f"visual.layer{number}.{block}", ("vision", f"stage_{number}", part)
        for index in (1, 2, 3):
            yield from _convolution(f"{name}.conv{index}", f"{name}.bn{index}", (*path, f"conv_{index}"), start)
        if part == "first":
            yield from _convolution(f"{name}.downsample.0", f"{name}.downsample.1", (*path, "shortcut"))


def _pool() -> Iterator[Row]:
    path = ("vision", "pool")
    yield Row(f"{_POOL}.positional_embedding", (*path, "position_embedding"))
    for name, own in {"q_proj": "query", "k_proj": "key", "v_proj": "value", "c_proj": "out"}.items():
        yield Row(f"{_POOL}.{name}.weight", (*path, "attention", own, "kernel"), "transposed")
        yield Row(f"{_POOL}.{name}.bias", (*path, "attention", own, "bias"))


def _sizes(shapes: Shapes, activation: str) -> ClipConfig:
    width = shapes["visual.layer1.0.conv1.weight"][0]
    layers = tuple(count_layers(shapes, f"visual.layer{number}.") for number in range(1, 5))
    side = math.isqrt(shapes[f"{_POOL}.positional_embedding"][0] - 1)
    if 0 in layers:
        raise WeightsError(f"the ResNet has {layers} blocks in its four stages; use a complete file")
    vision = ResNetConfig(
        width=width,
        layers=layers,  # type: ignore[arg-type]  # four numbers
        heads=head_count("vision", 32 * width, HEAD_WIDTH),
        image_size=32 * side,
    )
    return ClipConfig(text_sizes(shapes, activation), vision, embed_dim=shapes["text_projection"][1])


RESNET = Naming(
    "OpenAI's and OpenCLIP's ResNet",
    f"{_POOL}.positional_embedding",
    (
        *OPENAI_TEXT,
        *(
            row
            for n in (1, 2, 3)
            for row in _convolution(f"visual.conv{n}", f"visual.bn{n}", ("vision", "stem", f"conv_{n}"))
        ),
        *(row for number in range(1, 5) for row in _stage(number)),
        *_pool(),
    ),
    (*OPENAI_CONSTANTS, ".num_batches_tracked"),
    _sizes,
)
