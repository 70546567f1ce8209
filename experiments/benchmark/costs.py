"""Measures one tuning step of each method: parameters, memory, time and operations.

    python -m experiments.benchmark.costs
    python -m experiments.benchmark.costs --clip_size=vit_b32 --methods=coop,coop+kgcoop,ivlp,ivlp+promptsrc+prograd
    python -m experiments.benchmark.costs --methods=coop,ivlp --batch_size=4 --classes=1000 --class_chunk=250

Builds a CLIP of a published size with random weights (they do not affect the costs) and runs the step of
`experiments.evaluate` for one run on one batch: loss, gradient, regulator, update. Every tuner has its published
settings; depths are limited to the layers of the clip. As in `experiments.evaluate`, tuners without a visual prompt get
stored image features, tuners without a textual prompt stored text features. A batch has 32 images, or 1 for CoCoOp (as
published), unless --batch_size is given. The number of shots does not affect a step.

Memory is reported by the compiler: arguments (the parts of the frozen clip that are used, the batch, the prompt) and
temporary buffers. A method that needs more than --memory_limit is compiled but not run. Operations are those of matrix
products. Writes WORKDIR/table.md and results.json. Finished methods are kept in WORKDIR/rows.jsonl; rerun the command
to resume.

The default is eighteen methods at ViT-B/16 size, the largest of which needs 8 GiB. On two processor cores it takes 20
minutes, or 12 with --repeats=1; a step through the image transformer takes half a minute.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import lazy_loader
import numpy as np

import gram_jax as gram
from gram_jax import choices, evaluation, reporting, runtime, tuning
from gram_jax.errors import InputError, explain, require_known, require_number
from gram_jax.io import absolute, write_file
from gram_jax.registry import parse_call

from .._launch import at_least, launch, positive, setting
from ..evaluate.presets import PRESETS
from .config import CLIPS

if TYPE_CHECKING:
    from gram_jax.clip import Clip
    from gram_jax.tuners import Tuner

# Loaded when used, so that --help answers at once.
jax = lazy_loader.load("jax")

GIB = 2**30
BATCH_SIZE, OWN_BATCH_SIZE = 32, {"cocoop": PRESETS["cocoop_b2n_vitb16"].batch_size}
# Measured besides every tuner alone: each addition to the plainest tuner, and steps of published recipes.
COMPOSED = (
    "coop+kgcoop", "coop+npt", "coop+cpt", "coop+promptsrc", "coop+prograd", "coop+gated_low_rank", "ivlp+npt",
    "ivlp+promptsrc",
)  # fmt: skip
_RECIPES = ("coop", "cocoop", "vpt", "text_deep", "ivlp_ep20", "maple")
# Other tuners have their defaults.
SETTINGS = dict(parse_call(PRESETS[f"{name}_b2n_vitb16"].tuner) for name in _RECIPES)
_WORDS = ("small", "large", "red", "green", "blue", "black", "white", "latin", "greek", "capital", "letter")


@dataclasses.dataclass(frozen=True)
class Config:
    """The methods and their size."""

    clip_size: str = setting("vit_b16", "size of the clip, whose weights are random", choices=CLIPS)
    methods: tuple[str, ...] = setting(
        (*choices.TUNERS, *COMPOSED), "tuners, optionally with +regularizers and +regulator: ivlp+npt:0.5+prograd"
    )
    classes: int = setting(100, "number of classes")
    class_chunk: int = setting(512, "classes whose texts are computed at once; 0: all")
    batch_size: int | None = setting(None, "images per step; default 32, or 1 for cocoop")
    shard_classes: bool = setting(False, "spread the classes over all devices, as in experiments.evaluate")
    repeats: int = setting(3, "timed steps after one warm-up step; the median counts")
    max_seconds: float = setting(60.0, "a method begins no further step after this time, seconds")
    memory_limit: float = setting(16.0, "a method that needs more memory is not run, GiB")
    compute_dtype: str = setting("float32", "precision of the frozen computation", choices=("float32", "bfloat16"))

    def __post_init__(self) -> None:
        if not self.methods:
            raise InputError("--methods=: give at least one")
        if len(set(self.methods)) < len(self.methods):
            raise InputError(f"--methods={','.join(self.methods)}: give each once")
        at_least(self, 2, "classes")
        at_least(self, 1, "batch_size", "repeats")
        at_least(self, 0, "class_chunk")
        positive(self, "memory_limit")
        require_number("--max_seconds", self.max_seconds, least=0)
        for method in self.methods:
            parse(method)


class Step(NamedTuple):
    """A step that can be compiled: a function with its arguments, the number of parameters, and the batch size."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    parameters: int
    batch_size: int


def parse(method: str) -> tuple[str, str, str]:
    """Returns the names of a method's tuner, its regularizers (in the form of `objectives.terms`) and its regulator."""
    tuner, *rest = method.split("+")
    require_known(f"--methods={method}: tuner", tuner, gram.tuners.REGISTRY.names)
    if rest and tuner in gram.tuners.PAIR_NAMES:
        raise InputError(f"--methods={method}: {tuner} has a loss of its own; give it alone")
    chosen = [part for part in rest if part in gram.regulators.NAMES and part not in gram.objectives.NAMES]
    if len(chosen) > 1:
        raise InputError(f"--methods={method}: {chosen[0]} and {chosen[1]} are both regulators; give one")
    regularizers = ",".join(part for part in rest if part not in chosen)
    with explain(f"--methods={method}: ", f" (regulators: {', '.join(gram.regulators.NAMES)})"):
        gram.objectives.positive_terms(regularizers)
    return tuner, regularizers, chosen[0] if chosen else "identity"


def make_clip(config: Config) -> Clip:
    """Returns a clip of the size with random weights and a small tokenizer."""
    from gram_jax.testing import tiny_tokenizer

    from .inputs import random_clip

    clip = random_clip(config.clip_size, compute_dtype=config.compute_dtype, class_chunk=config.class_chunk)
    return clip.replace(tokenizer=tiny_tokenizer(clip.config.text.context_length))


def make_tuner(name: str, clip: Clip) -> Tuner:
    """Returns a tuner with its published settings, as deep as the clip allows."""
    settings = dict(SETTINGS.get(name, {}))
    depth = gram.tuners.make(name, **settings).settings.get("depth")
    if depth is not None:
        settings["depth"] = min(depth, clip.config.text.layers, clip.config.vision.layers)
    return gram.tuners.make(name, **settings)


def class_names(count: int) -> list[str]:
    """Returns distinct names of two words, or of more words if there are not enough pairs."""
    words = itertools.product(_WORDS, repeat=next(n for n in itertools.count(2) if count <= len(_WORDS) ** n))
    return [" ".join(name) for name in itertools.islice(words, count)]


def build(config: Config, clip: Clip, method: str) -> Step:
    """Returns the step of a method on random images and labels; raises InputError if its parts do not fit together."""
    from .inputs import make_images

    jnp = jax.numpy
    name, regularizers, regulator_name = parse(method)
    tuner, regulator = make_tuner(name, clip), gram.regulators.make(regulator_name)
    loss = gram.objectives.batch_loss(tuner, regularizers, reference=regulator.settings.get("reference", ""))
    function = gram.objectives.pair_loss(tuner) if tuner.needs_pairs else loss.loss
    # Momentum and weight decay as in all published recipes.
    step = tuning.make_tuning(tuner, regulator, loss=function, momentum=0.9, weight_decay=5e-4)
    rng, embed_dim = np.random.default_rng(0), clip.config.embed_dim
    count, size = config.classes, config.batch_size or OWN_BATCH_SIZE.get(name, BATCH_SIZE)
    with jax.ensure_compile_time_eval():  # names are packed on the host, also while shapes are traced
        classes = _classes(clip, tuner, count, rng)
        if config.shard_classes and tuner.needs_names:  # rows of names, too, are shared evenly
            classes, _ = tuning.pad_classes(clip, classes, None, jax.device_count())
            count = len(classes.eot)
    features = _unit(rng, 1, size, embed_dim)
    batch = {
        "classes": classes,
        "images": make_images(rng, clip.config.vision, 1, size) if tuner.needs_pixels else features,
        "labels": jnp.asarray(rng.integers(count, size=(1, size)), jnp.int32),
        "reference": {
            "text_features": {text: _unit(rng, count, embed_dim) for text in loss.texts},
            "clusters": jnp.arange(count) % 16,
        },
        "run_reference": {"image_features": features, "counts": jnp.ones((1, count))},
    }
    if (length := regulator.settings.get("context_dim")) is not None:
        batch["context"] = jnp.zeros((1, length))
    prompt = tuner.init(jax.random.key(0), clip, classes)
    phi = regulator.init(jax.random.key(1), prompt)
    state = step.init(jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], prompt))
    if config.shard_classes:
        mesh, spec = runtime.make_mesh("classes"), jax.sharding.PartitionSpec
        whole, spread = (jax.sharding.NamedSharding(mesh, spec(*axes)) for axes in ((), ("classes",)))
        state, phi, clip, batch = jax.device_put((state, phi, clip, batch), whole)
        batch["classes"] = jax.device_put(classes, spread)
    return Step(step.step, (state, phi, clip, batch, 0.01, 1), gram.tuners.num_parameters(prompt), size)


def _classes(clip: Clip, tuner: Tuner, count: int, rng: np.random.Generator) -> Any:
    """Returns the classes of a step in the form that the tuner requires; pairs of as many attributes as objects."""
    if not tuner.needs_names:
        return _unit(rng, count, clip.config.embed_dim)
    if not tuner.needs_pairs:
        return clip.class_tokens(class_names(count))
    side = math.ceil(math.sqrt(count))
    names, pairs = class_names(2 * side), np.stack(np.divmod(np.arange(count), side), axis=1)
    return gram.tuners.pair_classes(clip, names[:side], names[side:], pairs)


def measure(config: Config, step: Step) -> dict[str, float]:
    """Compiles a step and, if it fits into the memory limit, times it."""
    from .sides import compile_program

    program = compile_program(jax.jit(step.function), *step.arguments)
    costs = {"parameters": step.parameters, "batch_size": step.batch_size}
    costs |= {"compile_seconds": program.compile_seconds, "matmul_flops": program.flops}
    if memory := program.run.memory_analysis():
        costs |= {"argument_bytes": memory.argument_size_in_bytes, "temp_bytes": memory.temp_size_in_bytes}
        costs["step_bytes"] = program.step_bytes
    if costs.get("step_bytes", 0) > config.memory_limit * GIB:
        return costs
    jax.block_until_ready(program.run(*step.arguments))
    seconds: list[float] = []
    while not seconds or (len(seconds) < config.repeats and sum(seconds) < config.max_seconds):
        start = time.perf_counter()
        jax.block_until_ready(program.run(*step.arguments))
        seconds.append(time.perf_counter() - start)
    return costs | {"step_seconds": float(np.median(seconds))}


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Measures the methods one after the other."""
    from .tables import table_of

    workdir = absolute(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    if config.shard_classes and config.classes % jax.device_count():
        raise InputError(f"--classes={config.classes}: {jax.device_count()} devices cannot share them evenly")
    clip = make_clip(config)
    for method in config.methods:  # finds parts that do not fit before anything is compiled
        jax.eval_shape(lambda method=method: build(config, clip, method).arguments[0])
    environment = evaluation.environment()
    units = runtime.Units(workdir / "rows.jsonl", evaluation.measured_by(environment))
    depends = {name: value for name, value in dataclasses.asdict(config).items() if name != "methods"}
    depends |= {"device": environment["device"]}
    lines, rows = [], []
    with runtime.Progress(len(config.methods), "costs", unit="method") as progress:
        for method in config.methods:
            costs, dataset = units.find((method,), depends), f"random:{config.clip_size}"
            if costs is None:
                costs = units.add((method,), depends, measure(config, build(config, clip, method)))["found"]
            progress.update()
            lines.append(cells(config, method, costs))
            print(", ".join(f"{name} {cell}" for name, cell in lines[-1].items()), flush=True)
            rows += [
                evaluation.Row(method, "tuning_step", dataset, metric, float(value)) for metric, value in costs.items()
            ]
    table, device = table_of(lines), environment["device"]
    caption = (
        f"A tuning step at {config.clip_size} with random weights, {config.classes} classes, {config.compute_dtype}, "
        f"jax {environment['packages']['jax']} on {device['kind']} ({json.dumps(device['platform'])}); time: median of "
        f"up to {config.repeats} warm steps."
    )
    write_file(workdir / "table.md", f"{caption}\n\n{reporting.to_markdown(table)}\n")
    print(f"\n{reporting.to_text(table)}\ntable in {workdir / 'table.md'}", flush=True)
    return evaluation.Results(dataclasses.asdict(config), environment, tuple(rows))


def cells(config: Config, method: str, costs: Mapping[str, float]) -> dict[str, str]:
    """Returns a line of the table."""
    too_large = f"needs {_size(costs.get('step_bytes'))} of {config.memory_limit:g} GiB"
    return {
        "method": method,
        "batch": f"{costs['batch_size']:.0f}",
        "images": "pixels" if gram.tuners.make(parse(method)[0]).needs_pixels else "features",
        "parameters": f"{costs['parameters']:,.0f}",
        "compile, s": f"{costs['compile_seconds']:.1f}",
        "arguments": _size(costs.get("argument_bytes")),
        "temporary": _size(costs.get("temp_bytes")),
        "GFLOP per step": f"{costs['matmul_flops'] / 1e9:.3g}",
        "s per step": f"{costs['step_seconds']:.3g}" if "step_seconds" in costs else too_large,
    }


def _unit(rng: np.random.Generator, *shape: int) -> jax.Array:
    """Returns random features of length 1."""
    drawn = rng.standard_normal(shape)
    return jax.numpy.asarray(drawn / np.linalg.norm(drawn, axis=-1, keepdims=True), np.float32)


def _size(count: float | None) -> str:
    if count is None:
        return "-"
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.2f} MiB"


if __name__ == "__main__":
    launch(run, Config)
