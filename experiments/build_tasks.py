"""Clusters unlabeled image-text pairs into the hierarchy from which meta-learning draws its tasks.

    python -m experiments.build_tasks
    python -m experiments.build_tasks --pairs=20000 --workdir=runs/tasks_20000
    python -m experiments.build_tasks --method=random --workdir=runs/tasks_random

Embeds the pairs with the frozen clip, clusters them across both modalities (`gram_jax.tasks.build_hierarchy`), and
writes WORKDIR/hierarchy.safetensors, hierarchy.txt (all themes and classes), hierarchy.png (the largest themes) and
hierarchy.html (all of it, to browse, with sample pairs).
``--method=random`` is the control: random pairs as classes. ``--method=true_groups``, for the glyph corpus only, groups
pairs by the character that they show, which is an upper bound and not a method. ``--features`` reads the features from
a store of experiments.embed_corpus for the same pairs and clip instead of computing them.

Centroids are searched among at most ``--sample`` pairs. Then every pair is assigned to its nearest centroid, block by
block, so that stored features may be larger than memory. The program shows the progress and the seconds of each part.

160,000 pairs take 3 minutes for features, 1 for clustering and 3 s for files on two cores, and 3 GiB. Clustering
1,000,000 pairs with 512 numbers per feature, stored as float16, into 14,000 classes takes 350 s of processor time and 5
GiB. ``--class_text=medoid`` and ``centroid`` use ``--classes``: k-means searches for all of them. A work directory with
the hierarchy of the same settings does not change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import gram_jax as gram
from gram_jax import reporting, runtime, tasks
from gram_jax.array_file import ArrayFileError
from gram_jax.batching import pad_to, padded_batches
from gram_jax.data import Corpus, feature_key, glyphs, load_corpus, open_store
from gram_jax.errors import InputError
from gram_jax.io import keep_older, write_file
from gram_jax.tasks.config import CLASS_TEXTS, METHODS, SAMPLE, ClusteringConfig

from . import _hierarchy_picture
from ._launch import at_least, launch, setting

TRUE_GROUPS = "true_groups"
HIERARCHY, OUTLINE, PICTURE = "hierarchy.safetensors", "hierarchy.txt", "hierarchy.png"
PAGE = "hierarchy.html"


@dataclasses.dataclass(frozen=True)
class Config:
    """The pairs and the settings of clustering."""

    clip: str = setting("mini", 'folder, file, hub name, OpenCLIP MODEL:TAG, or "mini"')
    corpus: str = setting("glyphs", "the corpus")
    pairs: int = setting(160_000, "image-text pairs; 0 for all of a prepared corpus")
    features: str = setting("", "feature store of these pairs, by experiments.embed_corpus; empty: compute features")
    method: str = setting(
        "clusters", "the way to group pairs; random and true_groups are the controls", choices=(*METHODS, TRUE_GROUPS)
    )
    themes: int = setting(120, "themes to search")
    classes: int = setting(0, "classes to search; small or unnamed ones are omitted; 0 for one per 12 pairs")
    class_text: str = setting("keyword", "the text of a class", choices=CLASS_TEXTS)
    domains: int = setting(2, "visual domains of a sufficiently large class")
    min_members: int = setting(6, "smallest number of pairs of a class")
    sample: int = setting(SAMPLE, "largest number of pairs among which centroids are searched")
    batch_size: int = setting(512, "pairs per step")
    seed: int = setting(0, "seed of the corpus and of the clustering")

    def __post_init__(self) -> None:
        at_least(self, 1, "themes", "domains", "min_members", "sample", "batch_size")
        at_least(self, 0, "pairs", "classes")
        groups = self.method == TRUE_GROUPS
        if groups and self.corpus != "glyphs":
            raise InputError(f"--method={TRUE_GROUPS}: the true groups of {self.corpus!r} are unknown; use glyphs")
        if groups and self.class_text != "keyword":
            raise InputError(f"--method={TRUE_GROUPS} names classes itself; omit --class_text={self.class_text}")
        if not groups and self.classes > self.pairs > 0:
            raise InputError(f"--classes={self.classes} of --pairs={self.pairs}: there are fewer pairs than clusters")

    @property
    def clustering(self) -> ClusteringConfig:
        """The settings of `tasks.build_hierarchy`, or of `tasks.from_groups`."""
        names = {field.name for field in dataclasses.fields(ClusteringConfig)} - {"method"}
        method = "clusters" if self.method == TRUE_GROUPS else self.method
        return ClusteringConfig(method=method, **{name: getattr(self, name) for name in names})


def embed(clip: gram.Clip, corpus: Corpus, batch_size: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Returns the frozen image features and text features of a corpus, float32 `[pairs, embed_dim]` each."""
    tokens = clip.tokenizer.encode(corpus.captions, truncate=True)
    size = min(batch_size, len(corpus))
    images, texts = [], []
    with runtime.Progress(len(corpus), "features", unit="pair") as progress:
        for positions, count in padded_batches(np.arange(len(corpus)), size):
            pixels = pad_to(clip.preprocess(corpus.images(positions[:count].tolist())), size)
            images.append(np.asarray(gram.encode_image(clip, pixels))[:count])
            texts.append(np.asarray(gram.encode_text(clip, tokens[positions]))[:count])
            progress.update(count)
    return np.concatenate(images), np.concatenate(texts)


def describe(config: Config, clip: gram.Clip, corpus: Corpus) -> dict[str, Any]:
    """Returns `tasks.Hierarchy.about` of a hierarchy with this configuration."""
    origin = {"corpus": corpus.name, "content_hash": corpus.content_hash, "pairs": len(corpus), "seed": config.seed}
    return (
        origin
        | {"clip": gram.weights_hash(clip.params)}
        | config.clustering.about(len(corpus), groups=config.method == TRUE_GROUPS)
    )


def existing(config: Config, workdir: Any, clip: gram.Clip, corpus: Corpus) -> tasks.Hierarchy | None:
    """Returns the hierarchy in a work directory if it has this configuration."""
    path = workdir / HIERARCHY
    if not path.exists():
        return None
    try:
        hierarchy = tasks.load_hierarchy(path)
    except ArrayFileError as error:
        print(f"building again: {error}")
        return None
    about, expected = hierarchy.about, describe(config, clip, corpus)
    keys = (expected.keys() | about.keys()) - {"corpus"}  # its name may be a path; its content has a hash
    if differing := sorted(key for key in keys if about.get(key) != expected.get(key)):
        older = keep_older(path).name
        print(f"building again: {path} has another {', '.join(differing)}, and is kept as {older}")
        return None
    return hierarchy


def build(
    config: Config, workdir: Any, clip: gram.Clip, corpus: Corpus, features: tuple[Any, Any] | None = None
) -> tasks.Hierarchy:
    """Builds and writes the hierarchy of a configuration, or reads it; `features` is a shared result of `embed`."""
    hierarchy = existing(config, workdir, clip, corpus)
    if hierarchy is not None:
        print(f"{workdir / HIERARCHY} exists with the same pairs, clip and settings; nothing to do")
        if not (workdir / PAGE).exists():
            reporting.pages.hierarchy_page(hierarchy, corpus, workdir / PAGE)
        return hierarchy
    if features is None:
        with _stage("features"):
            if config.features:  # read block by block when they are needed
                store = open_store(config.features, feature_key(clip, corpus))
                features = store.images, store.texts
            else:
                features = embed(clip, corpus, config.batch_size)
    with _stage("clustering"), _progress() as report:
        settings = {"about": describe(config, clip, corpus), "report": report}
        if config.method == TRUE_GROUPS:
            groups = glyphs.true_groups(corpus.references, config.seed)
            hierarchy = tasks.from_groups(*groups, *features, config.clustering, **settings)
        else:
            hierarchy = tasks.build_hierarchy(corpus.captions, *features, config.clustering, clip=clip, **settings)
        hierarchy = _with_text_features(hierarchy, clip)
    with _stage("files"):
        write_file(workdir / OUTLINE, tasks.outline(hierarchy) + "\n")
        _hierarchy_picture.draw(hierarchy, corpus, workdir / PICTURE)
        reporting.pages.hierarchy_page(hierarchy, corpus, workdir / PAGE)
        tasks.save_hierarchy(workdir / HIERARCHY, hierarchy)  # last, because it marks the directory as complete
    return hierarchy


def _with_text_features(hierarchy: tasks.Hierarchy, clip: gram.Clip) -> tasks.Hierarchy:
    """Adds the features of the class texts, which meta-training then need not compute when it starts."""
    try:
        features = tasks.text_features(hierarchy, tasks.centroid_clip(clip, hierarchy))
    except InputError as error:
        print(f"without features of the class texts, which meta-training with this clip needs: {error}")
        return hierarchy
    return dataclasses.replace(hierarchy, text_features=features)


def summary(hierarchy: tasks.Hierarchy, pairs: int) -> str:
    """Returns the sizes of a hierarchy, and some classes of its largest themes."""
    h = hierarchy
    per_theme = np.bincount(h.themes, minlength=len(h.theme_texts))
    members, kept = np.bincount(h.classes), len(h.members)
    lines = [
        f"{len(h.theme_texts)} themes of {per_theme.min()} to {per_theme.max()} classes",
        f"{len(h.texts)} classes of {members.min()} to {members.max()} pairs, median {np.median(members):g}",
        f"{kept} of {pairs} pairs kept ({100 * kept / pairs:.0f} %)",
    ]
    for theme in np.argsort(-per_theme, kind="stable")[:5]:
        texts = [h.texts[number] for number in np.flatnonzero(h.themes == theme)]
        lines.append(f"  {h.theme_texts[theme]}: {', '.join(texts[:: max(1, len(texts) // 6)][:6])}, ...")
    return "\n".join(lines)


def run(config: Config, workdir: Any) -> None:
    """Builds the hierarchy and prints a summary."""
    clip = gram.load_clip(config.clip)
    with _stage("corpus"):
        corpus = load_corpus(config.corpus, pairs=config.pairs, seed=config.seed)
    print(summary(build(config, workdir, clip, corpus), len(corpus)))
    print(f"{HIERARCHY}, {OUTLINE}, {PICTURE} and {PAGE} in {workdir}")


@contextlib.contextmanager
def _progress() -> Iterator[tasks.clustering.Report]:
    """Yields a report function that shows the progress of each part of the clustering, and its seconds."""
    shown, running, progress = contextlib.ExitStack(), None, None

    def report(part: str, done: int, total: int) -> None:
        nonlocal running, progress
        if part != running:
            shown.close()
            shown.enter_context(_stage(f"  {part}"))
            running = part
            progress = shown.enter_context(runtime.Progress(total, part, unit="pair")) if total else None
        if progress is not None:
            progress.update(done - progress.done)

    with shown:
        yield report


@contextlib.contextmanager
def _stage(name: str) -> Iterator[None]:
    begin = time.monotonic()
    yield
    print(f"{name}: {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    launch(run, Config)
