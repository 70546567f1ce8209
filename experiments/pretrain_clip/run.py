"""Pretrains a clip on the glyph corpus and evaluates it."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gram_jax as gram
from gram_jax import evaluation, reporting, runtime
from gram_jax.batching import pad_to, round_up
from gram_jax.clip.config import ClipConfig, TextConfig, VisionConfig
from gram_jax.clip.images import ImageTransform
from gram_jax.clip.model import Clip, init_params
from gram_jax.clip.tokenizer import Tokenizer, train_tokenizer
from gram_jax.data import glyphs, ordered, templates
from gram_jax.errors import InputError
from gram_jax.objectives import contrastive_loss

from .. import _nans
from ..zero_shot import accuracy
from .config import Config
from .patches import with_patches

# Settings that may differ in a resumed run: the first steps do not depend on them.
MAY_CHANGE = ("steps", "save_every", "eval_every", "eval_images", "probe_images", "datasets", "debug_nans")
LENGTH_STEP = 8  # captions are padded to a multiple of this, so that few lengths are compiled
LOG_EVERY = 25  # steps


def make_clip(config: Config) -> Clip:
    """Returns the clip of --clip, or one with random weights and a tokenizer trained on the captions of the corpus."""
    if config.clip:
        return with_patches(gram.load_clip(config.clip), config.patch_size)
    captions = (glyphs.pair(i, config.seed).caption for i in range(config.vocabulary_pairs))
    tokenizer = train_tokenizer(captions, config.vocabulary, config.context_length)
    size, end = glyphs.IMAGE_SIZE, tokenizer.vocab_size - 1

    def tower(width: int, layers: int) -> dict[str, int]:
        return {"width": width, "layers": layers, "heads": max(1, width // 32), "mlp_width": 4 * width}

    clip_config = ClipConfig(
        text=TextConfig(
            **tower(config.text_width, config.text_layers),
            vocab_size=tokenizer.vocab_size,
            context_length=config.context_length,
            bos_token_id=end - 1,
            eos_token_id=end,
            pad_token_id=end,
        ),
        vision=VisionConfig(
            **tower(config.vision_width, config.vision_layers), image_size=size, patch_size=config.patch_size
        ),
        embed_dim=config.embed_dim,
    )
    transform = ImageTransform(size=size, crop=(size, size), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    return Clip(init_params(jax.random.key(config.seed), clip_config), clip_config, tokenizer, transform)


def make_batch(config: Config, tokenizer: Tokenizer, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the uint8 images and int32 token ids of a step; a pure function of the step."""
    difficulty = min(1.0, step / config.ramp)
    # The captions that the vocabulary was trained on come first in the stream.
    first = config.vocabulary_pairs + step * config.batch_size
    pairs = [glyphs.pair(first + i, config.seed, difficulty, config.page) for i in range(config.batch_size)]
    tokens = tokenizer.encode([pair.caption for pair in pairs], truncate=True)
    length = min(config.context_length, round_up(tokens.shape[1], LENGTH_STEP))
    tokens = pad_to(tokens, len(tokens), length, fill=tokenizer.vocab_size - 1)
    return np.stack([pair.image for pair in pairs]), tokens


@functools.cache  # `train_step` compiles once per optimizer object
def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Returns AdamW with a learning rate that warms up, is constant, and falls linearly to 0 in the last steps.

    Before the fall, a run does not depend on its total length: --steps may change when it is resumed.
    """
    warmup, decay = min(config.warmup, config.steps // 4), min(config.decay, config.steps // 2)
    rate = config.learning_rate
    rise, fall = optax.linear_schedule(0.0, rate, warmup), optax.linear_schedule(rate, 0.0, decay)
    parts = [rise, optax.constant_schedule(rate), fall]
    schedule = optax.join_schedules(parts, [warmup, config.steps - decay])
    matrices = functools.partial(jax.tree.map, lambda leaf: leaf.ndim >= 2)
    adam = optax.adamw(schedule, b1=0.9, b2=0.98, eps=1e-6, weight_decay=config.weight_decay, mask=matrices)
    return optax.chain(optax.clip_by_global_norm(1.0), adam)


@functools.partial(jax.jit, static_argnames=("optimizer",), donate_argnames=("state",))
def train_step(
    state: dict[str, Any], clip: Clip, images: jax.Array, tokens: jax.Array, optimizer: optax.GradientTransformation
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """Takes one step of contrastive training; `clip` gives the static parts, its parameters are not used."""

    def loss(params: Any) -> jax.Array:
        model = clip.replace(params=params)
        pixels = (images / 255.0 - jnp.array(clip.transform.mean)) / jnp.array(clip.transform.std)
        features = gram.encode_image(model, pixels.astype(jnp.float32))
        return contrastive_loss(features, gram.encode_text(model, tokens), params["logit_scale"])

    value, grads = jax.value_and_grad(loss)(state["params"])
    updates, optimizer_state = optimizer.update(grads, state["optimizer"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    params["logit_scale"] = jnp.minimum(params["logit_scale"], jnp.log(100.0))  # at most 100, as in CLIP
    metrics = {"loss": value, "grad_norm": optax.tree.norm(grads), "scale": jnp.exp(params["logit_scale"])}
    return {"params": params, "optimizer": optimizer_state}, metrics


def accuracies(clip: Clip, config: Config, split: str, limit: int, domain: str = "") -> dict[str, dict[str, float]]:
    """Returns the zero-shot accuracy on every dataset with its own template and with "a photo of a {}."."""
    values: dict[str, dict[str, float]] = {}
    for name in config.datasets:
        dataset = glyphs.labeled(name, domain)
        positions = [i for i in dataset.select(split) if dataset.references[i][2] < limit]
        features = evaluation.image_features(clip, dataset.images(positions))
        values[name] = {
            title: accuracy(clip, features, dataset.labels[positions], dataset.class_names, [template])
            for title, template in (("fitting", dataset.template), ("photo", templates.DEFAULT))
        }
    return values


def train(config: Config, workdir: Any) -> Clip:
    """Trains or resumes; returns the clip after the last step."""
    clip, optimizer = make_clip(config), make_optimizer(config)
    state = {"params": clip.params, "optimizer": jax.jit(optimizer.init)(clip.params)}
    draw = functools.partial(make_batch, config, clip.tokenizer)

    def step(state: dict[str, Any], images: np.ndarray, tokens: np.ndarray) -> Any:
        return train_step(state, clip.replace(params=None), images, tokens, optimizer)

    settings = dataclasses.asdict(config)
    if config.clip:
        settings["clip"] = gram.weights_hash(clip.params)  # a path may change, the weights may not
    with runtime.Checkpoints(workdir / "checkpoints", settings, keep=4, may_change=MAY_CHANGE) as checkpoints:
        restored = checkpoints.restore(state)
        first, state = (restored.step, restored.state) if restored else (0, state)
        with (
            ordered(draw, config.steps, start=first, workers=1) as batches,
            runtime.MetricsLog(workdir / "metrics.jsonl", resumed_at=first if restored else None) as log,
            runtime.Progress(config.steps, "pretrain", initial=first) as progress,
        ):
            for done, (images, tokens) in enumerate(batches, first + 1):
                before = jax.tree.map(jnp.copy, state) if config.debug_nans else None
                state, metrics = step(state, images, tokens)
                save, write = (done % every == 0 or done == config.steps for every in (config.save_every, LOG_EVERY))
                if (save or write or config.debug_nans) and not _nans.all_finite(metrics["loss"], metrics["grad_norm"]):
                    inputs = {"state": before, "images": images, "tokens": tokens}
                    raise InputError(
                        f"the loss or the gradient of step {done - 1} is not finite; {checkpoints.last_good()}. "
                        f"{_nans.HINT if before is None else _nans.explain(step, **inputs)}. Lower --learning_rate"
                    )
                if write:
                    log.write(done, **metrics)
                    progress.update(done - progress.done, loss=metrics["loss"])
                if done % config.eval_every == 0:
                    _validate(config, clip.replace(params=state["params"]), done, log, progress)
                if save:
                    checkpoints.save(done, state)
                checkpoints.exit_if_preempted(done, state)
    return clip.replace(params=state["params"])


def _validate(config: Config, clip: Clip, done: int, log: runtime.MetricsLog, progress: runtime.Progress) -> None:
    """Logs the zero-shot accuracy on validation images: the means over datasets, then each dataset."""
    values = accuracies(clip, config, "val", config.eval_images)
    means = {title: float(np.mean([each[title] for each in values.values()])) for title in ("fitting", "photo")}
    log.write(done, **means, **{f"{title}/{name}": each[title] for name, each in values.items() for title in means})
    progress.update(0, **means)


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Trains, saves the clip, and evaluates the saved clip on held-out renderings."""
    clip = train(config, workdir)
    (workdir / "clip").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:  # the work directory may be remote, save_clip needs a local folder
        gram.save_clip(clip, folder, dtype="float16")
        for path in pathlib.Path(folder).iterdir():
            (workdir / "clip" / path.name).write_bytes(path.read_bytes())
        results = evaluate(config, gram.load_clip(folder))
    print(f"\nclip in {workdir / 'clip'}; to use it: --clip={workdir / 'clip'}")
    return results


def evaluate(config: Config, clip: Clip) -> evaluation.Results:
    """Returns the accuracy zero-shot, with a linear probe and on unseen faces, on test renderings."""
    rows, hashes = [], {}

    def row(method: str, name: str, value: float, domain: str = "", shots: int | None = None) -> None:
        rows.append(evaluation.Row(method, "zero_shot", f"glyphs:{name}", "accuracy", value, domain or None, shots))

    for name, values in accuracies(clip, config, "test", 10**6).items():
        for title, value in values.items():
            row(f"zero_shot:{title}", name, value)
    for name in config.datasets:
        dataset = glyphs.labeled(name)
        hashes[dataset.name] = dataset.content_hash
        fit = [i for i in dataset.select("train") if dataset.references[i][2] < config.probe_images]
        test = dataset.select("test")
        features = evaluation.image_features(clip, dataset.images(fit))
        probe = evaluation.baselines.linear_probe(strength=1e5 / len(fit))
        state = probe.fit(clip, dataset.class_names, features, dataset.labels[fit])
        scores = probe.apply(state, clip, evaluation.image_features(clip, dataset.images(test)))
        hits = np.argmax(scores, axis=1) == dataset.labels[test]
        row("linear_probe", name, float(np.mean(hits)), shots=config.probe_images)
        unseen = [face for face in glyphs.catalog(name).faces if not glyphs.FACES[face].in_corpus]
        single = dataclasses.replace(config, datasets=(name,))
        faces = [accuracies(clip, single, "test", 4, face)[name]["fitting"] for face in unseen]
        row("zero_shot:fitting", name, float(np.mean(faces)), domain="unseen faces")
    shown = [dataclasses.replace(row, method=reporting.label(row.method)) for row in rows]
    for domain in (None, "unseen faces"):
        table = reporting.pivot([row for row in shown if row.domain == domain], over=("shots",))
        print(f"\n{domain or 'corpus faces'}, top-1 accuracy, %\n{reporting.to_text(reporting.transpose(table))}")
    environment = evaluation.environment(weights=gram.weights_hash(clip.params), splits=hashes)
    return evaluation.Results(dataclasses.asdict(config), environment, tuple(rows))
