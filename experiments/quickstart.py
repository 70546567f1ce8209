"""Runs all of GRAM on the glyph benchmark in one command: tasks, meta-training, evaluation, report.

    python -m experiments.quickstart
    python -m experiments.quickstart --seeds=1,2,3,4,5,6,7,8,9,10 --shots=1,2,4,8,16 --workdir=runs/longer
    python -m experiments.quickstart --ceiling --dataset=glyphs:hebrew,glyphs:digits

Nothing is downloaded. The mini CLIP of the package embeds unlabeled image-text pairs, which are clustered into a
hierarchy (experiments.build_tasks). A prompt initialization and a gradient regulator are meta-learned on tasks from the
hierarchy and, as a control, on tasks from random clusters (experiments.meta_train). Then CoOp is tuned with and without
them, few-shot and base-to-new, in-domain and on renderings that no corpus contains (experiments.evaluate). Neither the
hierarchy nor meta-training uses a label, a class list or a test image of the evaluated datasets.

It takes less than 5 minutes on two cores and 3 GiB. All methods use the same number of steps and the same learning
rate; experiments.evaluate can choose settings for each method on validation splits. Writes WORKDIR/results.json,
table.md, plots, and a folder for each stage. The same command resumes a run.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import gram_jax as gram
from gram_jax import evaluation
from gram_jax.data import load_corpus
from gram_jax.io import absolute

from . import build_tasks, meta_train
from ._launch import launch, setting

if TYPE_CHECKING:
    from .evaluate.settings import Config as Evaluation

DATASETS = ("georgian", "arabic", "syllabics")


@dataclasses.dataclass(frozen=True)
class Config:
    """The size of the demonstration."""

    seeds: tuple[int, ...] = setting((1, 2, 3, 4, 5), "seeds of the few-shot draws")
    shots: tuple[int, ...] = setting((1, 4), "labeled images per class")
    dataset: tuple[str, ...] = setting(tuple(f"glyphs:{name}" for name in DATASETS), "datasets: glyphs:NAME")
    domains: tuple[str, ...] = setting(("rotated", "small", "striped"), 'shifted domains; "unseen" means all')
    max_test_images: int = setting(10, "test images per class; 0: all")
    steps: int = setting(30, "steps of downstream tuning")
    learning_rate: float = setting(0.3, "learning rate of all methods")
    pairs: int = setting(20000, "image-text pairs of the corpus")
    themes: int = setting(100, "themes to cluster the pairs into")
    ways: int = setting(10, "classes of a meta-training task")
    meta_steps: int = setting(250, "steps of meta-training")
    ceiling: bool = setting(False, "also meta-train on tasks from the true groups of the corpus, an upper bound")
    seed: int = setting(0, "seed of the corpus, the clusters and meta-training")

    def __post_init__(self) -> None:
        self.evaluation("", ())
        self.meta_training("")

    def evaluation(self, meta: str, controls: tuple[str, ...]) -> Evaluation:
        """Returns the settings of the evaluation."""
        from .evaluate.settings import Config as Evaluation  # it imports JAX: late, so that --help answers at once

        same = {name: getattr(self, name) for name in ("dataset", "domains", "shots", "seeds", "max_test_images")}
        return Evaluation(
            **same,
            meta=meta,
            controls=controls,
            steps=(self.steps,),
            learning_rate=(self.learning_rate,),
            gram_learning_rate=(self.learning_rate,),
            select_seeds=(max((0, *self.seeds)) + 1,),
        )

    def meta_training(self, tasks: str) -> meta_train.Config:
        """Returns the settings of meta-training."""
        return meta_train.Config(
            tasks=tasks,
            steps=self.meta_steps,
            ways=self.ways,
            cross_ways=max(2, self.ways // 2),
            seed=self.seed,
            inner_rate=self.learning_rate,
            eval_every=0,
        )


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Runs every stage and writes the report."""
    from .evaluate import run as evaluate

    begin = time.monotonic()

    def stage(text: str) -> None:
        print(f"\n[{time.monotonic() - begin:3.0f} s] {text}", flush=True)

    workdir = absolute(workdir)
    clip = gram.load_clip("mini")
    corpus = load_corpus("glyphs", pairs=config.pairs, seed=config.seed)
    sources = {"": "clusters", "random_tasks": "random"} | ({"true_groups": "true_groups"} if config.ceiling else {})
    stage(f"tasks from {config.pairs} unlabeled image-text pairs")
    features, paths = None, {}
    for name, method in sources.items():
        tasks = build_tasks.Config(pairs=config.pairs, themes=config.themes, seed=config.seed, method=method)
        folder = workdir / f"tasks_{method}"
        if features is None and not (folder / build_tasks.HIERARCHY).exists():
            features = build_tasks.embed(clip, corpus)
        hierarchy = build_tasks.build(tasks, folder, clip, corpus=corpus, features=features)
        if not name:
            (folder / build_tasks.PICTURE).copy(workdir / build_tasks.PICTURE, overwrite=True)
        stage(f"meta-training on these tasks ({method})")
        settings, trained = config.meta_training(str(folder / build_tasks.HIERARCHY)), workdir / f"meta_{method}"
        meta_train.train(settings, trained, clip, hierarchy, corpus=corpus)
        paths[name] = str(trained / "meta.safetensors")
    stage("tuning and evaluation")
    controls = tuple(f"{name}={path}" for name, path in paths.items() if name)
    results = evaluate.run(config.evaluation(paths[""], controls), workdir)
    stage(f"done; see table.md and the plots in {workdir}")
    return dataclasses.replace(results, config=results.config | {"quickstart": dataclasses.asdict(config)})


if __name__ == "__main__":
    launch(run, Config)
