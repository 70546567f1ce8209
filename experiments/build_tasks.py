"""From unlabeled image-text pairs to the hierarchy that meta-learning draws its tasks from.

    python -m experiments.build_tasks
    python -m experiments.build_tasks --pairs=20000 --workdir=runs/tasks_20000
    python -m experiments.build_tasks --method=random --workdir=runs/tasks_random

Embeds the pairs with the frozen clip, clusters them across both modalities (`gram_jax.tasks.build_hierarchy`), and
writes WORKDIR/hierarchy.safetensors, hierarchy.txt (all themes and classes) and hierarchy.png (the largest themes).
``--method=random`` is the control: random pairs as classes. ``--method=true_groups``, for the glyphs alone, groups
pairs by the character that they show: the ceiling, never the method. ``--features`` takes the features from a store
that experiments.embed_corpus wrote of the same pairs and the same clip, instead of computing them.

Centroids are looked for among ``--sample`` pairs at most; then every pair is given to its nearest one, block by block,
so that the features of a store may be larger than memory. Each part is shown with its progress and its seconds.

80,000 pairs take 90 s for features, 46 s for the clustering and 3 s for files on two cores, and 3 GiB. The clustering
of 1,000,000 pairs with 512 numbers a feature, kept on disk as halves, into 14,000 classes takes 350 s of processor time
and 5 GiB; a tenth as many take 160 s. With ``--class_text=medoid`` or ``centroid`` give ``--classes``: k-means looks
for all of them. A work directory that already holds the hierarchy of the same settings is left as it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import gram_jax as gram
from gram_jax import evaluation, runtime
from gram_jax.array_file import ArrayFileError
from gram_jax.clip import Clip
from gram_jax.data import Corpus, feature_key, glyphs, load_corpus, open_store
from gram_jax.errors import InputError
from gram_jax.tasks import Hierarchy, build_hierarchy, from_groups, load_hierarchy, outline, save_hierarchy
from gram_jax.tasks.build import CLASS_TEXTS, METHODS, about_sample
from gram_jax.tasks.clustering import SAMPLE, Watch

from . import _hierarchy_picture
from ._launch import at_least, launch, setting

TRUE_GROUPS = "true_groups"
HIERARCHY, OUTLINE, PICTURE = "hierarchy.safetensors", "hierarchy.txt", "hierarchy.png"


@dataclasses.dataclass(frozen=True)
class Config:
    """Which pairs are clustered, and how."""

    clip: str = setting("mini", 'a folder, a hub name, or "mini"')
    corpus: str = setting("glyphs", "the corpus")
    pairs: int = setting(80000, "image-text pairs; 0 for all of a prepared corpus")
    features: str = setting("", "feature store of these pairs, by experiments.embed_corpus; empty: computed here")
    method: str = setting(
        "clusters", "how pairs are grouped; random and true_groups are the controls", choices=(*METHODS, TRUE_GROUPS)
    )
    themes: int = setting(120, "themes that are looked for")
    classes: int = setting(
        0, "classes that are looked for; those too small or without a phrase fall out; 0 for one to 12 pairs"
    )
    class_text: str = setting("keyword", "what a class is called", choices=CLASS_TEXTS)
    domains: int = setting(2, "visual domains of a class that is large enough")
    min_members: int = setting(6, "pairs of a class, at least")
    sample: int = setting(SAMPLE, "pairs that centroids are looked for among, at most")
    batch_size: int = setting(512, "pairs a step")
    seed: int = setting(0, "seed of the corpus and of the clustering")

    def __post_init__(self) -> None:
        at_least(self, 1, "themes", "domains", "min_members", "sample", "batch_size")
        at_least(self, 0, "pairs")
        if self.method == TRUE_GROUPS and self.corpus != "glyphs":
            raise InputError(f"--method={TRUE_GROUPS}: nobody knows the true groups of {self.corpus!r}, only of glyphs")
        if self.method == TRUE_GROUPS and self.class_text != "keyword":
            raise InputError(f"--method={TRUE_GROUPS} calls classes by their names; leave --class_text out")
        if self.method != TRUE_GROUPS and self.classes > self.pairs > 0:
            raise InputError(f"--classes={self.classes} of --pairs={self.pairs}: there are fewer pairs than clusters")


class _Watched:
    """The images of a corpus, read one by one while the progress is shown."""

    def __init__(self, corpus: Corpus, progress: runtime.Progress):
        self._corpus, self._progress = corpus, progress

    def __len__(self) -> int:
        return len(self._corpus)

    def __getitem__(self, position: int) -> Any:
        self._progress.update()
        return self._corpus.images([position])[0]


def embed(clip: Clip, corpus: Corpus, batch_size: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """The frozen features of a corpus.

    Args:
      clip: the clip.
      corpus: the pairs.
      batch_size: pairs a step.

    Returns:
      Image features and text features, float32 `[pairs, embed_dim]` each, normalized. Captions longer than the clip's
      context are cut.
    """
    with runtime.Progress(len(corpus), "images", unit="image") as progress:
        images = evaluation.image_features(clip, _Watched(corpus, progress), batch_size)
    tokens = clip.tokenizer.encode(corpus.captions, truncate=True)
    size = min(batch_size, len(tokens))
    texts = []
    with runtime.Progress(len(corpus), "captions", unit="caption") as progress:
        for start in range(0, len(tokens), size):
            part = tokens[start : start + size]
            filled = np.pad(part, ((0, size - len(part)), (0, 0)), mode="edge")  # one compiled step serves all
            texts.append(np.asarray(gram.encode_text(clip, filled))[: len(part)])
            progress.update(len(part))
    return images, np.concatenate(texts)


def describe(config: Config, clip: Clip, corpus: Corpus) -> dict[str, Any]:
    """What `Hierarchy.about` says of a hierarchy of this configuration."""
    names, sampled = ["domains", "min_members", "seed"], {}
    if config.method != TRUE_GROUPS:
        names += ["themes", "classes", "class_text"]
        sampled = about_sample(config.sample, len(corpus))
    return {
        "corpus": corpus.name,
        "content_hash": corpus.content_hash,
        "pairs": len(corpus),
        "seed": config.seed,
        "clip": gram.weights_hash(clip.params),
        "method": "groups" if config.method == TRUE_GROUPS else config.method,
        "settings": {name: getattr(config, name) for name in names} | sampled,
    }


def existing(config: Config, workdir: Any, clip: Clip, corpus: Corpus) -> Hierarchy | None:
    """The hierarchy that a work directory holds already, if it is the one that is asked for."""
    path = workdir / HIERARCHY
    if not path.exists():
        return None
    try:
        found = load_hierarchy(path)
    except ArrayFileError as error:
        print(f"built again: {error}")
        return None
    expected = describe(config, clip, corpus)
    differing = sorted(key for key in expected.keys() | found.about.keys() if found.about.get(key) != expected.get(key))
    if differing:
        print(f"{path} has another {', '.join(differing)}; built again")
        return None
    return found


def build(
    config: Config,
    workdir: Any,
    clip: Clip,
    corpus: Corpus,
    features: tuple[Any, Any] | None = None,
) -> Hierarchy:
    """Builds, writes and returns the hierarchy of a configuration, or reads it where it is there already.

    Args:
      config: the settings.
      workdir: an `epath.Path`; made if it does not exist.
      clip: the clip.
      corpus: the pairs.
      features: as `embed` returns them, to be shared by several configurations; None: computed here if need be.

    Returns:
      The hierarchy.
    """
    found = existing(config, workdir, clip, corpus)
    if found is not None:
        print(f"{workdir / HIERARCHY} is there already, of the same pairs, clip and settings: nothing to do")
        return found
    if features is None:
        with _stage("features"):
            if config.features:
                kept = open_store(config.features, feature_key(clip, corpus))
                features = kept.images, kept.texts  # read where they are needed, block by block
            else:
                features = embed(clip, corpus, config.batch_size)
    about = describe(config, clip, corpus)
    sizes = {"domains": config.domains, "min_members": config.min_members, "seed": config.seed, "about": about}
    with _stage("grouping"), _parts() as watch:
        sizes["watch"] = watch
        if config.method == TRUE_GROUPS:
            groups = glyphs.true_groups(corpus.references, config.seed)
            hierarchy = from_groups(*groups, *features, **sizes)
        else:
            hierarchy = build_hierarchy(
                corpus.captions,
                *features,
                themes=config.themes,
                classes=config.classes,
                class_text=config.class_text,
                method=config.method,
                sample=config.sample,
                clip=clip,
                **sizes,
            )
    with _stage("writing"):
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / OUTLINE).write_text(outline(hierarchy) + "\n")
        _hierarchy_picture.draw(hierarchy, corpus, workdir / PICTURE)
        save_hierarchy(workdir / HIERARCHY, hierarchy)  # last: where it is, all is
    return hierarchy


def summary(hierarchy: Hierarchy, pairs: int) -> str:
    """The sizes of a hierarchy, and some classes of its largest themes."""
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
    """Builds the tasks and says what they are."""
    clip = gram.load_clip(config.clip)
    with _stage("corpus"):
        corpus = load_corpus(config.corpus, pairs=config.pairs, seed=config.seed)
    hierarchy = build(config, workdir, clip, corpus)
    print(summary(hierarchy, len(corpus)))
    print(f"{HIERARCHY}, {OUTLINE} and {PICTURE} in {workdir}")


@contextlib.contextmanager
def _parts() -> Iterator[Watch]:
    """Shows the parts of a clustering: how far each is and the time left, where that is known, and its seconds."""
    shown, present, progress = contextlib.ExitStack(), None, None

    def watch(part: str, done: int, total: int) -> None:
        nonlocal present, progress
        if part != present:
            shown.close()
            shown.enter_context(_stage(f"  {part}"))
            present = part
            progress = shown.enter_context(runtime.Progress(total, part, unit="pair")) if total else None
        if progress is not None:
            progress.update(done - progress.done)

    with shown:
        yield watch


@contextlib.contextmanager
def _stage(name: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    print(f"{name}: {time.monotonic() - start:.1f} s", flush=True)


if __name__ == "__main__":
    launch(run, Config)
