"""Exports a tuned classifier: a StableHLO program, an ONNX file, or text features for PyTorch.

    python -m experiments.export --prompt=my_classifier.safetensors
    python -m experiments.export --prompt=tuned.safetensors --classes="cat,dog" --format=stablehlo,onnx
    python -m experiments.export --prompt=tuned.safetensors --classes_from=folder:labeled --clip=path/to/clip

--prompt is a file that `PromptClassifier.save` wrote, which names its classes and its clip; or one of
`gram_jax.save_prompt` or of `experiments.evaluate --save_prompts`, or a meta checkpoint, with class names. Without
--prompt the classifier is zero-shot. Each format is a folder in --output:

    stablehlo/  classifier.stablehlo: weights included, for JAX on CPU, GPU and TPU, see `gram_jax.load_exported`
    onnx/       classifier.onnx: weights included, for ONNX Runtime and others; needs the package onnx
    folder/     text features and a PyTorch script; for tuners that leave the image side as it is

Each holds classifier.json as well: class names, image size and preprocessing. Reading and resizing images is not part
of an export.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from etils import epath

import gram_jax as gram
from gram_jax.data import templates
from gram_jax.data.readers.sources import forms
from gram_jax.errors import InputError, require_known

from . import predict
from ._launch import launch, setting

FORMATS = ("stablehlo", "onnx", "folder")


@dataclasses.dataclass(frozen=True)
class Config:
    """The classifier and the forms that it is exported in."""

    prompt: str = setting("", "a tuned prompt, a saved PromptClassifier or a meta checkpoint; empty: zero-shot")
    classes: tuple[str, ...] = setting((), 'class names, e.g. "cat,dog"; quotes protect commas, as in CSV')
    classes_file: str = setting("", "a text file with one class name per line, instead of --classes")
    classes_from: str = setting("", f"a dataset with these classes, instead of --classes: {forms()}")
    template: str | None = setting(None, f'text with one {{}} for the class name; default: "{templates.DEFAULT}"')
    clip: str = setting("", 'a folder, a hub name, or "mini"; default: the clip that the prompt names, or mini')
    format: tuple[str, ...] = setting(("stablehlo",), f"some of {', '.join(FORMATS)}")
    output: str = setting("", "the folder of the exports; default: WORKDIR")

    def __post_init__(self) -> None:
        predict.check_class_flags(self)
        for each in self.format:
            require_known("--format", each, FORMATS)
        if not self.format:
            raise InputError(f"--format is empty: give some of {', '.join(FORMATS)}")


def run(config: Config, workdir: Any) -> None:
    """Writes the exports; what can be written is written before refusals are raised."""
    saved = gram.artifacts.describe(config.prompt).classifier if config.prompt else None
    names = predict.class_names(config)
    clip = gram.load_clip(config.clip or (saved or {}).get("clip") or "mini")
    scorer = predict.make_classifier(clip, names, config.prompt, config.template)
    output = epath.Path(config.output).expanduser() if config.output else workdir
    refused: list[str] = []
    for name in config.format:
        try:
            getattr(gram.export, f"save_{name}")(output / name, scorer)
            print(f"{name} in {output / name}", flush=True)
        except InputError as error:
            refused.append(f"--format={name}: {error}")
    if refused:
        raise InputError("; ".join(refused))


if __name__ == "__main__":
    launch(run, Config)
