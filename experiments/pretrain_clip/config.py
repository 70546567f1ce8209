"""Pre-trains the mini CLIP on the glyph benchmark with the contrastive loss.

    python -m experiments.pretrain_clip

The default flags reproduce the weights that ship with the package (`gram_jax.load_clip("mini")`): a ViT with 4 layers
and width 192 over 8-pixel patches, a text transformer with 3 layers and width 128, a byte-pair vocabulary trained on
the captions; 2.7 million parameters. During the first steps the difficulty of the corpus grows, from centered
black-on-white characters with their full names to all corpus faces, colors, noise and the whole caption grammar. At
full difficulty from the first step, the loss does not fall for a long time.

Training takes about an hour on two cores and less than 4 GiB. Averaged over the nineteen datasets, on held-out
renderings, the zero-shot accuracy is 86.9 % with the datasets' templates and 80.9 % with "a photo of a {}."; a linear
probe reaches 95.9 %, and the accuracy on faces that no corpus contains is 86.1 %. One thread draws about 4,000 pairs
per second, which limits the speed on an accelerator.

--clip continues the training of a clip, whose sizes and tokenizer it keeps; --patch_size may differ. This gives a clip
that sees 64 patches in place of 16:

    python -m experiments.pretrain_clip --clip=mini --patch_size=4 --steps=900 --ramp=1 --learning_rate=1e-3 --decay=450

The same command resumes a run. It writes metrics.jsonl during training and, at the end, results.json with these
accuracies, and clip/, a folder that transformers can load, too.
"""

from __future__ import annotations

import dataclasses

from gram_jax.data import glyphs
from gram_jax.errors import InputError

from .._launch import at_least, setting


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a pre-training run."""

    clip: str = setting("", "a clip to start from, such as mini; empty for random weights of the sizes below")
    seed: int = setting(0, "seed of the weights and of the corpus")
    steps: int = setting(5500, "optimizer steps")
    batch_size: int = setting(256, "image-text pairs per step")
    learning_rate: float = setting(1.5e-3, "peak learning rate")
    weight_decay: float = setting(0.1, "decoupled weight decay of matrices")
    warmup: int = setting(100, "steps of linear warm-up")
    decay: int = setting(1000, "last steps, during which the learning rate falls linearly to 0")
    ramp: int = setting(1500, "first steps, during which the difficulty of the corpus grows from 0 to 1")
    page: int = setting(8, "consecutive pairs of one family of characters: harder negatives within a batch")
    vocabulary: int = setting(2000, "size of the byte-pair vocabulary")
    vocabulary_pairs: int = setting(20000, "number of captions that the vocabulary is trained on")
    context_length: int = setting(32, "most tokens in a text")
    embed_dim: int = setting(128, "width of the joint space")
    vision_width: int = setting(192, "width of the image transformer")
    vision_layers: int = setting(4, "layers of the image transformer")
    text_width: int = setting(128, "width of the text transformer")
    text_layers: int = setting(3, "layers of the text transformer")
    patch_size: int = setting(8, "side of a patch of the 32-pixel images, in pixels")
    save_every: int = setting(250, "steps between checkpoints")
    eval_every: int = setting(500, "steps between zero-shot evaluations")
    eval_images: int = setting(2, "validation images per class in these evaluations")
    probe_images: int = setting(32, "training images per class for the linear probe")
    datasets: tuple[str, ...] = setting(glyphs.NAMES, "labeled datasets to evaluate on")
    debug_nans: bool = setting(
        False, "check the loss of every step; repeat a step that is not finite with checks that find the operation"
    )

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_size", "vocabulary_pairs", "save_every")
        at_least(self, 1, "eval_every", "eval_images", "ramp", "page")
        if 32 % self.patch_size:
            raise InputError(f"--patch_size={self.patch_size}: it must divide the 32 pixels of an image")
        for name in self.datasets:
            glyphs.catalog(name)
