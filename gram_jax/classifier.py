"""`PromptClassifier`: a tuned prompt with the interface of scikit-learn."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from tqdm import tqdm

from gram_jax import artifacts, tuners
from gram_jax.array_file import ArrayFileError
from gram_jax.batching import pad_to
from gram_jax.clip import Clip, load_clip
from gram_jax.data import Dataset
from gram_jax.data.gray import scaled
from gram_jax.data.objects import class_folders, class_words, image_list, label_array, labeled_objects
from gram_jax.data.spellings import odd_names
from gram_jax.errors import InputError, require_int, require_known, require_number
from gram_jax.evaluation.encoder import Encoder
from gram_jax.evaluation.fitting import Fitted, fit_prompt, zero_shot_accuracy
from gram_jax.evaluation.plans import TuningPlan
from gram_jax.evaluation.runner import prompt_method
from gram_jax.evaluation.scoring import make_scorer
from gram_jax.evaluation.tuned import TunedMethod
from gram_jax.io import PathLike
from gram_jax.registry import Call
from gram_jax.tuners import Tuner

LEARNING_RATES = (0.03, 0.3, 3.0)  # the candidates without a given learning rate
_SAVED = ("learning_rate", "steps", "plan", "validation_fraction", "random_state", "batch_size")


class PromptClassifier(ClassifierMixin, BaseEstimator):
    """Classifies images with a CLIP and a tuned prompt, in scikit-learn's manner.

    `fit` first reports the zero-shot accuracy. It then tunes one prompt for each candidate learning rate, chooses the
    rate on a validation split of its own, and tunes the final prompt on all images. If a class has too few images for a
    validation split, the middle candidate is used. `clone`, `cross_val_score` and `GridSearchCV` work with lists of
    paths; give clip and tuner by name there, so that copies are cheap.

    Images are paths, PIL images, encoded images (bytes), or arrays `[height, width, 3]` of uint8 or of floats in
    [0, 1], of any size.

    Args:
      clip: a clip, or a name or path for `gram.load_clip`.
      tuner: a tuner, or its call, such as "coop(num_tokens=4)".
      learning_rate: one rate, or several candidates; None for 0.03, 0.3 and 3.
      steps: optimizer steps; 300 reach convergence with few images.
      plan: further fields of `evaluation.TuningPlan`, such as `{"regularizers": "kgcoop:8"}`.
      validation_fraction: the share of each class that is held out to choose the learning rate, in [0, 1).
      random_state: the seed of the validation split, the initialization and the order of the images.
      batch_size: images that are encoded at once.
      verbose: whether `fit` prints what it measures and shows its progress on standard error.

    Attributes:
      classes_: the labels, sorted; the columns of `predict_proba`.
      class_names_, template_: the class names in that order, and the template that some tuners read.
      prompt_: the tuned prompt.
      clip_: the clip.
      scorer_: the function from transformed images to probabilities, see `evaluation.make_scorer`.
      report_: what `fit` did: the "seed", the numbers of "images" and of "validation_images", the "zero_shot_accuracy"
        on all images, the "learning_rate", the "validation_accuracy" by learning rate (empty without validation), and
        the "gray_range" of grayscale images with more than 8 bits (None without such images).

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> images = np.random.default_rng(0).random((8, 14, 14, 3))
      >>> model = PromptClassifier(tiny_clip(text_layers=1), steps=5, verbose=False)
      >>> model = model.fit(images, ["cat", "dog"] * 4)
      >>> model.predict_proba(images[:3]).shape, model.classes_.tolist()
      ((3, 2), ['cat', 'dog'])
    """

    def __init__(  # long: scikit-learn reads settings from the signature
        self,
        clip: Clip | str = "mini",
        tuner: Tuner | str = "coop(init_text='a photo of a')",
        *,
        learning_rate: float | Sequence[float] | None = None,
        steps: int = 300,
        plan: Mapping[str, Any] | None = None,
        validation_fraction: float = 0.2,
        random_state: Any = 0,
        batch_size: int = 64,
        verbose: bool = True,
    ):
        self.clip = clip
        self.tuner = tuner
        self.learning_rate = learning_rate
        self.steps = steps
        self.plan = plan
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.batch_size = batch_size
        self.verbose = verbose

    def fit(
        self, images: Any, labels: Any = None, class_names: Sequence[str] | Mapping[Any, str] | None = None
    ) -> PromptClassifier:
        """Tunes a prompt on labeled images, and returns this classifier.

        Args:
          images: the images; or the path of a folder with one folder per class, whose names are the labels.
          labels: a string or an integer for each image; None for a folder.
          class_names: the words for the classes, one for each of the sorted labels, or by label. None: the labels, with
            spaces for underscores, without ids such as "001.".

        Returns:
          The classifier itself.
        """
        images, labels, left_out = _labeled(images, labels)
        for line in left_out:
            self._say(line)
        classes, codes = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise InputError(f"labels hold one class, {classes.tolist()[0]!r}; give images of at least two")
        names = class_words(classes, class_names)
        require_number("validation_fraction", self.validation_fraction, least=0, below=1)
        seed = _seed(self.random_state)
        dataset = labeled_objects(images, codes, names, _splits(codes, self.validation_fraction, seed))
        for note in (*dataset.about.get("notes", ()), *odd_names(names)):
            self._say(f"note: {note}")
        return self._tune(dataset, classes, seed)

    def fit_dataset(
        self, dataset: Dataset, encoder: Encoder | None = None, shown: Callable[[], Any] | None = None
    ) -> PromptClassifier:
        """Tunes a prompt on a dataset, and returns this classifier; its labels are the class names.

        The images of split "val" choose the learning rate, those of "train" and "val" tune the prompt, those of "test"
        are not read.

        Args:
          dataset: the dataset.
          encoder: an encoder of `clip`, which may know the images; None makes one.
          shown: is called after every step; None shows a bar.
        """
        learning = dataset.take(np.flatnonzero(dataset.splits != "test"))
        return self._tune(learning, np.array(dataset.class_names), _seed(self.random_state), encoder, shown)

    def _tune(
        self, dataset: Dataset, classes: np.ndarray, seed: int, encoder: Encoder | None = None, shown: Any = None
    ) -> PromptClassifier:
        """Tunes a prompt on the images of a dataset, whose classes have the given labels."""
        tuner, rates = _tuner(self.tuner), _rates(self.learning_rate)
        further = dict(self.plan or {})
        for name in further:
            require_known("plan", name, [field.name for field in dataclasses.fields(TuningPlan)])
        plan = TuningPlan(**{"learning_rate": rates[0], "steps": self.steps} | further)
        require_int("batch_size", self.batch_size)
        encoder = self._encoded(_clip(self.clip) if encoder is None else encoder, dataset)
        zero_shot = zero_shot_accuracy(encoder, dataset)
        found = f"{len(dataset)} images of {len(classes)} classes"
        self._say(f"{found}; zero-shot accuracy on them: {100 * zero_shot:.1f} %")
        runs = len(rates) + 1 if np.any(dataset.splits == "val") and len(rates) > 1 else 1
        total = runs * plan.steps if plan.epochs is None else None
        with self._bar(total, "tune", "step", own=shown is None) as bar:
            fitted = fit_prompt(encoder, dataset, _method(tuner, plan), rates, seed, shown or (lambda: bar.update()))
        held_out = int(np.sum(dataset.splits == "val"))
        self._say(_choice(fitted, held_out))
        self.classes_, self.class_names_ = classes, dataset.class_names
        self.template_: str | None = dataset.template
        self.report_: dict[str, Any] = {
            "seed": seed,
            "images": len(dataset),
            "validation_images": held_out if fitted.validation else 0,
            "zero_shot_accuracy": zero_shot,
            "learning_rate": fitted.learning_rate,
            "validation_accuracy": fitted.validation,
            "gray_range": dataset.about.get("gray_range"),
        }
        return self._ready(encoder.clip, tuner, fitted.prompt)

    def predict_proba(self, images: Any) -> np.ndarray:
        """Returns the probabilities of the classes, `[images, classes]`, columns in the order of `classes_`.

        Args:
          images: the images, as in `fit`.
        """
        check_is_fitted(self)
        images, largest = image_list(images), self.report_.get("gray_range")
        chunks = [images[begin : begin + self.batch_size] for begin in range(0, len(images), self.batch_size)]
        probabilities = []
        for chunk in chunks:  # padded, so that one compiled program serves all of them
            pixels = self.clip_.preprocess([scaled(image, largest) for image in chunk])
            pixels = pad_to(pixels, min(self.batch_size, len(images)))
            probabilities.append(np.asarray(self.scorer_(pixels))[: len(chunk)])
        return np.concatenate(probabilities)

    def predict(self, images: Any) -> np.ndarray:
        """Returns the most probable label of each image, `[images]`.

        Args:
          images: the images, as in `fit`.
        """
        probabilities = self.predict_proba(images)
        return self.classes_[probabilities.argmax(axis=1)]

    def score(self, images: Any, labels: Any = None, sample_weight: Any = None) -> float:
        """Returns the accuracy on labeled images.

        Args:
          images, labels: as in `fit`; a folder with one folder per class needs no labels.
          sample_weight: a weight for each image; None weighs all equally.
        """
        check_is_fitted(self)
        images, labels, _ = _labeled(images, labels)
        return float(np.average(self.predict(images) == labels, weights=sample_weight))

    def save(self, path: PathLike) -> None:
        """Saves the prompt, the class names, the settings and the name and hash of the clip in one small file.

        `PromptClassifier.load` and `gram.load_prompt` read it; `experiments.predict` and `experiments.export` take it
        as `--prompt`.

        Args:
          path: the file, usually `NAME.safetensors`.
        """
        check_is_fitted(self)
        tuner, report = self.scorer_.tuner, dict(self.report_)
        settings = {name: getattr(self, name) for name in _SAVED}
        if not isinstance(self.random_state, int | None):
            settings["random_state"] = report["seed"]
        report["validation_accuracy"] = [list(pair) for pair in self.report_["validation_accuracy"].items()]
        classifier = {
            "clip": self.clip if isinstance(self.clip, str) else None,
            "settings": settings | {"tuner": str(Call(tuner.name, dict(tuner.settings)))},
            "labels": self.classes_.tolist(),
            "report": report,
        }
        template = self.template_ if tuner.reads_template else None
        told: dict[str, Any] = {"classes": self.class_names_, "classifier": classifier, "template": template}
        artifacts.save_prompt(path, self.prompt_, tuner, self.clip_, **told)

    @classmethod
    def load(cls, path: PathLike, clip: Clip | str | None = None) -> PromptClassifier:
        """Returns a classifier that `save` wrote.

        Args:
          path: the file.
          clip: the clip, or its name or path; None loads the clip that the file names.
        """
        description = artifacts.describe(path)
        saved, names = description.classifier, description.classes
        if saved is None or names is None:
            raise InputError(f"{path} is a prompt without classes; read it with gram.load_prompt")
        try:
            model = cls(saved["clip"] if clip is None else clip, **saved["settings"])
            model.classes_, model.class_names_ = np.array(saved["labels"]), names
            model.template_ = description.template
            validation = dict(map(tuple, saved["report"]["validation_accuracy"]))
            model.report_ = saved["report"] | {"validation_accuracy": validation}
            label_array(model.classes_, len(model.class_names_))
        except (KeyError, TypeError, ValueError) as error:
            raise ArrayFileError(f"{path} does not hold a complete classifier ({error!r}); save it again") from error
        if model.clip is None:
            raise InputError(f"{path} was fitted with a clip that had no name; load it with clip=")
        loaded_clip = _clip(model.clip)
        prompt, tuner, *_ = artifacts.load_prompt(path, loaded_clip)
        return model._ready(loaded_clip, tuner, prompt)

    def _ready(self, clip: Clip, tuner: Tuner, prompt: Any) -> PromptClassifier:
        self.clip_, self.prompt_ = clip, prompt
        template = self.template_ if tuner.reads_template else None
        self.scorer_ = make_scorer(tuner, prompt, clip, self.class_names_, template=template)
        return self

    def _encoded(self, clip: Clip | Encoder, dataset: Dataset) -> Encoder:
        """Returns an encoder that knows the features of all images; shows its progress."""
        if isinstance(clip, Encoder):
            clip.features(dataset)
            return clip
        encoder = Encoder(clip, self.batch_size)
        encoder.add(dataset)
        with self._bar(len(dataset), "encode", "image") as bar:
            for begin in range(0, len(dataset), self.batch_size):
                part = dataset.take(np.arange(begin, min(begin + self.batch_size, len(dataset))))
                encoder.features(part)
                bar.update(len(part))
        return encoder

    def _bar(self, total: int | None, description: str, unit: str, own: bool = True) -> Any:
        """Returns a progress bar; without `verbose` or a terminal, or if the caller shows one, it shows nothing."""
        off = None if self.verbose and own else True
        return tqdm(total=total, desc=description, unit=unit, leave=False, disable=off)

    def _say(self, text: str) -> None:
        if self.verbose:
            tqdm.write(text, file=sys.stderr)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "scorer_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state for pickling: a tuner becomes its call, and a clip with a name is loaded anew."""
        state = dict(super().__getstate__())
        if (scorer := state.pop("scorer_", None)) is not None:
            state["tuner"] = str(Call(scorer.tuner.name, dict(scorer.tuner.settings)))
        if isinstance(self.clip, str):
            state.pop("clip_", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if hasattr(self, "prompt_"):
            clip = self.clip_ if hasattr(self, "clip_") else _clip(self.clip)
            self._ready(clip, _tuner(self.tuner), self.prompt_)


def _seed(random_state: Any) -> int:
    return int(check_random_state(random_state).randint(2**31 - 1))


def _clip(clip: Any) -> Clip:
    if isinstance(clip, (str, os.PathLike)):
        return load_clip(clip)
    if not isinstance(clip, Clip):
        raise InputError(f"clip is a {type(clip).__name__}; give a clip, or a name or path for gram.load_clip")
    return clip


def _tuner(tuner: Any) -> Tuner:
    if isinstance(tuner, str):
        return _parse(tuner)
    if not isinstance(tuner, Tuner):
        raise InputError(f"tuner is a {type(tuner).__name__}; give a tuner, or a call such as 'coop(num_tokens=4)'")
    return tuner


def _method(tuner: Tuner, plan: TuningPlan) -> TunedMethod:
    try:
        method = _cached_method(tuner, plan)
    except TypeError:  # settings that cannot be hashed
        method = prompt_method(tuner, plan)
    assert isinstance(method, TunedMethod)  # a tuner with a `TuningPlan`
    return method


# Equal settings share compiled programs: a search fits many classifiers.
_parse = functools.lru_cache(maxsize=32)(tuners.parse)
_cached_method = functools.lru_cache(maxsize=32)(prompt_method)


def _rates(rate: Any) -> tuple[float, ...]:
    rates = LEARNING_RATES if rate is None else (rate,) if isinstance(rate, (int, float)) else tuple(rate)
    if not rates:
        raise InputError("learning_rate is empty; give one rate or several")
    for each in rates:
        require_number("learning_rate", each, above=0)
    return tuple(map(float, rates))


def _labeled(images: Any, labels: Any) -> tuple[list[Any], np.ndarray, list[str]]:
    """Returns images, labels, and lines about what is left out of a folder of class folders."""
    left_out: list[str] = []
    if labels is None and isinstance(images, (str, os.PathLike)):
        images, labels, left_out = class_folders(images)
    images = image_list(images)
    return images, label_array(labels, len(images)), left_out


def _splits(codes: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Returns "train" or "val" for each image; no "val" if the smallest class has too few images for one."""
    splits = np.full(len(codes), "train")
    if np.bincount(codes).min() * fraction >= 1:
        _, held_out = train_test_split(np.arange(len(codes)), test_size=fraction, stratify=codes, random_state=seed)
        splits[held_out] = "val"
    return splits


def _choice(fitted: Fitted, held_out: int) -> str:
    """Returns a line about the choice of the learning rate."""
    if not fitted.validation:
        return f"tuned on all images with learning rate {fitted.learning_rate:g}, chosen without validation"
    scores = ", ".join(f"{rate:g}: {100 * score:.1f} %" for rate, score in fitted.validation.items())
    return (
        f"validation accuracy on {held_out} images by learning rate: {scores}; tuned on all images with "
        f"{fitted.learning_rate:g}"
    )
