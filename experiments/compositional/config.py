"""Compositional zero-shot learning: attributes and objects of seen pairs are tuned, unseen pairs are recognized.

    python -m experiments.compositional
    python -m experiments.compositional --dataset=glyphs:arabic:renderings --methods="csp,drpt,drpt(balance=0)"
    python -m experiments.compositional --dataset=czsl:/data/mit-states --clip=openai/clip-vit-large-patch14 \\
        --learning_rate=5e-5 --steps=9500 --batch_size=64 --seeds=1

Methods: hand_crafted (the frozen clip under the dataset's template), coop and other tuners of text prompts, and the
tuners of pairs csp, dfsp and troika. drpt is csp under a recurrent schedule, a reconstruction from an abstract; its
settings are those of `gram_jax.tuning.recurrent.recurrent`. coop+gram and csp+gram begin with the context of a meta
checkpoint (--meta) of experiments.meta_train --cross=pairs, and its regulator acts on the gradient of the context; csp
learns a context then. On glyphs, a seed also draws which pairs are seen.

The table has the field's metrics: best accuracy of seen pairs (S) and of unseen ones (U), best harmonic mean (H) and
area under the seen-unseen curve (AUC) along a bias on unseen pairs, at the published 20 steps, and the accuracy of
attributes and objects without a bias. **The biases are chosen on the test images with their labels**, as in all
published numbers. Nothing else reads a test label: with several values of --learning_rate, the best mean AUC on
validation images over --select_seeds decides; in the open world (--worlds=closed,open), a threshold of feasibility is
calibrated there.

Writes WORKDIR/results.json, table.md and a plot of the curves. Finished runs are kept in WORKDIR/rows.jsonl: the same
command resumes. The default takes two minutes on two cores.
"""

from __future__ import annotations

import dataclasses

from gram_jax.data.compositions import WORLDS
from gram_jax.data.readers.compositions import FORMS
from gram_jax.errors import InputError, require_known

from .._launch import at_least, positive, setting


@dataclasses.dataclass(frozen=True)
class Config:
    """The datasets, the methods and the plan."""

    clip: str = setting("mini", 'a folder, a hub name, or "mini"')
    dataset: tuple[str, ...] = setting(("glyphs:greek_small:renderings",), f"datasets of pairs: {FORMS}")
    methods: str = setting("hand_crafted,coop,csp,drpt", "methods with settings, such as csp,drpt(rounds=2, balance=0)")
    learning_rate: tuple[float, ...] = setting((0.01,), "rate of Adam; several are selected on validation images")
    steps: int = setting(300, "steps of a run")
    batch_size: int = setting(64, "images per step")
    weight_decay: float = setting(1e-5, "coupled weight decay")
    seeds: tuple[int, ...] = setting((1, 2, 3), "seeds of the runs")
    select_seeds: tuple[int, ...] = setting((101, 102), "seeds that select the rate; others than --seeds")
    meta: str | None = setting(None, "meta checkpoint of the tuner coop, for methods such as coop+gram")
    worlds: tuple[str, ...] = setting(("closed",), f"some of {', '.join(WORLDS)}")
    image_batch: int = setting(256, "images that are encoded at once")

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_size", "image_batch")
        positive(self, "learning_rate")
        for world in self.worlds:
            require_known("--worlds", world, WORLDS)
        for name in ("dataset", "learning_rate", "seeds", "worlds"):
            if not getattr(self, name) or len(set(getattr(self, name))) < len(getattr(self, name)):
                raise InputError(f"--{name}={getattr(self, name)}: give at least one value, each once")
        if len(self.learning_rate) > 1 and (not self.select_seeds or {*self.select_seeds} & {*self.seeds}):
            raise InputError(f"--select_seeds={self.select_seeds}: give seeds that --seeds={self.seeds} does not have")
