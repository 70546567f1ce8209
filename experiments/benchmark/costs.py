"""What a step of tuning costs, method by method: parameters, memory, time, operations.

    python -m experiments.benchmark.costs
    python -m experiments.benchmark.costs --clip_size=vit_b32 --methods=coop,coop+kgcoop,ivlp,ivlp+promptsrc+prograd
    python -m experiments.benchmark.costs --methods=coop,ivlp --batch_size=4 --classes=1000 --class_chunk=250

Builds a CLIP of a published size with random weights (what a step costs does not hang on their values) and takes the
step that `experiments.evaluate` takes, one run, on one batch: loss, gradient, regulator, update. Every tuner has its
published settings, depths cut to what a smaller clip has. A tuner of text only is given stored image features, one of
images only stored text features, as there. Batches are of 32 images; CoCoOp's, whose text depends on the image, of 1,
as published, unless --batch_size says otherwise. The number of shots changes nothing about a step.

Memory is what the compiler states: arguments (the parts of the frozen clip that are read, the batch, the prompt), and
what lies between them and the results. A method that needs more than --memory_limit is compiled and not run.
Operations are those of matrix products.

Prints the table line by line and writes WORKDIR/table.md and results.json; finished methods are kept in
WORKDIR/rows.jsonl, and the same command goes on behind them.

With no flags: seventeen methods at ViT-B/16 size, the largest of them 8 GiB. On two processor cores 20 minutes, 12 of
them with --repeats=1: five to twenty seconds of compilation each, and half a minute a step where the image transformer
runs.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import gram_jax as gram
from gram_jax import evaluation, objectives, regulators, runtime, tuners
from gram_jax import reporting as reporting_lib
from gram_jax import tuning as tuning_lib
from gram_jax.clip import Clip, ClipConfig
from gram_jax.clip.config import VisionConfig
from gram_jax.clip.model import init_params
from gram_jax.errors import InputError
from gram_jax.evaluation import Row
from gram_jax.io import absolute, write_file
from gram_jax.reporting import Table
from gram_jax.runtime.memory import GIB
from gram_jax.runtime.units import Units
from gram_jax.testing import tiny_tokenizer

from .._launch import at_least, launch, setting
from ..evaluate.presets import PRESETS
from .gauge import matmul_flops

PROTOCOL = "tuning_step"
BATCH_SIZE, OWN_BATCH_SIZE = 32, {"cocoop": PRESETS["cocoop_b2n_vitb16"].batch_size}
# Beside every tuner alone: what is added to the plainest one, and one more step of a published recipe.
COMPOSED = (
    "coop+kgcoop", "coop+npt", "coop+cpt", "coop+promptsrc", "coop+prograd", "coop+gated_low_rank", "ivlp+npt",
    "ivlp+promptsrc",
)  # fmt: skip
CLIPS = {
    "vit_b16": lambda: ClipConfig(vision=VisionConfig(patch_size=16)),
    "vit_b32": ClipConfig,
    "mini": lambda: gram.load_clip("mini").config,
}
_RECIPES = ("coop", "cocoop", "vpt", "text_deep", "ivlp_ep20", "maple")
SETTINGS = dict(PRESETS[f"{name}_b2n_vitb16"].tuner for name in _RECIPES)  # of the others, their defaults
_WORDS = ("small", "large", "red", "green", "blue", "black", "white", "latin", "greek", "capital", "letter")
_CLUSTERS = 16  # of classes, where a regularizer reads them
_RATE = 0.01


@dataclasses.dataclass(frozen=True)
class Config:
    """Which methods, at which size."""

    clip_size: str = setting("vit_b16", "the size of the clip, whose weights are random", choices=tuple(CLIPS))
    methods: tuple[str, ...] = setting(
        (*tuners.NAMES, *COMPOSED),
        "tuners, with regularizers and a regulator behind '+', as rows of results name them: ivlp+npt:0.5+prograd",
    )
    classes: int = setting(100, "classes that are told apart")
    class_chunk: int = setting(512, "classes whose texts are computed side by side; 0 for all")
    batch_size: int | None = setting(None, "images a step; default 32, and 1 for cocoop")
    shard_classes: bool = setting(False, "spread the classes over all devices, as experiments.evaluate does")
    repeats: int = setting(3, "steps that are timed, behind one that is not; their median counts")
    max_seconds: float = setting(60.0, "no further step of a method is begun after so many seconds of timed ones")
    memory_limit: float = setting(16.0, "GiB; what needs more is not run")
    compute_dtype: str = setting("float32", "precision of the frozen compute", choices=("float32", "bfloat16"))

    def __post_init__(self) -> None:
        if not self.methods:
            raise InputError("--methods is empty; give at least one")
        if len(set(self.methods)) < len(self.methods):
            raise InputError(f"--methods={','.join(self.methods)}: give each once")
        at_least(self, 2, "classes")
        at_least(self, 1, "batch_size", "repeats")
        at_least(self, 0, "class_chunk")
        if not self.memory_limit > 0 or not self.max_seconds >= 0:
            raise InputError(f"--memory_limit={self.memory_limit} and --max_seconds={self.max_seconds}: give positives")
        for method in self.methods:
            parse(method)


class Parts(NamedTuple):
    """A method by its parts: the tuner's name, regularizers as `objectives.terms` reads them, the regulator's name."""

    tuner: str
    regularizers: str
    regulator: str


class Step(NamedTuple):
    """A step that can be compiled: `tuning.step` and what it takes, and what is told of it."""

    tuning: tuning_lib.Tuning
    arguments: tuple[Any, ...]
    parameters: int
    batch_size: int
    images: str


def parse(method: str) -> Parts:
    """The parts of a method's name.

    Raises:
      InputError: a part is unknown, two are regulators, or the regularizers are malformed; the message names it.
    """
    tuner, *rest = method.split("+")
    if tuner not in tuners.NAMES:
        raise InputError(f"--methods={method}: there is no tuner {tuner!r}; there are {', '.join(tuners.NAMES)}")
    held = [part for part in rest if part in regulators.NAMES and part not in objectives.NAMES]
    if len(held) > 1:
        raise InputError(f"--methods={method}: {held[0]} and {held[1]} are both regulators; give one")
    spec = ",".join(part for part in rest if part not in held)
    try:
        objectives.positive_terms(spec)
    except ValueError as error:
        raise InputError(f"--methods={method}: {error} Regulators: {', '.join(regulators.NAMES)}.") from error
    return Parts(tuner, spec, held[0] if held else "identity")


def random_clip(config: Config) -> Clip:
    """A clip of the size with random weights, and a small tokenizer."""
    settings = {"compute_dtype": config.compute_dtype, "class_chunk": config.class_chunk}
    found = dataclasses.replace(CLIPS[config.clip_size](), **settings)
    params = jax.jit(init_params, static_argnums=1)(jax.random.key(0), found)
    return Clip(params, found, tiny_tokenizer(found.text.context_length))


def tuner_of(name: str, clip: Clip) -> tuners.Tuner:
    """A tuner with its published settings, as deep as the clip allows."""
    settings = dict(SETTINGS.get(name, {}))
    made = tuners.make(name, **settings)
    if "depth" in made.settings:
        layers = min(clip.config.text.layers, clip.config.vision.layers)
        settings["depth"] = min(made.settings["depth"], layers)
    return tuners.make(name, **settings)


def class_names(count: int) -> list[str]:
    """So many names of two words, or of more where there are not as many of two."""
    words = itertools.product(_WORDS, repeat=next(n for n in itertools.count(2) if count <= len(_WORDS) ** n))
    return [" ".join(name) for name in itertools.islice(words, count)]


def build(config: Config, clip: Clip, method: str) -> Step:
    """The step of a method on random images and labels.

    Raises:
      InputError: its parts do not go together, or do not fit the clip.
    """
    parts = parse(method)
    tuner, regulator = tuner_of(parts.tuner, clip), regulators.make(parts.regulator)
    held = regulator.settings.get("reference", "")
    loss = objectives.batch_loss(tuner, parts.regularizers, reference=held)
    # With momentum and decay, as all published recipes.
    tuning = tuning_lib.make_tuning(tuner, regulator, loss=loss.loss, momentum=0.9, weight_decay=5e-4)
    size = config.batch_size or OWN_BATCH_SIZE.get(parts.tuner, BATCH_SIZE)
    rng = np.random.default_rng(0)
    names = class_names(config.classes)
    classes: Any = clip.class_tokens(names) if tuner.needs_names else _unit(rng, len(names), clip.config.embed_dim)
    pixels = clip.config.vision.image_size
    features = _unit(rng, 1, size, clip.config.embed_dim)
    images = features
    if tuner.needs_pixels:
        images = jnp.asarray(rng.standard_normal((1, size, pixels, pixels, clip.config.vision.channels), np.float32))
    labels = jnp.asarray(rng.integers(len(names), size=(1, size)), jnp.int32)
    texts = {name: _unit(rng, len(names), clip.config.embed_dim) for name in loss.texts}
    batch = {
        "classes": classes,
        "images": images,
        "labels": labels,
        "reference": {"text_features": texts, "clusters": jnp.arange(len(names)) % _CLUSTERS},
        "run_reference": {"image_features": features, "counts": jnp.ones((1, len(names)))},
    }
    if (length := regulator.settings.get("context_dim")) is not None:
        batch["context"] = jnp.zeros((1, length))
    prompt = tuner.init(jax.random.key(0), clip, classes)
    phi = regulator.init(jax.random.key(1), prompt)
    state = tuning.init(jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], prompt))
    if config.shard_classes:
        mesh = runtime.make_mesh("classes")
        state, phi, clip, rest = jax.device_put((state, phi, clip, batch), NamedSharding(mesh, PartitionSpec()))
        batch = rest | {"classes": jax.device_put(classes, NamedSharding(mesh, PartitionSpec("classes")))}
    kind = "pixels" if tuner.needs_pixels else "features"
    return Step(tuning, (state, phi, clip, batch, _RATE, 1), tuners.num_parameters(prompt), size, kind)


def measure(config: Config, step: Step) -> dict[str, float]:
    """Compiles a step and, if it fits, takes it some times."""
    start = time.perf_counter()
    traced = jax.jit(step.tuning.step).trace(*step.arguments)
    program = traced.lower().compile()
    found = {"parameters": step.parameters, "batch_size": step.batch_size}
    found["compile_seconds"] = time.perf_counter() - start
    found["matmul_flops"] = matmul_flops(traced.jaxpr.jaxpr)
    memory = program.memory_analysis()
    if memory is not None:
        found["argument_bytes"] = memory.argument_size_in_bytes
        found["temp_bytes"] = memory.temp_size_in_bytes
        found["step_bytes"] = tuning_lib.memory_bytes(program)
    if found.get("step_bytes", 0) > config.memory_limit * GIB:
        return found
    jax.block_until_ready(program(*step.arguments))
    seconds: list[float] = []
    while not seconds or (len(seconds) < config.repeats and sum(seconds) < config.max_seconds):
        start = time.perf_counter()
        jax.block_until_ready(program(*step.arguments))
        seconds.append(time.perf_counter() - start)
    return found | {"step_seconds": float(np.median(seconds))}


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Measures every method, each in its turn."""
    workdir = absolute(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    clip = random_clip(config)
    if config.shard_classes and config.classes % jax.device_count():
        raise InputError(
            f"--shard_classes: {jax.device_count()} devices cannot share --classes={config.classes} evenly"
        )
    for method in config.methods:  # what does not go together is refused before anything is compiled
        jax.eval_shape(lambda method=method: build(config, clip, method).arguments[0])
    environment = evaluation.environment()
    units = Units(workdir / "rows.jsonl", dataclasses.asdict(config) | {"device": environment["device"]})
    print("\n" + _aligned(HEADER), flush=True)
    lines, rows = [], []
    with runtime.Progress(len(config.methods), "costs", initial=len(units), unit="method") as progress:
        for method in config.methods:
            if (method,) not in units:
                units.add((method,), measure(config, build(config, clip, method)))
                progress.update()
            found = units[(method,)]
            lines.append(cells(config, method, found))
            print(_aligned(lines[-1]), flush=True)
            name = f"random:{config.clip_size}"
            rows += [Row(method, PROTOCOL, name, metric, float(value)) for metric, value in found.items()]
    text = reporting_lib.to_markdown(Table(HEADER, tuple(lines)))
    write_file(workdir / "table.md", f"{_about(config, environment)}\n\n{text}\n")
    print(f"table in {workdir / 'table.md'}", flush=True)
    return evaluation.Results(dataclasses.asdict(config), environment, tuple(rows))


HEADER = ("method", "batch", "images", "parameters", "compile, s", "arguments", "between", "GFLOP a step", "s a step")
_WIDTHS = (22, 5, 8, 10, 10, 10, 10, 12, 8)


def cells(config: Config, method: str, found: Mapping[str, float]) -> tuple[str, ...]:
    """A line of the table."""
    images = "pixels" if tuners.make(parse(method).tuner).needs_pixels else "features"
    seconds = f"{found['step_seconds']:.3g}" if "step_seconds" in found else "-"
    if "step_seconds" not in found:
        seconds = f"needs {_size(found['step_bytes'])} of {config.memory_limit:g} GiB"
    return (
        method,
        f"{found['batch_size']:.0f}",
        images,
        f"{found['parameters']:,.0f}",
        f"{found['compile_seconds']:.1f}",
        _size(found.get("argument_bytes")),
        _size(found.get("temp_bytes")),
        f"{found['matmul_flops'] / 1e9:.3g}",
        seconds,
    )


def _unit(rng: np.random.Generator, *shape: int) -> jax.Array:
    """Random features of length 1."""
    drawn = rng.standard_normal(shape)
    return jnp.asarray(drawn / np.linalg.norm(drawn, axis=-1, keepdims=True), jnp.float32)


def _size(count: float | None) -> str:
    if count is None:
        return "-"
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.2f} MiB"


def _aligned(line: Sequence[str]) -> str:
    first, *rest = (cell.rjust(width) for cell, width in zip(line, _WIDTHS, strict=True))
    return "  ".join([first.strip().ljust(_WIDTHS[0]), *rest])


def _about(config: Config, environment: Mapping[str, Any]) -> str:
    """What the table is of."""
    device = environment["device"]
    return (
        f"A step of tuning at {config.clip_size}, random weights, {config.classes} classes, {config.compute_dtype}, "
        f"jax {environment['packages']['jax']} on {device['kind']} ({json.dumps(device['platform'])}); time: the "
        f"median of up to {config.repeats} warm steps."
    )


if __name__ == "__main__":
    launch(run, Config)
