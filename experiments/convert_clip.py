"""Saves a CLIP of any public format as a Hugging Face folder, which transformers reads, too.

    python -m experiments.convert_clip ViT-B-16.pt clips/vit-b-16
    python -m experiments.convert_clip ViT-B-16:laion2b_s34b_b88k clips/laion --dtype=float16
    python -m experiments.convert_clip --source=ViT-B-16-quickgelu:epoch_32.pt --out=clips/mine

The source is everything that `--clip` of the other programs accepts; docs/how-to/checkpoints.md lists the formats. No
PyTorch is needed, and pickled weights are read without executing them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import gram_jax as gram
from gram_jax.errors import InputError

from ._launch import launch, setting


@dataclasses.dataclass(frozen=True)
class Config:
    """The clip and the folder."""

    source: str = setting("", "folder, file, hub name, or OpenCLIP's MODEL:TAG or MODEL:FILE", positional=True)
    out: str = setting("", "the new folder", positional=True)
    dtype: str = setting("float32", "type of the weights in the folder", choices=("float32", "float16", "bfloat16"))

    def __post_init__(self) -> None:
        for name in ("source", "out"):
            if not getattr(self, name):
                raise InputError(f"--{name} is empty; give --source=NAME_OR_PATH and --out=FOLDER")


def run(config: Config, workdir: Any) -> None:
    """Converts the clip and prints what the folder contains."""
    gram.clip.convert(config.source, config.out, dtype=config.dtype)
    clip = gram.load_clip(config.out)
    text, vision = clip.config.text, clip.config.vision
    print(f"{config.source} is saved in {config.out} as {config.dtype}")
    print(f"  images  {vision.image_size} pixels, patch {vision.patch_size}; {vision.layers} layers of {vision.width}")
    print(f"  texts   {text.context_length} of {text.vocab_size} tokens; {text.layers} layers of {text.width}")
    print(f"  activation {vision.activation}, embedding {clip.config.embed_dim} wide")
    print(f"  content hash of the weights: {gram.weights_hash(clip.params)}")
    print(f"to use it: --clip={config.out}")


if __name__ == "__main__":
    launch(run, Config)
