"""A classifier as a StableHLO program, weights included, that JAX alone runs."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import export
from jax.extend.core import jaxpr_as_fun

from gram_jax.array_file import ArrayFileError
from gram_jax.clip import ImageTransform
from gram_jax.errors import InputError
from gram_jax.evaluation.scoring import Scorer
from gram_jax.export.card import CARD, describe
from gram_jax.export.program import symbolic_images, traced
from gram_jax.io import PathLike, read_json, write_file, write_json

PROGRAM = "classifier.stablehlo"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


class Exported(NamedTuple):
    """A classifier from `load_exported`: `exported(exported.preprocess(["a.jpg"]))` are its probabilities.

    Attributes:
      program: the `jax.export.Exported`, float32 `[images, size, size, 3]` to float32 `[images, classes]`.
      card: the content of classifier.json.
    """

    program: export.Exported
    card: dict[str, Any]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names, in the order of the probabilities."""
        return tuple(self.card["class_names"])

    def preprocess(self, images: Any) -> np.ndarray:
        """Returns the program's input of images in the forms that `Clip.preprocess` accepts."""
        return ImageTransform.from_hf(self.card["preprocessing"])(images)

    def __call__(self, pixels: Any) -> jax.Array:
        """Returns probabilities `[images, classes]` of preprocessed images `[images, size, size, 3]`."""
        size = self.card["image_size"]
        shape, dtype = jnp.shape(pixels), jnp.result_type(pixels)
        if len(shape) != 4 or shape[1:] != (size, size, 3) or not shape[0] or not jnp.issubdtype(dtype, jnp.floating):
            raise InputError(
                f"images are {dtype}{list(shape)}; this classifier needs floats [1 or more, {size}, {size}, 3] from "
                "preprocess"
            )
        return self.program.call(jnp.asarray(pixels, jnp.float32))


def save_stablehlo(folder: PathLike, scorer: Scorer) -> None:
    """Writes classifier.stablehlo, a program of `jax.export` for CPU, GPU and TPU, and classifier.json.

    The program holds the weights and takes any number of images. Its input is the output of `clip.preprocess`; reading
    and resizing images is not part of it.

    Args:
      folder: the folder; made if it does not exist.
      scorer: the classifier, from `evaluation.make_scorer`.

    Example:
      >>> import tempfile
      >>> from gram_jax import tuners
      >>> from gram_jax.evaluation import make_scorer
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner, folder = tiny_clip(vision_layers=1), tuners.coop(), tempfile.mkdtemp()
      >>> scorer = make_scorer(tuner, tuner.init(jax.random.key(0), clip, None), clip, ["cat", "dog"])
      >>> save_stablehlo(folder, scorer)
      >>> exported = load_exported(folder)
      >>> exported(exported.preprocess([np.zeros((20, 30, 3), np.uint8)])).shape, exported.class_names
      ((1, 2), ('cat', 'dog'))
    """
    card = describe(scorer)
    images = symbolic_images(scorer.clip)
    function = jaxpr_as_fun(traced(scorer, images))
    program = export.export(jax.jit(lambda images: function(images)[0]), platforms=PLATFORMS)(images)
    write_file(epath.Path(folder) / PROGRAM, bytes(program.serialize()))
    write_json(epath.Path(folder) / CARD, card)


def load_exported(folder: PathLike) -> Exported:
    """Returns a classifier that `save_stablehlo` or `experiments.export` wrote.

    Args:
      folder: the folder of classifier.stablehlo and classifier.json.
    """
    path = epath.Path(folder) / PROGRAM
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a folder that experiments.export wrote")
    card = read_json(epath.Path(folder) / CARD)
    try:
        program = export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # the reader of flat buffers raises errors of every type
        raise ArrayFileError(f"{path} is not a complete program ({error}); export it again") from error
    return Exported(program, card)
