"""Classifies a folder of images, zero-shot or under a tuned prompt.

    python -m experiments.predict --images=photos --classes="cat,dog"
    python -m experiments.predict --images=photos --classes_file=names.txt --prompt=tuned.safetensors --top=5
    python -m experiments.predict --images=photos --classes_from=folder:labeled --prompt=tuned.safetensors
    python -m experiments.predict --images=photos --classes="cat,dog" --clip=openai/clip-vit-base-patch16

A prompt is what ``gram_jax.save_prompt`` wrote, as ``experiments.evaluate --save_prompts`` does; of a meta
checkpoint, the learned start is used. ``--classes_from`` names the dataset that the prompt was tuned on. Writes one row
an image, in the order of their names: file, predicted class, its probability, the most probable classes, and an error
for images that cannot be read. The table appears complete or not at all. The shipped mini CLIP classifies about
600 small images a second on two cores; images are read batch by batch, so that memory does not grow with
their number.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

import gram_jax as gram
from gram_jax import artifacts, evaluation, meta, runtime, tuners
from gram_jax.array_file import ArrayFileError
from gram_jax.clip.images import ImageError
from gram_jax.data import load_dataset
from gram_jax.data.readers.files import SUFFIXES
from gram_jax.data.readers.sources import FORMS
from gram_jax.errors import InputError
from gram_jax.tuners import Prompt, Tuner

from ._launch import at_least, launch, setting

TEMPLATE = "a photo of a {}."
NAMED_BY = ("classes", "classes_file", "classes_from")
_NAMED = 10  # broken images that the warning names

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is classified, into which classes, and by what."""

    images: str = setting("", "a folder of images; folders within it are read too")
    classes: tuple[str, ...] = setting((), 'class names, e.g. "cat,dog"; quotes protect commas, as in CSV')
    classes_file: str = setting("", "a text file of class names, one a line, in place of --classes")
    classes_from: str = setting("", f"a dataset with these classes, in place of --classes: {'; '.join(FORMS.values())}")
    prompt: str = setting("", "a tuned prompt or a meta checkpoint (.safetensors); zero-shot without")
    template: str | None = setting(None, f'text with one {{}} for the class name; "{TEMPLATE}" by default')
    output: str = setting("", "the table (CSV); WORKDIR/predictions.csv by default")
    clip: str = setting("mini", 'a folder, a hub name, or "mini"')
    top: int = setting(3, "how many of the most probable classes are listed")
    batch_size: int = setting(64, "images a step")
    compute_dtype: str = setting("float32", "precision of the frozen compute", choices=("float32", "bfloat16"))

    def __post_init__(self) -> None:
        if not self.images:
            raise InputError("--images is empty: name the folder of images to classify")
        given = [f"--{name}" for name in NAMED_BY if getattr(self, name)]
        if len(given) != 1:
            ways = ", ".join(f"--{name}" for name in NAMED_BY)
            raise InputError(f"give the class names by one of {ways}; given: {' and '.join(given) or 'none'}")
        if self.template is not None and self.template.count("{}") != 1:
            raise InputError(f"--template={self.template!r}: it must hold exactly one {{}} for the class name")
        at_least(self, 1, "top", "batch_size")


def run(config: Config, workdir: Any) -> None:
    """Classifies every image and writes the table."""
    names = class_names(config)
    folder = epath.Path(config.images).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"--images={config.images}: there is no such folder")
    total = sum(1 for _ in image_files(folder))
    if not total:
        raise InputError(f"--images={config.images}: no file in it ends in one of {' '.join(sorted(SUFFIXES))}")
    output = epath.Path(config.output).expanduser() if config.output else workdir / "predictions.csv"
    if output.is_dir():
        raise IsADirectoryError(f"--output={config.output} is a folder; name the file to write, e.g. predictions.csv")
    clip = gram.load_clip(config.clip, compute_dtype=config.compute_dtype)
    classify = make_classifier(clip, names, config.prompt, config.template)
    broken, first, error = 0, [], "the files have gone"
    with _appearing(output) as file, runtime.Progress(total, "predict", unit="image") as progress:
        top = min(config.top, len(names))
        table = csv.writer(file, lineterminator="\n")
        columns = [column for k in range(1, top + 1) for column in (f"top_{k}", f"probability_{k}")]
        table.writerow(["file", "predicted", "probability", *columns, "error"])
        for name, probabilities, error in predict(folder, clip, classify, min(config.batch_size, total)):
            if probabilities is None:
                broken += 1
                first = [*first, name][:_NAMED]
                table.writerow([name, "", "", *[""] * len(columns), error])
            else:
                best = np.argsort(-probabilities, kind="stable")[:top]
                cells = [cell for k in best for cell in (names[k], f"{probabilities[k]:.6f}")]
                table.writerow([name, *cells[:2], *cells, ""])
            progress.update()
        if broken == progress.done:
            raise InputError(f"--images={config.images}: none of {broken} images can be read; the last: {error}")
    if broken:
        listed = ", ".join(first) + ", ..." * (broken > len(first))
        logger.warning("%d of %d images cannot be read, see the column error: %s", broken, progress.done, listed)
    print(f"{progress.done - broken} images classified, {broken} broken, in {output}")


def class_names(config: Config) -> list[str]:
    """The class names, from the flag, the file or the dataset."""
    source, names = "--classes", list(config.classes)
    if config.classes_from:
        source, names = f"--classes_from={config.classes_from}", list(load_dataset(config.classes_from).class_names)
    if config.classes_file:
        source = f"--classes_file={config.classes_file}"
        try:
            names = epath.Path(config.classes_file).expanduser().read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"{source} is no UTF-8 text: {error}") from error
    names = [name for name in (name.removeprefix("\ufeff").strip() for name in names) if name]
    if len(names) < 2:
        raise InputError(f"{source} holds {len(names)} class names; give at least two")
    for index, name in enumerate(names):
        if (first := names.index(name)) != index:
            raise InputError(
                f"{source}: {name!r} is both class {first + 1} and class {index + 1}; name each class once"
            )
    return names


def image_files(folder: epath.Path) -> Iterator[epath.Path]:
    """The images of a folder and the folders in it, by name; hidden ones and links to folders are left out."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if not os.path.islink(path):  # a link may lead back to where it stands
                yield from image_files(path)
        elif path.suffix.lower() in SUFFIXES:
            yield path


def load_prompt(path: str, clip: gram.Clip, names: Sequence[str]) -> tuple[Tuner, Prompt]:
    """Returns the tuner and the prompt of a prompt file, or the initialization of a meta checkpoint for these classes.

    A structured initialization is mixed for a task whose images are those of an average task: only the class names
    distinguish its theme.
    """
    if artifacts.describe(path).kind == artifacts.PROMPT:
        prompt, tuner = gram.load_prompt(path, clip)
        return tuner, prompt
    learned, tuner, _, _ = gram.load_meta(path, clip)
    context = None
    if learned.structure is not None:
        text = evaluation.class_features(clip, names, [TEMPLATE]).mean(0)
        context = jnp.concatenate([learned.structure.center[: -len(text)], text])
    return tuner, meta.initial_prompt(learned, context)


def make_classifier(
    clip: gram.Clip, names: Sequence[str], path: str, template: str | None
) -> Callable[[np.ndarray], jax.Array]:
    """From pixels ``[images, size, size, 3]`` to probabilities ``[images, classes]``; checks all before any image.

    Args:
      clip: the frozen clip.
      names: the class names.
      path: a prompt file or a meta checkpoint; zero-shot if empty.
      template: how classes are worded where no text prompt does it; None is the default.

    Raises:
      InputError: the prompt belongs to another clip or class list, or does not fit the names.
    """
    clip.class_tokens(names, "{}")  # a prediction by a name that two classes have would say nothing
    if not path:
        return make_scorer(_zero_shot(), {}, clip, evaluation.class_features(clip, names, [template or TEMPLATE]))
    tuner, prompt = load_prompt(path, clip, names)
    if not tuner.needs_names:
        return make_scorer(tuner, prompt, clip, evaluation.class_features(clip, names, [template or TEMPLATE]))
    if template is not None:
        raise InputError(f"--template is of no use to {path}: the context of {tuner.name} stands in its place; omit it")
    if tuner.settings.get("class_specific"):
        count = len(jax.tree.leaves(prompt)[0])
        if count != len(names):
            raise ArrayFileError(
                f"{path} is class-specific, for {count} classes, but {len(names)} are named; give the class list that "
                "it was tuned on, in its order."
            )
    return make_scorer(tuner, prompt, clip, clip.class_tokens(names, "{}"))


def make_scorer(tuner: Tuner, prompt: Prompt, clip: gram.Clip, classes: Any) -> Callable[[np.ndarray], jax.Array]:
    """From pixels to probabilities under a prompt; texts that do not depend on the image are encoded once."""
    vision = clip.config.vision
    blank = jnp.zeros((1, vision.image_size, vision.image_size, vision.channels))
    # Only what is asked for runs: the compiler drops the other side of the clip.
    texts = jax.jit(lambda *inputs: tuner.apply(*inputs).text_features)(prompt, clip, classes, blank)

    @jax.jit
    def score(prompt: Prompt, clip: gram.Clip, classes: Any, texts: jax.Array, pixels: jax.Array) -> jax.Array:
        outputs = tuner.apply(prompt, clip, classes, pixels)
        if texts.ndim == 3:  # a text feature for each image
            return jax.nn.softmax(outputs.logits, axis=-1)
        return jax.nn.softmax(gram.logits(outputs.image_features, texts, clip.params["logit_scale"]), axis=-1)

    return lambda pixels: score(prompt, clip, classes, texts, pixels)


def _zero_shot() -> Tuner:
    """No prompt, as a tuner."""

    def apply(prompt: Prompt, clip: gram.Clip, classes: Any, images: jax.Array) -> tuners.Outputs:
        del prompt
        return tuners.frozen_outputs(clip, classes, images)

    return Tuner("zero_shot", {}, lambda key, clip, classes: {}, apply, needs_pixels=False, needs_names=False)


def predict(
    folder: epath.Path, clip: gram.Clip, classify: Callable[[np.ndarray], jax.Array], batch_size: int
) -> Iterator[tuple[str, np.ndarray | None, str]]:
    """For each image of a folder: its name, the probabilities or None, and the error if it cannot be read."""
    files = image_files(folder)
    while batch := list(itertools.islice(files, batch_size)):
        read = [_read(path, _name(path, folder), clip) for path in batch]
        pixels = [found for _, found, _ in read if found is not None]
        probabilities = iter(())
        if pixels:
            # Padded, so that one compiled step serves all batches.
            stacked = np.pad(np.stack(pixels), ((0, batch_size - len(pixels)), (0, 0), (0, 0), (0, 0)))
            probabilities = iter(np.asarray(classify(clip.transform.normalize(stacked))))
        for name, found, error in read:
            yield name, None if found is None else next(probabilities), error


def _name(path: epath.Path, folder: epath.Path) -> str:
    """A file's name below the folder, as text: bytes of a name that are none are shown as such."""
    return path.relative_to(folder).as_posix().encode("utf-8", "backslashreplace").decode("utf-8")


def _read(path: epath.Path, name: str, clip: gram.Clip) -> tuple[str, np.ndarray | None, str]:
    try:
        return name, clip.transform.pixels(path.read_bytes(), name), ""
    except (ImageError, OSError) as error:
        return name, None, str(error)


@contextlib.contextmanager
def _appearing(path: epath.Path) -> Iterator[Any]:
    """A text file to write that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f"{path.name}.part"
    try:
        with part.open("w", encoding="utf-8") as file:
            yield file
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    part.replace(path)


if __name__ == "__main__":
    launch(run, Config)
