"""Measures steps on the class names of published datasets: names in a packed prefix tree, and each name in a row.

    python -m experiments.benchmark.names
    python -m experiments.benchmark.names --lists=food101 --methods=coop --repeats=3
    python -m experiments.benchmark.names --lists=imagenet --methods=coop --classes=20000 --memory

Both sides run the shared context once and read image features. The padded side has a row for each class, as long as
the longest name, full stop and end token; the other one is the library's. The lists hold the tokens of CLIP's own
vocabulary (`name_tokens.json`, written by docs/tokens.py). Weights and image features are random.

Operations are those of matrix products, counted in the program, which is neither compiled nor run for them. --memory
compiles both sides and shows the compiler's scratch memory. With --repeats the steps are also run, by turns, and their
losses must agree. CoOp and deep text prompts take 32 images, CoCoOp one; a meta step has 8 tasks of --ways classes
drawn from the list, 4 shots and one exact inner step. --classes repeats a list, with other first tokens, until it is
that long.

Writes WORKDIR/table.md and results.json.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gram_jax import evaluation, meta, regulators, reporting, tuners, tuning
from gram_jax.clip import Classes, Clip
from gram_jax.clip.classes import Layout, Packed, Tail, fit_rows, pack_classes
from gram_jax.errors import InputError, require_known
from gram_jax.io import absolute, write_file

from .._launch import at_least, launch, setting
from . import inputs
from .sides import compiled_side, matmul_flops, relative_difference, run_in_turns
from .tables import table_of

LISTS = ("imagenet", "stanford_cars", "sun397", "food101", "fgvc_aircraft")
METHODS = {
    "coop": tuners.coop(num_tokens=4),
    "cocoop": tuners.cocoop(num_tokens=4, init_text=None),
    "text_deep": tuners.text_deep(num_tokens=4, depth=9, init_text=None),
    "gram": tuners.coop(num_tokens=4),
}
SIDES = ("padded", "tree")
TASKS, SHOTS, START, END = 8, 4, 49406, 49407  # the last two are CLIP's [SOS] and [EOS]


@dataclasses.dataclass(frozen=True)
class Config:
    """The lists, the methods, and what is measured."""

    clip_size: str = setting("vit_b16", "size of the clip, whose weights are random", choices=tuple(inputs.CLIPS))
    lists: tuple[str, ...] = setting(LISTS, f"some of {', '.join(LISTS)}")
    methods: tuple[str, ...] = setting(tuple(METHODS), f"some of {', '.join(METHODS)}")
    classes: int | None = setting(None, "number of classes; default: those of the list")
    class_chunk: int = setting(512, "classes whose texts are computed at once; 0: all")
    ways: int = setting(16, "classes of a task")
    repeats: int = setting(0, "turns of each side; the median counts; 0: nothing is run")
    steps: int = setting(2, "steps of a turn; the first does not count if others follow")
    memory: bool = setting(False, "compile, and show scratch memory")

    def __post_init__(self) -> None:
        for flag, given, known in (("lists", self.lists, LISTS), ("methods", self.methods, METHODS)):
            if not given:
                raise InputError(f"--{flag}=: choose from {', '.join(known)}")
            for name in given:
                require_known(f"--{flag}", name, known)
        at_least(self, 0, "class_chunk", "repeats")
        at_least(self, 1, "steps")
        at_least(self, 2, "classes", "ways")


def read_tails(name: str, count: int | None = None) -> list[Tail]:
    """Returns the tokens of a list, ends included; with `count`, of as many classes, some with other first tokens."""
    tails = [(*tokens, END) for tokens in inputs.read_names(name)]
    if count is not None:
        whole = [(300 + turn, *tail) if turn else tail for turn in range(-(-count // len(tails))) for tail in tails]
        tails = whole[:count]
    return tails


def make_classes(lists: list[list[Tail]], padded: bool) -> Classes:
    """Returns class lists of the same number of classes, stacked if there are several."""
    width = max(len(tail) for tails in lists for tail in tails)
    length, rows = fit_rows(lists)
    made = []
    for tails in lists:
        ids = np.array([[*tail, *[END] * (width - len(tail))] for tail in tails])
        ends = np.array([len(tail) - 1 for tail in tails])
        whole = np.concatenate([np.full((len(ids), 1), START), ids], axis=1)
        layout = Layout(length, rows if len(lists) > 1 else 1, least=width)
        classes = pack_classes(whole, ends + 1, ids, ends - 1, ends, layout)
        if padded:
            depth: Any = np.broadcast_to(np.arange(width, dtype=np.int32), ids.shape)
            mask: Any = np.broadcast_to(np.tri(width, dtype=bool), (*ids.shape, width))
            place: Any = np.arange(len(ids))
            each = Packed(classes.tail_ids, depth, mask, classes.tail_eot[:, None], place)
            classes = dataclasses.replace(classes, tree=each)
        made.append(classes)
    if len(made) == 1:
        return jax.tree.map(jnp.asarray, made[0])
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *made)


def build(config: Config, clip: Clip, method: str, tails: list[Tail], padded: bool) -> tuple[Any, tuple[Any, ...]]:
    """Returns a jitted step and its arguments; its results are the loss and the norm of the gradient."""
    tuner, rng, dim = METHODS[method], np.random.default_rng(0), clip.config.embed_dim

    def batch(classes: Classes, count: int, *tasks: int, images: int) -> dict[str, Any]:
        features = rng.standard_normal((*tasks, images, dim)).astype(np.float32)
        features /= np.linalg.norm(features, axis=-1, keepdims=True)
        labels = rng.integers(0, count, (*tasks, images)).astype(np.int32)
        return {"classes": classes, "images": jnp.asarray(features), "labels": jnp.asarray(labels)}

    loss = tuning.classification_loss(tuner)
    prompt = tuner.init(jax.random.key(0), clip, None)
    if method != "gram":
        given = batch(make_classes([tails], padded), len(tails), images=1 if method == "cocoop" else 32)

        def step(prompt: Any, clip: Any, given: Any) -> Any:
            value, gradient = jax.value_and_grad(loss)(prompt, clip, given)
            return value, optax.tree.norm(gradient)

        return jax.jit(step), (prompt, clip, given)
    drawn = [[[tails[n] for n in rng.permutation(len(tails))[: config.ways]] for _ in range(TASKS)] for _ in range(2)]
    own, cross = (make_classes(lists, padded) for lists in drawn)
    sizes = {"support": (own, SHOTS), "same": (own, 1), "cross": (cross, 2)}
    parts: dict[str, Any] = {
        name: batch(classes, config.ways, TASKS, images=n * config.ways) for name, (classes, n) in sizes.items()
    }
    regulator = regulators.affine()
    learned = meta.init_meta(prompt, regulator.init(jax.random.key(0), prompt), inputs.INNER_RATE)

    def meta_step(learned: Any, clip: Any, tasks: Any) -> Any:
        def objective(prompt: Any) -> Any:
            changed = dataclasses.replace(learned, prompt=prompt)
            return meta.meta_objective(lambda p, b: loss(p, clip, b), changed, tasks, regulator=regulator, steps=1)[0]

        value, gradient = jax.value_and_grad(objective)(learned.prompt)
        return value, optax.tree.norm(gradient)

    return jax.jit(meta_step), (learned, clip, meta.Task(**parts))


def measure(config: Config, clip: Clip, method: str, tails: list[Tail]) -> dict[str, float]:
    """Returns the quantities of both sides, named "side quantity"."""
    steps = {side: build(config, clip, method, tails, side == "padded") for side in SIDES}
    found = {f"{side} flops": matmul_flops(step.trace(*given).jaxpr.jaxpr) for side, (step, given) in steps.items()}
    if config.memory:
        for side, (step, given) in steps.items():
            analysis = step.lower(*given).compile().memory_analysis()
            found[f"{side} temp_bytes"] = float(analysis.temp_size_in_bytes)
    if config.repeats:
        sides = {
            side: compiled_side(step, functools.partial(tuple, given), tuple) for side, (step, given) in steps.items()
        }
        seconds, values = run_in_turns(sides, config.repeats, config.steps, 600.0)
        if relative_difference(values["padded"], values["tree"]) > 1e-4:
            raise ArithmeticError(f"{method}: padded {values['padded']} and tree {values['tree']} differ")
        found |= {f"{side} seconds": median(seconds[side]) for side in SIDES}
    return found


def cells(name: str, method: str, found: Mapping[str, float]) -> dict[str, str]:
    """Returns a line of the table."""
    line = {"list": name, "method": method}
    for quantity, unit, scale in (("flops", "GFLOP", 1e-9), ("temp_bytes", "MiB", 2.0**-20), ("seconds", "ms", 1e3)):
        if f"tree {quantity}" in found:
            values = [scale * found[f"{side} {quantity}"] for side in SIDES]
            line |= {f"{unit}, {side}": f"{value:,.4g}" for side, value in zip(SIDES, values, strict=True)}
            line[f"{unit}, ratio"] = f"{values[0] / values[1]:.2f}"
    return line


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Measures the lists one after the other."""
    make = functools.partial(inputs.random_clip, config.clip_size, class_chunk=config.class_chunk)
    clip = make() if config.repeats else jax.eval_shape(make)
    rows, lines = [], []
    for name in config.lists:
        tails = read_tails(name, config.classes)
        for method in config.methods:
            found = measure(config, clip, method, tails)
            lines.append(cells(name, method, found))
            print(", ".join(f"{column} {cell}" for column, cell in lines[-1].items()), flush=True)
            rows += [evaluation.Row(method, name, "names", quantity, value) for quantity, value in found.items()]
    write_file(absolute(workdir) / "table.md", reporting.to_markdown(table_of(lines)) + "\n")
    return evaluation.Results(dataclasses.asdict(config), evaluation.environment(), tuple(rows))


if __name__ == "__main__":
    launch(run, Config)
