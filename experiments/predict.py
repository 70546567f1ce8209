"""Classifies images, zero-shot or with a tuned prompt.

    python -m experiments.predict --images=photos --classes="cat,dog"
    python -m experiments.predict --images=photos --classes_file=names.txt --prompt=tuned.safetensors --top=5
    python -m experiments.predict --images=photos --classes_from=folder:labeled --prompt=tuned.safetensors
    python -m experiments.predict --images=photos --classes="cat,dog" --clip=openai/clip-vit-base-patch16
    python -m experiments.predict --images=photos/first.jpg,photos/second.jpg --classes="cat,dog"
    python -m experiments.predict --images=photos --prompt=my_classifier.safetensors

--prompt is a file that `gram_jax.save_prompt` or `experiments.evaluate --save_prompts` wrote, or a meta checkpoint,
whose learned initialization is used. A file may name the classes, as one of `PromptClassifier.save` does.
--classes_from names the dataset that the prompt was tuned on. The output has one row per file, in the order of their
names: file, predicted class, its probability, the most probable classes, and an error for files that cannot be read,
whatever their type. The file appears only when it is complete; account.json counts what was left out, hidden files and
links to folders included. --report also writes predictions.html, a page with the first 1,000 images. The shipped mini
CLIP classifies about 600 small images per second on two cores; memory does not grow with the number of images.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import glob
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import lazy_loader
import numpy as np
from etils import epath

import gram_jax as gram
from gram_jax import evaluation, reporting, runtime
from gram_jax.batching import pad_to
from gram_jax.clip.decoding import MAX_PIXELS, ImageError, read_rgb
from gram_jax.data import Account, load_dataset, templates
from gram_jax.data.gray import find_range, is_deep
from gram_jax.data.readers.files import HIDDEN, LINKS, SUFFIXES, absent, read_name_list, walk, why_unread
from gram_jax.data.readers.sources import forms
from gram_jax.data.spellings import require_distinct, require_names, without_ids
from gram_jax.errors import InputError, examples
from gram_jax.io import replacing, write_json

from ._launch import at_least, launch, setting

if TYPE_CHECKING:
    from gram_jax.tuners import Prompt, Tuner

# Loaded when used, so that --help answers at once.
jax = lazy_loader.load("jax")

CLASS_FLAGS = ("classes", "classes_file", "classes_from")
ACCOUNT, PAGE = "account.json", "predictions.html"
_SHOWN = 10  # broken images that the warning names

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Config:
    """The images, the classes and the classifier."""

    images: str = setting(
        "", "a folder of images, read with its subfolders; or image files, separated by commas; wildcards"
    )
    classes: tuple[str, ...] = setting((), 'class names, e.g. "cat,dog"; quotes protect commas, as in CSV')
    classes_file: str = setting(
        "", "a text file with a class name, or an id and a name, per line, instead of --classes"
    )
    classes_from: str = setting("", f"a dataset with these classes, instead of --classes: {forms()}")
    prompt: str = setting("", "a tuned prompt or a meta checkpoint (.safetensors); empty: zero-shot")
    template: str | None = setting(None, f'text with one {{}} for the class name; default: "{templates.DEFAULT}"')
    output: str = setting("", "the output file (CSV); default: WORKDIR/predictions.csv")
    clip: str = setting("mini", 'folder, file, hub name, OpenCLIP MODEL:TAG, or "mini"')
    top: int = setting(3, "number of most probable classes to list")
    batch_size: int = setting(64, "images per step")
    gray_range: float | None = setting(
        None,
        "the white value of grayscale images with more than 8 bits; default: the range that the images use",
        above=0,
    )
    report: bool = setting(False, f"also write {PAGE} beside the output: images with their predictions")
    compute_dtype: str = setting("float32", "precision of the frozen computation", choices=("float32", "bfloat16"))

    def __post_init__(self) -> None:
        if not self.images:
            raise InputError("--images is empty: give a folder of images")
        check_class_flags(self)
        at_least(self, 1, "top", "batch_size")


class Given(NamedTuple):
    """A file to classify: its path, its name in the table, and why it is not read, "" for an image."""

    path: Path
    name: str
    reason: str


def check_class_flags(config: Any) -> None:
    """Raises InputError unless there is one source of class names, and a place for them in the template."""
    given = [f"--{name}" for name in CLASS_FLAGS if getattr(config, name)]
    if len(given) > 1 or not (given or config.prompt):
        ways = ", ".join(f"--{name}" for name in CLASS_FLAGS)
        raise InputError(f"give the class names with one of {ways}; given: {' and '.join(given) or 'none'}")
    if config.template is not None and config.template.count("{}") != 1:
        raise InputError(f"--template={config.template!r}: it must contain exactly one {{}} for the class name")


class Prediction(NamedTuple):
    """The prediction of one file: its name, and probabilities `[classes]` or an error; and what reads the image."""

    name: str
    probabilities: np.ndarray | None
    error: str = ""
    read: Callable[[], Any] = bytes


class Collected:
    """Collects what a page shows of predictions while they are written: the first ones, and counts by class."""

    def __init__(self, names: Sequence[str], top: int):
        self._names, self._top = names, top
        self.first: list[reporting.pages.Predicted] = []
        self.counts = dict.fromkeys(names, 0)

    def passing(self, predictions: Iterator[Prediction]) -> Iterator[Prediction]:
        """Yields the predictions as they are."""
        for each in predictions:
            best: list[tuple[str, float]] = []
            if each.probabilities is not None:
                order = np.argsort(-each.probabilities, kind="stable")[: self._top]
                best = [(self._names[k], float(each.probabilities[k])) for k in order]
                self.counts[best[0][0]] += 1
            if len(self.first) < reporting.pages.MOST_IMAGES:
                self.first.append(reporting.pages.Predicted(each.name, each.read, best, each.error))
            yield each


def run(config: Config, workdir: Any) -> None:
    """Classifies every image and writes the table."""
    names = class_names(config)
    output = epath.Path(config.output).expanduser() if config.output else workdir / "predictions.csv"
    if output.is_dir():
        raise IsADirectoryError(f"--output={config.output} is a folder; give a file, e.g. predictions.csv")
    entries = functools.partial(given_files, config.images, os.path.abspath(output))
    account = count(entries(), f"--images={config.images}")
    rows = account.read["files"]
    gray = find_range((str(each.path) for each in entries() if not each.reason), gray_range(config))
    clip = gram.load_clip(config.clip, compute_dtype=config.compute_dtype)
    classify = make_classifier(clip, names, config.prompt, config.template)
    batch_size = min(config.batch_size, account.read["images"])
    top = min(config.top, len(names))
    collected = Collected(names, top)
    predictions = collected.passing(predict(entries(), clip, classify, batch_size, gray.largest if gray else None))
    with replacing(output) as part, runtime.Progress(rows, "predict", unit="file") as progress:
        broken = write_table(part, names, top, predictions, progress)
        if len(broken) == progress.done:
            raise InputError(f"--images={config.images}: none of {len(broken)} images can be read; {broken[-1].error}")
    if broken:
        shown = ", ".join(each.name for each in broken[:_SHOWN]) + ", ..." * (len(broken) > _SHOWN)
        logger.warning("%d of %d images cannot be read, see the column error: %s", len(broken), progress.done, shown)
    print(f"{progress.done - len(broken)} images classified, {len(broken)} broken, in {output}")
    print("".join(f"{line}\n" for line in [*account.lines(), *([f"note: {gray.note}"] if gray else [])]), end="")
    write_json(output.parent / ACCOUNT, account.to_json())
    if config.report:
        found = reporting.pages.Predictions(collected.first, collected.counts, len(broken), progress.done)
        told = [(name, value) for name in ("clip", "prompt", "template", "images") if (value := getattr(config, name))]
        left_out = [("left out", line.removeprefix("left out: ")) for line in account.lines()]
        reporting.pages.predictions_page(found, output.parent / PAGE, [*told, *left_out])
        print(f"{PAGE} in {output.parent}")


def gray_range(config: Config) -> float | None:
    """Returns the white value that is given, or that the saved classifier was tuned with; None if there is none."""
    if config.gray_range is not None or not config.prompt:
        return config.gray_range
    saved = gram.artifacts.describe(config.prompt).classifier or {}
    return (saved.get("report") or {}).get("gray_range")


def given_files(images: str, output: str = "") -> Iterator[Given]:
    """Yields everything in the folder, or the files, that --images names, but for the table and its older versions."""
    stem, suffix = os.path.splitext(output)
    own = re.compile(rf"{re.escape(stem)}(-\d+)?{re.escape(suffix)}(\.\w+\.part)?")
    found = _given(images)
    yield from (each for each in found if not (output and own.fullmatch(os.path.abspath(each.path))))


def _given(images: str) -> Iterator[Given]:
    whole = Path(images).expanduser()
    texts = [images] if whole.exists() else [text for text in images.split(",") if text.strip()]
    texts = [path for text in texts for path in (sorted(glob.glob(text)) if glob.has_magic(text) else [text])] or texts
    for text in texts:
        path = Path(text.strip()).expanduser()
        if "://" in text:
            raise InputError(f"--images={images}: {text.strip()!r} is a URL; download the images first")
        if path.is_dir():
            prefix = "" if len(texts) == 1 else f"{text.strip().rstrip('/')}/"
            yield from (Given(path / each.path, prefix + each.path, each.reason) for each in walk(path, mixed=True))
        elif path.exists() or path.is_symlink():
            yield Given(path, path.name if len(texts) == 1 else text.strip(), why_unread(path))
        else:
            raise FileNotFoundError(f"--images={images}: {absent(path.absolute(), 'folder or file')}")


def count(entries: Iterator[Given], what: str) -> Account:
    """Returns the numbers of images and of files, and what is left out; raises InputError if there is no image."""
    account = Account({"images": 0, "files": 0})
    for each in entries:
        account.read["images"] += not each.reason
        account.read["files"] += each.reason not in (HIDDEN, LINKS)
        if each.reason:
            account.leave_out(each.reason, [each.name])
    if not account.read["images"]:
        others = f"; {'; '.join(account.lines())}" if account.left_out else ""
        raise InputError(f"{what}: no file has a suffix of {' '.join(sorted(SUFFIXES))}{others}")
    return account


def write_table(
    path: epath.Path, names: Sequence[str], top: int, predictions: Iterator[Prediction], progress: runtime.Progress
) -> list[Prediction]:
    """Writes one row per image; returns the predictions of images that cannot be read."""
    columns = [column for k in range(1, top + 1) for column in (f"top_{k}", f"probability_{k}")]
    broken = []
    with path.open("w", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", "predicted", "probability", *columns, "error"])
        for prediction in predictions:
            if prediction.probabilities is None:
                broken.append(prediction)
                cells = [""] * len(columns)
            else:
                best = np.argsort(-prediction.probabilities, kind="stable")[:top]
                cells = [cell for k in best for cell in (names[k], f"{prediction.probabilities[k]:.6f}")]
            table.writerow([prediction.name, *cells[:2], *cells, prediction.error])
            progress.update()
    return broken


def class_names(config: Any) -> list[str]:
    """Returns the class names from the flag, the file, the dataset, or the saved classifier."""
    source, names = "--classes", list(config.classes)
    if not any(getattr(config, name) for name in CLASS_FLAGS):
        source, saved = f"--prompt={config.prompt}", gram.artifacts.describe(config.prompt).classes
        if saved is None:
            ways = ", ".join(f"--{name}" for name in CLASS_FLAGS)
            raise InputError(f"{source} holds no class names; give them with one of {ways}")
        names = list(saved)
    if config.classes_from:
        source, names = f"--classes_from={config.classes_from}", list(load_dataset(config.classes_from).class_names)
    if config.classes_file:
        source = f"--classes_file={config.classes_file}"
        names = read_name_list(Path(config.classes_file).expanduser(), source)
    names = without_ids([name for name in map(str.strip, names) if name])[0]
    if len(names) < 2:
        raise InputError(f"{source} gives {len(names)} class names; give at least two")
    for index, name in enumerate(names):
        if (first := names.index(name)) != index:
            raise InputError(
                f"{source}: {name!r} is both class {first + 1} and class {index + 1}; give each class once"
            )
    require_names(names, source)
    require_distinct(names, source)
    return names


def load_prompt(path: str, clip: gram.Clip, names: Sequence[str]) -> tuple[Tuner, Prompt]:
    """Returns the tuner and the prompt of a prompt file, or the initialization of a meta checkpoint for these classes.

    A structured initialization is mixed for a task whose images are those of an average task: only the class names
    distinguish its theme.
    """
    if gram.artifacts.describe(path).kind == gram.artifacts.PROMPT:
        prompt, tuner = gram.load_prompt(path, clip)
        return tuner, prompt
    learned, tuner, _, _ = gram.load_meta(path, clip)
    context = None
    if learned.structure is not None:
        text = evaluation.class_features(clip, names, [templates.DEFAULT]).mean(0)
        context = jax.numpy.concatenate([learned.structure.center[: -len(text)], text])
    return tuner, gram.meta.initial_prompt(learned, context)


def make_classifier(clip: gram.Clip, names: Sequence[str], path: str, template: str | None) -> evaluation.Scorer:
    """Returns a function from pixels `[images, size, size, 3]` to probabilities `[images, classes]`.

    It is zero-shot if `path`, of a prompt or a meta checkpoint, is empty. `template` is for classifiers without a text
    prompt; None is the default one.
    """
    if not path:
        return evaluation.zero_shot_scorer(clip, names, template)
    tuner, prompt = load_prompt(path, clip, names)
    tuned_on, own_template = (getattr(gram.artifacts.describe(path), name) for name in ("classes", "template"))
    template = own_template if template is None else template
    if tuner.settings.get("class_specific") and tuned_on is not None and tuned_on != tuple(names):
        raise InputError(
            f"{path} is class-specific, for the {len(tuned_on)} classes {examples(tuned_on)}, and the given "
            f"{len(names)} are {examples(names)}; give the class list that it was tuned on, in its order"
        )
    return evaluation.make_scorer(tuner, prompt, clip, names, template=template, source=path)


def predict(
    entries: Iterator[Given],
    clip: gram.Clip,
    classify: Callable[[np.ndarray], jax.Array],
    batch_size: int,
    largest: float | None = None,
) -> Iterator[Prediction]:
    """Yields the prediction of every file, but for hidden ones and links to folders, which are only counted.

    `largest` is the white value of grayscale with more than 8 bits.
    """
    files = (each for each in entries if each.reason not in (HIDDEN, LINKS))
    while batch := list(itertools.islice(files, batch_size)):
        images = [_read(each, clip, largest) for each in batch]
        pixels = [image for image in images if isinstance(image, np.ndarray)]
        probabilities = iter(())
        if pixels:  # padded, so that one compiled step serves all batches
            padded = pad_to(np.stack(pixels), batch_size)
            probabilities = iter(np.asarray(classify(clip.transform.normalize(padded))))
        for each, image in zip(batch, images, strict=True):
            readable = isinstance(image, np.ndarray)
            told = (next(probabilities), "") if readable else (None, image)
            yield Prediction(_text(each.name), *told, functools.partial(_open, each.path, largest))


def _text(name: str) -> str:
    """Returns the name of a file as text; bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _read(given: Given, clip: gram.Clip, largest: float | None) -> np.ndarray | str:
    """Returns the pixels of an image, or the reason why it cannot be read."""
    name = _text(given.name)
    if given.reason:
        return f"{name} is not read: {given.reason}"
    try:
        return clip.transform.pixels(_open(given.path, largest, clip.transform.max_pixels), name)
    except (ImageError, OSError) as error:
        return str(error)


def _open(path: Path, largest: float | None, max_pixels: int = MAX_PIXELS) -> Any:
    """Returns the content of an image file, or its pixels if it is grayscale of more than 8 bits."""
    return read_rgb(path, largest, max_pixels) if largest is not None and is_deep(str(path)) else path.read_bytes()


if __name__ == "__main__":
    launch(run, Config)
