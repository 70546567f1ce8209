"""SigLIP, and SigLIP 2 of fixed resolution, under Hugging Face's naming."""

from __future__ import annotations

from gram_jax.clip.formats.table import Naming, Path, Row
from gram_jax.clip.formats.vit import HUGGINGFACE

# The leaves of CLIP that SigLIP lacks, or stores in another layout.
_OTHER = {
    ("logit_scale",),
    ("text", "projection"),
    ("vision", "class_embedding"),
    ("vision", "projection"),
    *(("vision", "pre_norm", name) for name in ("scale", "bias")),
}


def _pair(path: Path, name: str, kernel: str) -> list[Row]:
    layout = "transposed" if kernel == "kernel" else "same"
    return [Row(f"{name}.weight", (*path, kernel), layout), Row(f"{name}.bias", (*path, "bias"))]


def _pool(name: str) -> list[Row]:
    """Returns the attention that pools the tokens of an image; PyTorch holds queries, keys and values in one tensor."""
    path = ("vision", "pool")
    parts = list(enumerate(("query", "key", "value")))
    weight, bias = f"{name}.attention.in_proj_weight", f"{name}.attention.in_proj_bias"
    return [
        Row(f"{name}.probe", (*path, "probe"), "probe"),
        *(Row(weight, (*path, "attention", own, "kernel"), "transposed", part) for part, own in parts),
        *(Row(bias, (*path, "attention", own, "bias"), "same", part) for part, own in parts),
        *_pair((*path, "attention", "out"), f"{name}.attention.out_proj", "kernel"),
        *_pair((*path, "norm"), f"{name}.layernorm", "scale"),
        *_pair((*path, "mlp", "up"), f"{name}.mlp.fc1", "kernel"),
        *_pair((*path, "mlp", "down"), f"{name}.mlp.fc2", "kernel"),
    ]


HUGGINGFACE_SIGLIP = Naming(
    "Hugging Face's SigLIP",
    "vision_model.head.probe",
    (
        *(row for row in HUGGINGFACE.rows if row.path not in _OTHER),
        Row("logit_scale", ("logit_scale",), "scalar"),
        Row("logit_bias", ("logit_bias",), "scalar"),
        Row("text_model.head.weight", ("text", "projection"), "transposed"),
        Row("text_model.head.bias", ("text", "projection_bias")),
        Row("vision_model.embeddings.patch_embedding.bias", ("vision", "patch_bias")),
        *_pool("vision_model.head"),
    ),
    HUGGINGFACE.constants,
)
