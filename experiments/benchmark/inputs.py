"""The inputs of the workloads: a clip with random weights, sizes, tuners, batches, and a corpus on disk."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import gram_jax as gram
from gram_jax import tasks, tuners
from gram_jax.batching import map_batches
from gram_jax.clip import Classes, Clip, ClipConfig, TextConfig, VisionConfig, encode_image, init_params
from gram_jax.clip.classes import Layout, Tail, fit_rows, pack_classes, tails_of
from gram_jax.data import load_corpus
from gram_jax.data.pairs import prepared, shards
from gram_jax.data.pairs.reading import Reading, plan_units
from gram_jax.testing import tiny_clip

Array = jax.Array
Batch = dict[str, Any]

NAMES = Path(__file__).with_name("name_tokens.json")  # of published datasets, in CLIP's own vocabulary
_LARGE_TEXT = TextConfig(width=768, heads=12, mlp_width=3072)
_LARGE_VISION = VisionConfig(width=1024, layers=24, heads=16, mlp_width=4096, patch_size=14)
CLIPS: dict[str, Callable[[], ClipConfig]] = {
    "vit_b16": lambda: ClipConfig(vision=VisionConfig(patch_size=16)),
    "vit_b32": ClipConfig,
    "vit_l14": lambda: ClipConfig(text=_LARGE_TEXT, vision=_LARGE_VISION, embed_dim=768),
    "mini": lambda: gram.load_clip("mini").config,
}
# Hyper-parameters of the steps, the same for all sides.
RATE, INNER_RATE = 2e-3, 0.1
TEST_TIME_RATE, CONFIDENT, DECAY = 5e-3, 0.1, 1e-2


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the workloads; `name_tokens` is the longest made-up name, `sample` the pairs per k-means centroid."""

    classes: int = 100
    many_classes: int = 1000
    class_chunk: int = 25
    name_tokens: int = 3
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
    sample: int = 256
    photos: int = 160
    product: int = 2048


SMALL = Sizes(
    classes=6, many_classes=9, class_chunk=3, context=2, visual=2, depth=2, batch=3, deep_batch=2, tasks=2, ways=3,
    shots=2, views=10, pairs=500, clusters=8, sample=20, feature_dim=16, photos=72, product=32,
)  # fmt: skip


class Setup(NamedTuple):
    """The clip, the sizes and a folder for files, which all workloads share."""

    clip: Clip
    sizes: Sizes
    folder: Path


class Problem(NamedTuple):
    """A step to compute: a tuner with its initial prompt, and batches {"classes", "images", "labels"} by name.

    A meta step has the batches "support", "same" and "cross", stacked over tasks, its number of inner `steps`, and a
    `gradient`, "exact" or "first_order"; other steps have "support" only. Images are pixels.
    """

    tuner: tuners.Tuner
    prompt: Any
    batches: dict[str, Batch]
    steps: int = 0
    gradient: str = ""


def random_clip(size: str, **settings: Any) -> Clip:
    """Returns a clip of a published size with random weights, without a tokenizer; `settings` are of `ClipConfig`."""
    config = dataclasses.replace(CLIPS[size](), **settings)
    return Clip(jax.jit(init_params, static_argnums=1)(jax.random.key(0), config), config)


def make_setup(
    clip_size: str,
    small: bool,
    pairs: int,
    folder: Path,
    many_classes: int = Sizes.many_classes,
    unroll: int = ClipConfig.unroll,
) -> Setup:
    """Returns the clip and the sizes; `small` is for tests."""
    if small:
        return Setup(tiny_clip().replace(tokenizer=None, transform=None), SMALL, folder)
    sizes = Sizes(
        pairs=pairs, many_classes=many_classes, product=Sizes.product if jax.default_backend() == "cpu" else 8192
    )
    clip = random_clip(clip_size, unroll=unroll, logit_scale_init=math.log(100.0))  # the scale of trained CLIPs
    return Setup(clip, sizes, folder)


def make_classes(rng: np.random.Generator, config: TextConfig, *shape: int, name_tokens: int) -> Classes:
    """Returns class names of one to `name_tokens` random tokens; the last axis of `shape` counts the classes."""
    place = np.arange(name_tokens + 2)  # name . [EOS]
    lengths = rng.integers(1, name_tokens + 1, shape)
    lengths[..., 0] = name_tokens
    tokens = rng.integers(2, config.vocab_size // 2, (*shape, len(place)))
    tail = np.where(place < lengths[..., None], tokens, _end_token(config))
    return _pack(rng, config, np.where(place == lengths[..., None], 1, tail), lengths)


def read_names(name: str) -> list[Tail]:
    """Returns the class names of a published dataset, each as the tokens of the name and its full stop."""
    return [tuple(tokens) for tokens in json.loads(NAMES.read_text())[name]]


def listed_classes(rng: np.random.Generator, config: TextConfig, name: str, count: int) -> Classes:
    """Returns the first class names of a published dataset; a small vocabulary replaces tokens that it lacks."""
    names = read_names(name)[:count]
    tail = np.full((len(names), max(map(len, names)) + 1), _end_token(config))
    for row, tokens in zip(tail, names, strict=True):
        row[: len(tokens)] = [t if t < config.vocab_size - 2 else 2 + t % (config.vocab_size // 2) for t in tokens]
    return _pack(rng, config, tail, np.array([len(tokens) - 1 for tokens in names]))


def _end_token(config: TextConfig) -> int:
    return config.vocab_size - 1 if config.eos_rule == "highest" else config.eos_token_id


def _pack(rng: np.random.Generator, config: TextConfig, tail: np.ndarray, lengths: np.ndarray) -> Classes:
    """Returns classes from their names with full stop and end, `[..., classes, tokens]`, and the names' lengths."""
    shape = lengths.shape
    start = np.full((*shape, 1), config.vocab_size - 2)
    ids = np.concatenate([start, rng.integers(2, config.vocab_size // 2, (*shape, 4)), tail], axis=-1)
    # One task or several, whose rows have the same shapes.
    arrays = [
        array.reshape(-1, *array.shape[len(shape) - 1 :]) for array in (ids, lengths + 6, tail, lengths, lengths + 1)
    ]
    length, rows = fit_rows([tails_of(*each) for each in zip(arrays[2], arrays[4], strict=True)])
    packed = [pack_classes(*each, Layout(length, rows)) for each in zip(*arrays, strict=True)]
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves).reshape(*shape[:-1], *leaves[0].shape)), *packed)


def make_images(rng: np.random.Generator, config: VisionConfig, *shape: int) -> Array:
    """Returns random transformed images, `[*shape, size, size, channels]`."""
    return jnp.asarray(rng.standard_normal((*shape, config.image_size, config.image_size, config.channels), np.float32))


def make_tuner(name: str, setup: Setup) -> tuners.Tuner:
    """Returns a tuner with prompts of the benchmark's sizes, as deep as the clip allows."""
    sizes, config = setup.sizes, setup.clip.config
    depth = min(sizes.depth, config.vision.layers)
    if name == "vpt":
        return tuners.vpt(num_tokens=sizes.visual, depth=depth)
    if name == "ivlp":
        depth = min(depth, config.text.layers)
        return tuners.ivlp(num_text=sizes.context, num_visual=sizes.visual, depth=depth, init_text=None)
    return tuners.make(name, num_tokens=sizes.context, init_text=None)


def one_batch(name: str, setup: Setup, images: int, classes: int, listed: str = "") -> Problem:
    """Returns a tuner's problem on one batch with the given numbers of images and classes.

    The classes are the first ones of the published dataset `listed`, or have made-up names.
    """
    rng, config = np.random.default_rng(1), setup.clip.config
    if listed:
        names = listed_classes(rng, config.text, listed, classes)
    else:
        names = make_classes(rng, config.text, classes, name_tokens=setup.sizes.name_tokens)
    labels = jnp.asarray(rng.integers(0, classes, images), jnp.int32)
    batch = {"classes": names, "images": make_images(rng, config.vision, images), "labels": labels}
    return _problem(name, setup, {"support": batch})


def episodic(name: str, steps: int, gradient: str, setup: Setup) -> Problem:
    """Returns a tuner's problem on stacked tasks, with a query like the support and one with other classes."""
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
    return _problem(name, setup, batches, steps, gradient)


def _problem(name: str, setup: Setup, batches: dict[str, Batch], steps: int = 0, gradient: str = "") -> Problem:
    tuner = make_tuner(name, setup)
    return Problem(tuner, tuner.init(jax.random.key(2), setup.clip, None), batches, steps, gradient)


def with_features(setup: Setup, problem: Problem) -> dict[str, Batch]:
    """Returns the batches with frozen image features, computed once, if the tuner does not need pixels."""
    given = problem.batches["support"]["images"].shape  # pixels end in height, width and channels
    if problem.tuner.needs_pixels or given[-1] == setup.clip.config.embed_dim:
        return problem.batches

    def features(images: Array) -> Array:
        flat = np.asarray(images).reshape(-1, *images.shape[-3:])
        encoded = map_batches(lambda batch: encode_image(setup.clip, batch), flat, 32)
        return jnp.asarray(encoded).reshape(*images.shape[:-3], -1)

    return {name: batch | {"images": features(batch["images"])} for name, batch in problem.batches.items()}


def corpus_on_disk(setup: Setup) -> tuple[Any, tasks.Hierarchy]:
    """Returns a prepared corpus of photo-sized JPEG files and its hierarchy; writes it once."""
    count, classes = setup.sizes.photos, 2 * setup.sizes.ways
    dataset = setup.folder / f"corpus_of_{count}"
    if not (dataset / prepared.MANIFEST).exists():
        photos = setup.folder / "photos"
        photos.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(5)
        for number in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (38, 50, 3), np.uint8))
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(photos / f"{number:06d}.jpg", quality=90)
            (photos / f"{number:06d}.txt").write_text(f"a photo of kind {number % classes}")
        (unit,) = plan_units(f"folder:{photos}", Reading(unit_pairs=count))
        shards.write_shard(setup.folder / "00000", unit, max_pixels=10**6)
        prepared.publish(dataset, [setup.folder / "00000"], name="photos", source="benchmark")
    corpus = load_corpus(f"array_record:{dataset}", pairs=0)
    features = np.random.default_rng(6).standard_normal((count, 8)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    names = [caption.removeprefix("a photo of ") for caption in corpus.captions]
    return corpus, tasks.from_groups(["kinds"] * count, names, features, features, tasks.ClusteringConfig(domains=1))
