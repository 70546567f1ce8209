"""Runs all of GRAM on the glyph benchmark in one command: tasks, meta-training, evaluation, report.

    python -m experiments.quickstart
    python -m experiments.quickstart --seeds=1,2,3,4,5,6,7,8,9,10 --shots=1,2,4,8,16 --workdir=runs/longer
    python -m experiments.quickstart --controls=random,true_groups --dataset=glyphs:hebrew,glyphs:digits

Nothing is downloaded. The mini CLIP of the package embeds unlabeled image-text pairs, which are clustered into a
hierarchy (experiments.build_tasks). A prompt initialization and a gradient regulator are meta-learned on tasks from the
hierarchy, first through short inner loops, then through long ones (experiments.meta_train). Then CoOp is tuned to
convergence with both, with each of them and without, few-shot and base-to-new, in-domain and on renderings that no
corpus contains (experiments.evaluate). Neither the hierarchy nor meta-training uses a label, a class list or a test
image of the evaluated datasets. --controls repeats meta-training on tasks from random clusters, or from the true groups
of the corpus, which is an upper bound.

The problem comes first: CoOp alone is tuned before any task is built, and its rows are kept for the comparison. It
takes 5 to 6 minutes on two cores, and 3 GiB. All methods use the same number of steps and the same learning
rate; experiments.evaluate can choose settings for each method on validation splits. Writes WORKDIR/results.json,
table.md, plots, and a folder for each stage; base_new_along_tuning.png shows what the regulator does. The same command
resumes a run.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import gram_jax as gram
from gram_jax import evaluation
from gram_jax.data import load_corpus
from gram_jax.errors import require_known
from gram_jax.io import absolute

from . import build_tasks, meta_train
from ._launch import launch, setting

if TYPE_CHECKING:
    from .evaluate.settings import Config as Evaluation

DATASETS = ("arabic", "armenian_small")
TASKS = "clusters"
CONTROLS = {"random": "random_tasks", build_tasks.TRUE_GROUPS: build_tasks.TRUE_GROUPS}  # their names in results


@dataclasses.dataclass(frozen=True)
class Config:
    """The size of the demonstration."""

    seeds: tuple[int, ...] = setting((1, 2, 3, 4, 5), "seeds of the few-shot draws")
    shots: tuple[int, ...] = setting((4,), "labeled images per class")
    dataset: tuple[str, ...] = setting(tuple(f"glyphs:{name}" for name in DATASETS), "datasets: glyphs:NAME")
    domains: tuple[str, ...] = setting(("rotated", "small", "striped"), 'shifted domains; "unseen" means all')
    max_test_images: int = setting(10, "test images per class; 0: all")
    steps: int = setting(300, "steps of downstream tuning")
    report_steps: tuple[int, ...] = setting((10, 30, 60, 100, 200), "steps that are measured besides the last one")
    learning_rate: float = setting(0.3, "learning rate of all methods")
    pairs: int = setting(40000, "image-text pairs of the corpus")
    themes: int = setting(100, "themes to cluster the pairs into")
    ways: int = setting(6, "classes of a meta-training task")
    meta_steps: int = setting(250, "steps of meta-training through short inner loops")
    inner_steps: int = setting(60, "steps of a long inner loop")
    long_meta_steps: int = setting(100, "steps of meta-training through long inner loops")
    controls: tuple[str, ...] = setting((), f"meta-train on other tasks, too: some of {', '.join(CONTROLS)}")
    seed: int = setting(0, "seed of the corpus, the clusters and meta-training")

    def __post_init__(self) -> None:
        for name in self.controls:
            require_known("--controls", name, CONTROLS)
        self.evaluation("", ())
        self.meta_training("")

    def evaluation(self, meta: str, controls: tuple[str, ...]) -> Evaluation:
        """Returns the settings of the evaluation."""
        from .evaluate.settings import Config as Evaluation  # it imports JAX: late, so that --help answers at once

        names = ("dataset", "domains", "shots", "seeds", "max_test_images", "report_steps")
        return Evaluation(
            **{name: getattr(self, name) for name in names},
            meta=meta,
            controls=controls,
            steps=(self.steps,),
            learning_rate=(self.learning_rate,),
            select_seeds=(max((0, *self.seeds)) + 1,),
        )

    def meta_training(self, tasks: str) -> meta_train.Config:
        """Returns the settings of meta-training; long inner loops have four times the rate of downstream tuning."""
        return meta_train.Config(
            tasks=tasks,
            warmup_steps=self.meta_steps,
            steps=self.long_meta_steps,
            batch_size=4,
            ways=self.ways,
            shots=4,
            cross_ways=max(2, self.ways - 1),
            inner_steps=self.inner_steps,
            inner_rate=4 * self.learning_rate,
            phi_learning_rate=1e-2,
            seed=self.seed,
            eval_every=0,
        )


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Runs every stage and writes the report."""
    from .evaluate import run as evaluate

    begin = time.monotonic()

    def stage(text: str) -> None:
        print(f"\n[{time.monotonic() - begin:3.0f} s] {text}", flush=True)

    workdir = absolute(workdir)
    if not (workdir / f"meta_{TASKS}" / "meta.safetensors").exists():
        stage("CoOp alone: what tuning takes from new classes")
        evaluate.run(dataclasses.replace(config.evaluation("", ()), methods=("tuner",)), workdir)
    clip = gram.load_clip("mini")
    corpus = load_corpus("glyphs", pairs=config.pairs, seed=config.seed)
    stage(f"tasks from {config.pairs} unlabeled image-text pairs")
    features, paths = None, {}
    for method in (TASKS, *config.controls):
        tasks = build_tasks.Config(pairs=config.pairs, themes=config.themes, seed=config.seed, method=method)
        folder = workdir / f"tasks_{method}"
        if features is None and not (folder / build_tasks.HIERARCHY).exists():
            features = build_tasks.embed(clip, corpus)
        hierarchy = build_tasks.build(tasks, folder, clip, corpus=corpus, features=features)
        trained = workdir / f"meta_{method}"
        stage(f"meta-training on these tasks ({method})")
        settings = config.meta_training(str(folder / build_tasks.HIERARCHY))
        meta_train.train(settings, trained, clip, hierarchy, corpus=corpus)
        paths[method] = str(trained / "meta.safetensors")
    (workdir / f"tasks_{TASKS}" / build_tasks.PICTURE).copy(workdir / build_tasks.PICTURE, overwrite=True)
    stage("CoOp with what was learned, and the controls")
    controls = tuple(f"{CONTROLS[method]}={paths[method]}" for method in config.controls)
    results = evaluate.run(config.evaluation(paths[TASKS], controls), workdir)
    stage(f"done; open report.html in {workdir}")
    return dataclasses.replace(results, config=results.config | {"quickstart": dataclasses.asdict(config)})


if __name__ == "__main__":
    launch(run, Config)
