"""The glyph benchmark as TFDS datasets: array_record files with PNG images, written and read without TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from gram_jax.data.glyphs import faces
from gram_jax.data.glyphs.datasets import catalog
from gram_jax.data.glyphs.drawing import IMAGE_SIZE, encode_png
from gram_jax.data.glyphs.examples import SPLIT_SIZES, labeled
from gram_jax.data.glyphs.pairs import pair
from gram_jax.errors import require_int

_IMAGE = {"shape": (IMAGE_SIZE, IMAGE_SIZE, 3), "encoding_format": "png"}


@dataclasses.dataclass
class CorpusConfig(tfds.core.BuilderConfig):
    """The number of pairs and the seed."""

    pairs: int = 100_000
    seed: int = 0


@dataclasses.dataclass
class LabeledConfig(tfds.core.BuilderConfig):
    """The labeled dataset, its domain and the seed."""

    dataset: str = "greek_small"
    domain: str = ""
    seed: int = 0


class GlyphCorpus(tfds.core.GeneratorBasedBuilder):
    """Image-text pairs: characters drawn in many typefaces and renderings, under captions made from their names."""

    name = "glyph_corpus"
    VERSION = tfds.core.Version("1.0.0")
    builder_config: CorpusConfig

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(**_IMAGE),
            "caption": tfds.features.Text(),
            # The facts behind the pair, for upper bounds and tests; no learner reads them.
            "truth": {
                "code": tfds.features.Scalar(np.int64),
                **{name: tfds.features.Text() for name in ("kind", "face", "rendering", "caption_sort")},
            },
        }
        return _info(self, features, {"pairs": self.builder_config.pairs, "seed": self.builder_config.seed})

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(self.builder_config.pairs):
            drawn = pair(index, self.builder_config.seed)
            truth = {"code": drawn.character.code, "kind": drawn.character.family, "caption_sort": drawn.sort}
            truth |= {"face": drawn.appearance.face, "rendering": drawn.appearance.rendering}
            yield index, {"image": encode_png(drawn.image), "caption": drawn.caption, "truth": truth}


class GlyphLabeled(tfds.core.GeneratorBasedBuilder):
    """Labeled images of one glyph dataset in one visual domain."""

    name = "glyph_labeled"
    VERSION = tfds.core.Version("1.0.0")
    builder_config: LabeledConfig

    def _info(self) -> tfds.core.DatasetInfo:
        entry = catalog(self.builder_config.dataset)
        label = tfds.features.ClassLabel(names=list(entry.class_names))
        features = {"image": tfds.features.Image(**_IMAGE), "label": label}
        metadata = {"template": entry.template, "domain": self.builder_config.domain, "seed": self.builder_config.seed}
        return _info(self, features, metadata)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in SPLIT_SIZES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        dataset = labeled(config.dataset, config.domain, config.seed)
        for number, position in enumerate(dataset.select(split)):
            (image,) = dataset.images([position])
            yield number, {"image": encode_png(image), "label": int(dataset.labels[position])}


def _info(builder: Any, features: dict[str, Any], metadata: dict[str, Any]) -> tfds.core.DatasetInfo:
    """Returns the dataset's information, including the hashes of the fonts."""
    return tfds.core.DatasetInfo(
        builder=builder,
        description=type(builder).__doc__,
        features=tfds.features.FeaturesDict(features),
        metadata=tfds.core.MetadataDict({**metadata, "fonts": faces.record()["fonts"]}),
        disable_shuffling=True,  # record i is draw i
    )


def build_corpus(data_dir: str | os.PathLike[str], pairs: int = 100_000, seed: int = 0) -> Sequence[dict[str, Any]]:
    """Builds the corpus unless it exists, and opens it; items hold `image`, uint8 `[32, 32, 3]`, `caption`, `truth`."""
    require_int("pairs", pairs)
    config = CorpusConfig(name=f"pairs_{pairs}_seed_{seed}", pairs=pairs, seed=seed)
    return _build(GlyphCorpus, config, data_dir)["train"]


def build_labeled(
    dataset: str, data_dir: str | os.PathLike[str], domain: str = "", seed: int = 0
) -> dict[str, Sequence[dict[str, Any]]]:
    """Builds a labeled dataset unless it exists, and opens its splits; items hold `image` and `label`."""
    labeled(dataset, domain, seed)
    readable = "".join(letter if letter.isalnum() else "-" for letter in domain) or "print"
    config = LabeledConfig(name=f"{dataset}-{readable}-seed_{seed}", dataset=dataset, domain=domain, seed=seed)
    return _build(GlyphLabeled, config, data_dir)


def _build(
    builder_class: Any, config: CorpusConfig | LabeledConfig, data_dir: str | os.PathLike[str]
) -> dict[str, Any]:
    builder = builder_class(config=config, data_dir=os.fspath(data_dir), file_format="array_record")
    # Only array_record files can be written and read without TensorFlow.
    tfds.disable_progress_bar()  # it would draw into log files
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS tells of a download, and there is none
        builder.download_and_prepare(file_format="array_record")
    return builder.as_data_source()
