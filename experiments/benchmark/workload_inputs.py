"""What the workloads of `experiments.benchmark` are computed on: a clip with random weights, prompts, batches."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gram_jax as gram
from gram_jax import tasks, tuners
from gram_jax.clip import ClipConfig, TextConfig, VisionConfig, encode_image
from gram_jax.clip.model import Clip, init_params
from gram_jax.clip.tokenizer import Classes
from gram_jax.testing import tiny_clip

Array = jax.Array
Batch = dict[str, Any]

CLIP_SIZES = ("mini", "vit_b32", "vit_b16")
_SCALE = math.log(100.0)  # where the logit scale of trained CLIPs stands
_PHOTO = (500, 375)  # pixels of the images on disk


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large the workloads are."""

    classes: int = 100
    many_classes: int = 1000
    class_chunk: int = 25
    name_tokens: int = 3  # of the longest class name
    context: int = 4
    visual: int = 4
    depth: int = 9
    batch: int = 32
    deep_batch: int = 4
    tasks: int = 8
    ways: int = 5
    shots: int = 4
    queries: int = 1
    cross_queries: int = 2
    views: int = 64
    pairs: int = 1_000_000
    clusters: int = 1000
    feature_dim: int = 512
    sample: int = 256  # pairs for each centroid that k-means looks at
    photos: int = 160
    product: int = 2048


SMALL = Sizes(
    classes=6, many_classes=9, class_chunk=3, context=2, visual=2, depth=2, batch=3, deep_batch=2, tasks=2, ways=3,
    shots=2, views=10, pairs=500, clusters=8, sample=20, feature_dim=16, photos=72, product=32,
)  # fmt: skip


class Setup(NamedTuple):
    """What all workloads share: the clip, their sizes, and a folder for files."""

    clip: Clip
    sizes: Sizes
    folder: Path


class Problem(NamedTuple):
    """What is to be computed, however that is done.

    Attributes:
      tuner: the tuner.
      prompt: where it starts.
      batches: {"classes", "images", "labels"} each, of a meta step stacked on an axis of tasks: "support", "same" and
        "cross"; of other steps "support" alone. Images are pixels.
      steps: inner steps of a meta step, and how it is differentiated.
    """

    tuner: tuners.Tuner
    prompt: Any
    batches: dict[str, Batch]
    steps: int = 0
    gradient: str = ""


def make_setup(clip_size: str, small: bool, pairs: int, folder: Path) -> Setup:
    """The clip, with random weights, and the sizes; `small` is for tests."""
    if small:
        return Setup(tiny_clip().replace(tokenizer=None, transform=None), SMALL, folder)
    config = {"vit_b32": ClipConfig(), "vit_b16": ClipConfig(vision=VisionConfig(patch_size=16))}.get(clip_size)
    config = gram.load_clip("mini").config if config is None else config
    config = dataclasses.replace(config, logit_scale_init=_SCALE)
    clip = Clip(jax.jit(init_params, static_argnums=1)(jax.random.key(0), config), config)
    accelerated = jax.default_backend() != "cpu"
    return Setup(clip, Sizes(pairs=pairs, product=8192 if accelerated else Sizes.product), folder)


def make_classes(rng: np.random.Generator, config: TextConfig, *shape: int, name_tokens: int) -> Classes:
    """Class names of one to `name_tokens` random tokens; `shape` ends in their number."""
    end = config.vocab_size - 1 if config.eos_rule == "highest" else config.eos_token_id
    width = name_tokens + 2  # name . [EOS]
    lengths = rng.integers(1, name_tokens + 1, shape)
    lengths[..., 0] = name_tokens
    place = np.arange(width)
    tail = np.where(place < lengths[..., None], rng.integers(2, config.vocab_size // 2, (*shape, width)), end)
    tail = np.where(place == lengths[..., None], 1, tail)
    start = np.full((*shape, 1), config.vocab_size - 2)
    ids = np.concatenate([start, rng.integers(2, config.vocab_size // 2, (*shape, 4)), tail], axis=-1)
    arrays = (ids, lengths + 6, tail, lengths, lengths + 1)
    return Classes(*(jnp.asarray(array, jnp.int32) for array in arrays))


def make_images(rng: np.random.Generator, config: VisionConfig, *shape: int) -> Array:
    """Random images as a transform leaves them, `[*shape, size, size, channels]`."""
    return jnp.asarray(rng.standard_normal((*shape, config.image_size, config.image_size, config.channels), np.float32))


def coop(setup: Setup) -> tuners.Tuner:
    """A free context in front of the class names."""
    return tuners.coop(num_tokens=setup.sizes.context)


def cocoop(setup: Setup) -> tuners.Tuner:
    """A context that every image shifts."""
    return tuners.cocoop(num_tokens=setup.sizes.context, init_text=None)


def vpt(setup: Setup) -> tuners.Tuner:
    """Visual prompts, as deep as the clip allows."""
    sizes = setup.sizes
    return tuners.vpt(num_tokens=sizes.visual, depth=min(sizes.depth, setup.clip.config.vision.layers))


def ivlp(setup: Setup) -> tuners.Tuner:
    """Textual and visual prompts, as deep as the clip allows: the tuner under UNIGRAM."""
    sizes, config = setup.sizes, setup.clip.config
    depth = min(sizes.depth, config.text.layers, config.vision.layers)
    return tuners.ivlp(num_text=sizes.context, num_visual=sizes.visual, depth=depth, init_text=None)


def single(setup: Setup, tuner: tuners.Tuner, images: int, classes: int) -> Problem:
    """One batch of so many images and classes."""
    rng, config = np.random.default_rng(1), setup.clip.config
    names = make_classes(rng, config.text, classes, name_tokens=setup.sizes.name_tokens)
    labels = jnp.asarray(rng.integers(0, classes, images), jnp.int32)
    batch = {"classes": names, "images": make_images(rng, config.vision, images), "labels": labels}
    return Problem(tuner, tuner.init(jax.random.key(2), setup.clip, None), {"support": batch})


def episodic(setup: Setup, tuner: tuners.Tuner, steps: int, gradient: str) -> Problem:
    """Stacked tasks, with a query that is like the support and one of other classes."""
    rng, config, sizes = np.random.default_rng(3), setup.clip.config, setup.sizes

    def batch(shots: int) -> Batch:
        count = sizes.ways * shots
        return {
            "classes": make_classes(rng, config.text, sizes.tasks, sizes.ways, name_tokens=sizes.name_tokens),
            "images": make_images(rng, config.vision, sizes.tasks, count),
            "labels": jnp.tile(jnp.repeat(jnp.arange(sizes.ways, dtype=jnp.int32), shots), (sizes.tasks, 1)),
        }

    support, same, cross = batch(sizes.shots), batch(sizes.queries), batch(sizes.cross_queries)
    batches = {"support": support, "same": same | {"classes": support["classes"]}, "cross": cross}
    return Problem(tuner, tuner.init(jax.random.key(2), setup.clip, None), batches, steps, gradient)


def as_tuner_takes(setup: Setup, problem: Problem) -> dict[str, Batch]:
    """The batches with frozen image features, computed once, where the tuner needs no pixels."""
    if problem.tuner.needs_pixels:
        return problem.batches

    def features(images: Array) -> Array:
        flat = images.reshape(-1, *images.shape[-3:])
        parts = [encode_image(setup.clip, flat[i : i + 32]) for i in range(0, len(flat), 32)]
        return jnp.concatenate(parts).reshape(*images.shape[:-3], -1)

    return {name: batch | {"images": features(batch["images"])} for name, batch in problem.batches.items()}


def corpus_on_disk(setup: Setup) -> tuple[Any, tasks.Hierarchy]:
    """A prepared corpus of photo-sized JPEG files, and a hierarchy of it."""
    from PIL import Image

    from gram_jax.data import load_corpus
    from gram_jax.data.pairs import prepared as pair_dataset
    from gram_jax.data.pairs import shards as pair_shards
    from gram_jax.data.pairs.reading import Reading, plan_units

    count, classes = setup.sizes.photos, 2 * setup.sizes.ways
    dataset = setup.folder / f"corpus_of_{count}"
    if not (dataset / pair_dataset.MANIFEST).exists():
        photos = setup.folder / "photos"
        photos.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(5)
        for number in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (38, 50, 3), np.uint8))
            coarse.resize(_PHOTO, Image.Resampling.BICUBIC).save(photos / f"{number:06d}.jpg", quality=90)
            (photos / f"{number:06d}.txt").write_text(f"a photo of kind {number % classes}")
        (unit,) = plan_units(f"folder:{photos}", Reading(unit_pairs=count))
        pair_shards.write_shard(setup.folder / "00000", unit, max_pixels=10**6)
        pair_dataset.publish(dataset, [setup.folder / "00000"], name="photos", source="benchmark")
    corpus = load_corpus(f"array_record:{dataset}", pairs=0)
    features = np.random.default_rng(6).standard_normal((count, 8)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    names = [caption.removeprefix("a photo of ") for caption in corpus.captions]
    return corpus, tasks.from_groups(["kinds"] * count, names, features, features, domains=1)
