"""What a format is: how it is recognized, and how a checkpoint on disk becomes a clip."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gram_jax.clip.config import ClipConfig, ResNetConfig
from gram_jax.clip.images import ImageTransform
from gram_jax.clip.model import Clip
from gram_jax.clip.tokenizer import Tokenizer
from gram_jax.errors import InputError


class Sizes(NamedTuple):
    """Sizes of a model: the image's and a patch's side (pixels), layers and width of both towers, and the embedding."""

    image_size: int
    patch_size: int | None  # None in a ResNet
    layers: int | tuple[int, ...]
    width: int
    text_width: int
    text_layers: int
    embed_dim: int


class Facts(NamedTuple):
    """What a published tag decides and the tensors do not show.

    Attributes:
      name: the tag, for messages.
      activation: "quick_gelu" or "gelu".
      transform: builds the image transform for an image size.
      sizes: the sizes of the tag's model, or None.
    """

    name: str
    activation: str
    transform: Callable[[int], ImageTransform]
    sizes: Sizes | None = None


class Source(NamedTuple):
    """A checkpoint on disk.

    Attributes:
      folder: contains the configuration, the tokenizer and the image transform.
      files: the weights: one file, or the shards of one model.
      facts: those of the tag by which the checkpoint was named, or None.
    """

    folder: Path
    files: tuple[Path, ...]
    facts: Facts | None = None


class Request(NamedTuple):
    """The arguments of `load_clip` that a reader needs."""

    dtype: str = "float32"
    compute_dtype: str = "float32"
    activation: str | None = None
    transform: ImageTransform | None = None

    def configured(self, config: ClipConfig, stated: Path, facts: Facts | None) -> ClipConfig:
        """Returns the configuration for this run.

        If a tag contradicts the activation that the file `stated` has, the argument decides.

        Raises InputError if there is no argument then, if the argument contradicts both, or if the sizes do not fit.
        """
        towers = {"text": config.text, "vision": config.vision}
        own = {name: tower for name, tower in towers.items() if not isinstance(tower, ResNetConfig)}
        found = {tower.activation for tower in own.values()}
        tag = None if facts is None else facts.activation
        if any(found != {claim} for claim in (tag, self.activation) if claim is not None):
            if facts is None or self.activation not in (*found, tag):
                says = f"{stated} states the activation {' and '.join(sorted(found))}"
                says += "" if facts is None else f", the tag {facts.name} says {tag}"
                says += "" if self.activation is None else f", the argument activation is {self.activation}"
                remedy = (
                    "leave it out" if facts is None else "load it without the tag, or pass activation= to load_clip"
                )
                raise InputError(f"{says}; {remedy}")
            decided = {name: dataclasses.replace(tower, activation=self.activation) for name, tower in own.items()}  # type: ignore[arg-type]  # not None here
            config = dataclasses.replace(config, **decided)  # type: ignore[arg-type]
        if facts is not None and facts.sizes is not None:
            _check_sizes(config, facts.sizes, f"{stated} does not fit {facts.name}")
        return dataclasses.replace(config, compute_dtype=self.compute_dtype)

    def transformed(self, config: ClipConfig, found: ImageTransform, facts: Facts | None) -> ImageTransform:
        """Returns the image transform: the argument's, the tag's, or the one found in the folder."""
        return self.transform or (facts.transform(config.vision.image_size) if facts else found)


class Format(NamedTuple):
    """A format of folders.

    Attributes:
      name: what messages call it.
      config: the configuration file, which every folder in this format has.
      weights: names of the weights, the preferred ones first; those that end in ".index.json" list shards.
      others: names of the other files that belong to a clip in this format.
      is_config: whether a JSON object is a configuration in this format (other formats may use the same file name).
      read: reads a clip.
    """

    name: str
    config: str
    weights: tuple[str, ...]
    others: tuple[str, ...]
    is_config: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Source, Request], Clip]

    def weights_among(self, names: Collection[str]) -> str | None:
        """Returns the preferred name of weights among the names of files, or None."""
        return next((name for name in self.weights if name in names), None)


def _check_sizes(config: ClipConfig, sizes: Sizes, subject: str) -> None:
    found = {
        **{name: getattr(config.vision, name, None) for name in ("image_size", "patch_size", "layers", "width")},
        **{f"text_{name}": getattr(config.text, name) for name in ("width", "layers")},
        "embed_dim": config.embed_dim,
    }
    wrong = [
        f"{name} is {found[name]} instead of {size}" for name, size in sizes._asdict().items() if found[name] != size
    ]
    if wrong:
        raise InputError(f"{subject}: {', '.join(wrong)}; name the model that it is")


def check_parts(config: ClipConfig, tokenizer: Tokenizer, transform: ImageTransform, name: str, stated: str) -> None:
    """Raises InputError unless the parts of a clip fit together; `stated` is the file that states the sizes."""
    text, side = config.text, config.vision.image_size
    end, others = tokenizer.eos_token_id, max(tokenizer.bos_token_id or 0, tokenizer.pad_token_id)
    problem = None
    if tokenizer.vocab_size > text.vocab_size:
        problem = f"the tokenizer has {tokenizer.vocab_size} tokens, {stated} has vocab_size {text.vocab_size}"
    elif tokenizer.context_length > text.context_length:
        problem = f"the tokenizer allows {tokenizer.context_length} tokens, {stated} allows {text.context_length}"
    elif tokenizer.num_start != text.start_token:
        problem = (
            f"the tokenizer has bos_token_id {tokenizer.bos_token_id}, {stated} has start_token {text.start_token}"
        )
    elif text.eos_rule == "first" and end != text.eos_token_id:
        problem = f"the tokenizer ends a text with id {end}, {stated} has eos_token_id {text.eos_token_id}"
    elif text.eos_rule == "highest" and end < others:
        problem = f"with eos_token_id 2 in {stated}, the tokenizer's end {end} must be its highest id, but {others} is"
    elif transform.output_size not in (None, (side, side)):
        problem = f"the image transform makes {transform.output_size} pixels, {stated} has image_size {side}"
    if problem:
        raise InputError(f"{name}: {problem}; use the files of one model, or correct {stated}")
