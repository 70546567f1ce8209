"""The settings of experiments.meta_train, and the regulator and the optimizer that they describe."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import lazy_loader

import gram_jax as gram
from gram_jax.choices import CROSS, INNER_SCHEDULES, MAPPERS
from gram_jax.errors import InputError
from gram_jax.registry import parse_call

from ._launch import at_least, positive, setting

if TYPE_CHECKING:
    from gram_jax.regulators import Regulator

# Loaded when used, so that --help answers at once.
jax = lazy_loader.load("jax")
optax = lazy_loader.load("optax")

# Short inner loops before the long ones learn the initialization alone: a regulator of 3 steps slows down long loops.
WARMUP: dict[str, Any] = {
    **{"regulator": "identity", "inner_steps": 3, "inner_rate": 0.3, "inner_schedule": "constant"},
    **{"depths": 1, "warmup_steps": 0, "gradient": "first_order"},
    **{"learning_rate": 2e-3, "offsets_learning_rate": 5e-3, "clip_norm": 10.0},
    **{"shots": 2, "fewest_shots": 0, "queries": 1, "cohesive": 1.0},  # and as many different classes as there are
}
RATE = {
    "prompt": "learning_rate",
    "offsets": "offsets_learning_rate",
    "phi": "phi_learning_rate",
    "log_rates": "rates_learning_rate",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of meta-training."""

    tasks: str = setting("runs/build_tasks/hierarchy.safetensors", "the hierarchy, a file of experiments.build_tasks")
    clip: str = setting("mini", 'folder, file, hub name, OpenCLIP MODEL:TAG, or "mini"; that of the hierarchy')
    meta: str = setting("", "meta checkpoint to start from, of this tuner or of one with a part of its prompt")
    tuner: str = setting("coop(init_text='a photo of a')", "the tuner, NAME or NAME(setting=value, ...)")
    regulator: str = setting("kronecker", "the regulator, NAME or NAME(setting=value, ...)")
    learn: tuple[str, ...] = setting(("prompt", "phi", "offsets"), "learned parts; also log_rates, the inner steps")
    temperature: float = setting(0.05, "temperature of a task's similarity to the themes")
    steps: int = setting(300, "outer steps")
    warmup_steps: int = setting(600, "outer steps with short inner loops before them; 0 for none, also with --meta")
    batch_size: int = setting(8, "tasks per step, a multiple of the number of devices")
    ways: int = setting(8, "classes per task")
    shots: int = setting(16, "support images per class")
    fewest_shots: int = setting(2, "tasks have from this number to --shots different images per class; 0: --shots")
    queries: int = setting(2, "images per class in the query of the support's classes")
    cross: str = setting("class", "the shift of the other query", choices=CROSS)
    cross_queries: int = setting(2, "images per class in the other query")
    cross_ways: int = setting(6, "classes in the other query; --cross=domain and both use --ways instead")
    cross_weight: float = setting(1.0, "weight of the other query in the loss; 0 omits it")
    max_tokens: int = setting(8, "tokens of a class text; classes with longer texts are omitted; 0 keeps 99 % of them")
    cohesive: float = setting(
        0.7, "share of the classes of a theme that tasks are drawn from, those whose images are most alike"
    )
    curriculum: float = setting(0.0, "share of the steps after which all tasks have a single theme; 0: from step 0")
    inner_steps: int = setting(120, "gradient steps on the support")
    inner_rate: float = setting(0.6, "step size of the inner steps")
    inner_schedule: str = setting("cosine", "change of the step size over the inner steps", choices=INNER_SCHEDULES)
    depths: int = setting(3, "numbers of inner steps after which the queries are evaluated: the last, and random ones")
    gradient: str = setting("first_order", "exact, first_order, or the number of last inner steps to differentiate")
    learning_rate: float = setting(5e-4, "peak learning rate of the prompt")
    offsets_learning_rate: float = setting(5e-4, "peak learning rate of the offsets")
    phi_learning_rate: float = setting(4e-3, "peak learning rate of the regulator")
    rates_learning_rate: float = setting(1e-2, "peak learning rate of the logarithm of the inner step sizes")
    clip_norm: float = setting(1.0, "largest norm of the outer gradient")
    seed: int = setting(0, "seed of the prompt, the regulator and the tasks")
    eval_every: int = setting(50, "steps between validations; 0 for none")
    eval_batches: int = setting(4, "batches of tasks per validation")
    save_every: int = setting(50, "steps between checkpoints")
    workers: int = setting(2, "threads that draw tasks in advance")
    tasks_at_once: int = setting(0, "tasks that a device adapts in parallel; 0 for all; 1 needs the least memory")
    worker_processes: int = setting(0, "processes that draw tasks instead of threads; useful if images are on disk")
    mapper: str = setting("shard_map", "the way to use several devices; pmap in one process only", choices=MAPPERS)
    devices: int = setting(0, "the number of devices; 0 for all")
    compute_dtype: str = setting("float32", "precision of the frozen compute", choices=("float32", "bfloat16"))
    debug_nans: bool = setting(False, "repeat a step with a non-finite loss, with checks that find the operation")

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_size", "inner_steps", "depths", "save_every", "eval_batches", "workers")
        at_least(self, 0, "fewest_shots", "eval_every", "max_tokens", "devices", "worker_processes", "tasks_at_once")
        positive(self, *RATE.values(), "inner_rate", "clip_norm", "temperature")
        for flag in ("tuner", "regulator"):
            try:
                gram.tuners.parse(self.tuner) if flag == "tuner" else make_regulator(self)
            except InputError as error:
                raise InputError(f"--{flag}={getattr(self, flag)}: {error}") from error

    @property
    def structured(self) -> bool:
        """Whether the regulator reads the task's relation to the themes' prototypes."""
        return "prototypes" in gram.regulators.REGISTRY.settings(parse_call(self.regulator).name)


def make_regulator(config: Config, prototypes: int = 1) -> Regulator:
    """Returns the regulator of --regulator; a structured one has a prototype for each theme."""
    call = parse_call(config.regulator)
    settings = {"prototypes": prototypes} if config.structured else {}
    return gram.regulators.make(call.name, **(settings | call.settings))


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Returns Adam with a cosine schedule and a rate for each learned part, after clipping the joint gradient."""
    parts = {
        part: optax.adam(optax.cosine_decay_schedule(getattr(config, flag), config.steps, alpha=0.05))
        for part, flag in RATE.items()
    }

    def labels(learned: dict[str, Any]) -> dict[str, Any]:
        return {part: jax.tree.map(lambda _, part=part: part, tree) for part, tree in learned.items()}

    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.multi_transform(parts, labels))
