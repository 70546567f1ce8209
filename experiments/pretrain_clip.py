"""Contrastive pre-training of the mini CLIP on the embedded world of glyphs.

    python -m experiments.pretrain_clip

The default flags make the weights that ship with the package (``gram_jax.load_clip("mini")``): a ViT of 4 layers and
width 192 over 8-pixel patches, a text transformer of 3 layers and width 128, a byte-pair vocabulary trained on the
captions; 2.7 million parameters. The difficulty of the corpus grows along the first steps, from centered
black-on-white characters under their full names to all corpus faces, colors, noise and the whole caption grammar: a
start at full difficulty learns nothing for a long time.

It takes about an hour on two cores, under 4 GiB, and reaches, averaged over the nineteen datasets on held-out
renderings, 86.9 % zero-shot under fitting templates, 80.9 % under "a photo of a {}.", 95.9 % with a linear probe, and
86.1 % on unseen faces. Pairs are drawn on one thread, some 4,000 a second: on an accelerator that sets the pace.

It resumes where it was stopped, writes ``metrics.jsonl`` along the way and, at the end, ``clip/`` (a folder that
transformers, too, can load) and ``results.json``: zero-shot accuracy under fitting templates and under "a photo of a
{}.", a linear probe, and accuracy on faces that no corpus contains.
"""

from __future__ import annotations

import concurrent.futures
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
from gram_jax import evaluation, runtime
from gram_jax import reporting as reporting_lib
from gram_jax.clip.config import ClipConfig, TextConfig, VisionConfig
from gram_jax.clip.images import ImageTransform
from gram_jax.clip.model import Clip, init_params
from gram_jax.clip.tokenizer import Tokenizer, train_tokenizer
from gram_jax.data import glyphs
from gram_jax.errors import InputError
from gram_jax.objectives import contrastive_loss

from . import _nans
from ._launch import at_least, launch, setting

PHOTO = "a photo of a {}."
# A resumed run may differ in these: the first steps do not depend on them.
MAY_CHANGE = ("steps", "save_every", "eval_every", "eval_images", "probe_images", "datasets", "debug_nans")
LENGTH_STEP = 8  # captions are padded to a multiple of this, so that few lengths are compiled


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a pre-training run."""

    seed: int = setting(0, "seed of the weights and of the corpus")
    steps: int = setting(5500, "optimizer steps")
    batch_size: int = setting(256, "image-text pairs a step")
    learning_rate: float = setting(1.5e-3, "peak of the learning rate")
    weight_decay: float = setting(0.1, "decoupled weight decay of matrices")
    warmup: int = setting(100, "steps of linear warm-up")
    decay: int = setting(1000, "last steps, along which the learning rate falls linearly to 0")
    ramp: int = setting(1500, "first steps, along which the difficulty of the corpus grows from 0 to 1")
    page: int = setting(8, "pairs in a row that are of one kind: harder negatives within a batch")
    vocabulary: int = setting(2000, "size of the byte-pair vocabulary")
    vocabulary_pairs: int = setting(20000, "captions that the vocabulary is trained on")
    context_length: int = setting(32, "most tokens of a text")
    embed_dim: int = setting(128, "width of the joint space")
    vision_width: int = setting(192, "width of the image transformer")
    vision_layers: int = setting(4, "layers of the image transformer")
    text_width: int = setting(128, "width of the text transformer")
    text_layers: int = setting(3, "layers of the text transformer")
    patch_size: int = setting(8, "pixels along a patch of the 32-pixel images")
    save_every: int = setting(250, "steps between checkpoints")
    eval_every: int = setting(500, "steps between zero-shot evaluations")
    eval_images: int = setting(2, "validation images a class in those")
    probe_images: int = setting(32, "training images a class for the linear probe")
    datasets: tuple[str, ...] = setting(glyphs.NAMES, "labeled datasets to evaluate on")
    debug_nans: bool = setting(
        False, "look at the loss of every step, and do one that is not finite again, with checks that tell where"
    )

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_size", "vocabulary_pairs", "save_every")
        at_least(self, 1, "eval_every", "eval_images", "ramp", "page")
        if 32 % self.patch_size:
            raise InputError(f"--patch_size={self.patch_size}: it must divide the 32 pixels of an image")
        for name in self.datasets:
            glyphs.catalog(name)


def make_clip(config: Config) -> Clip:
    """A clip with random weights and a tokenizer trained on the corpus' captions."""
    captions = (glyphs.pair(i, config.seed).caption for i in range(config.vocabulary_pairs))
    tokenizer = train_tokenizer(captions, config.vocabulary, config.context_length)
    size, end = glyphs.IMAGE_SIZE, tokenizer.vocab_size - 1
    clip_config = ClipConfig(
        text=TextConfig(
            vocab_size=tokenizer.vocab_size,
            width=config.text_width,
            layers=config.text_layers,
            heads=max(1, config.text_width // 32),
            mlp_width=4 * config.text_width,
            context_length=config.context_length,
            bos_token_id=end - 1,
            eos_token_id=end,
            pad_token_id=end,
        ),
        vision=VisionConfig(
            width=config.vision_width,
            layers=config.vision_layers,
            heads=max(1, config.vision_width // 32),
            mlp_width=4 * config.vision_width,
            image_size=size,
            patch_size=config.patch_size,
        ),
        embed_dim=config.embed_dim,
    )
    transform = ImageTransform(size=size, crop=(size, size), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    return Clip(init_params(jax.random.key(config.seed), clip_config), clip_config, tokenizer, transform)


def make_batch(config: Config, tokenizer: Tokenizer, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of a step: uint8 images and int32 token ids; a pure function of the step."""
    difficulty = min(1.0, step / config.ramp)
    # The captions that the vocabulary was trained on come first in the stream.
    first = config.vocabulary_pairs + step * config.batch_size
    pairs = [glyphs.pair(first + i, config.seed, difficulty, config.page) for i in range(config.batch_size)]
    tokens = tokenizer.encode([pair.caption for pair in pairs], truncate=True)
    padded = min(config.context_length, -(-tokens.shape[1] // LENGTH_STEP) * LENGTH_STEP)
    end = tokenizer.vocab_size - 1
    tokens = np.pad(tokens, ((0, 0), (0, padded - tokens.shape[1])), constant_values=end)
    return np.stack([pair.image for pair in pairs]), tokens


@functools.cache  # the same one is the same program to `train_step`
def make_optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW under a learning rate that warms up, stays, and falls linearly to 0 along the last steps.

    Up to the fall, the run does not depend on its total length: ``--steps`` may be changed when it is resumed.
    """
    warmup, decay = min(config.warmup, config.steps // 4), min(config.decay, config.steps // 2)
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
    fall = optax.linear_schedule(config.learning_rate, 0.0, decay)
    schedule = optax.join_schedules(
        [rise, optax.constant_schedule(config.learning_rate), fall], [warmup, config.steps - decay]
    )

    def decayed(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)

    adam = optax.adamw(schedule, b1=0.9, b2=0.98, eps=1e-6, weight_decay=config.weight_decay, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(1.0), adam)


@functools.partial(jax.jit, static_argnames=("optimizer",), donate_argnames=("state",))
def train_step(
    state: dict[str, Any], clip: Clip, images: jax.Array, tokens: jax.Array, optimizer: optax.GradientTransformation
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """One step of contrastive training; ``clip`` gives the static parts, its parameters are not looked at."""

    def loss(params: Any) -> jax.Array:
        model = clip.replace(params=params)
        pixels = (images / 255.0 - jnp.array(clip.transform.mean)) / jnp.array(clip.transform.std)
        return contrastive_loss(
            gram.encode_image(model, pixels.astype(jnp.float32)), gram.encode_text(model, tokens), params["logit_scale"]
        )

    value, grads = jax.value_and_grad(loss)(state["params"])
    updates, optimizer_state = optimizer.update(grads, state["optimizer"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    # CLIP never lets the logits be scaled by more than 100.
    params["logit_scale"] = jnp.minimum(params["logit_scale"], jnp.log(100.0))
    metrics = {"loss": value, "grad_norm": optax.tree.norm(grads), "scale": jnp.exp(params["logit_scale"])}
    return {"params": params, "optimizer": optimizer_state}, metrics


def accuracies(clip: Clip, config: Config, split: str, limit: int, domain: str = "") -> dict[str, dict[str, float]]:
    """Zero-shot accuracy of every dataset under its fitting template and under "a photo of a {}."."""
    found: dict[str, dict[str, float]] = {}
    for name in config.datasets:
        dataset = glyphs.labeled(name, domain)
        positions = [i for i in dataset.select(split) if dataset.references[i][2] < limit]
        features = evaluation.image_features(clip, dataset.images(positions))
        found[name] = {}
        for title, template in (("fitting", dataset.template), ("photo", PHOTO)):
            classes = evaluation.class_features(clip, dataset.class_names, [template])
            predicted = np.argmax(features @ np.asarray(classes).T, axis=-1)
            found[name][title] = float(np.mean(predicted == dataset.labels[positions]))
    return found


def _mean(found: dict[str, dict[str, float]], title: str) -> float:
    return float(np.mean([values[title] for values in found.values()]))


def train(config: Config, workdir: Any) -> Clip:
    """Trains, or goes on training; returns the clip after the last step."""
    clip, optimizer = make_clip(config), make_optimizer(config)
    state = {"params": clip.params, "optimizer": optimizer.init(clip.params)}
    bare = clip.replace(params=None)
    settings = dataclasses.asdict(config)

    def again(state: dict[str, Any], images: np.ndarray, tokens: np.ndarray) -> Any:
        return train_step(state, bare, images, tokens, optimizer)

    with (
        runtime.Checkpoints(workdir / "checkpoints", settings, keep=4, may_change=MAY_CHANGE) as checkpoints,
        concurrent.futures.ThreadPoolExecutor(1) as drawing,
    ):
        restored = checkpoints.restore(state)
        start = restored.step if restored else 0
        state = restored.state if restored else state
        ahead = {
            step: drawing.submit(make_batch, config, clip.tokenizer, step)
            for step in range(start, min(start + 4, config.steps))
        }
        with (
            runtime.MetricsLog(workdir / "metrics.jsonl", resumed_at=start if restored else None) as log,
            runtime.Progress(config.steps, "pretrain", initial=start) as progress,
        ):
            for step in range(start, config.steps):
                images, tokens = ahead.pop(step).result()
                if step + 4 < config.steps:
                    ahead[step + 4] = drawing.submit(make_batch, config, clip.tokenizer, step + 4)
                before = jax.tree.map(jnp.copy, state) if config.debug_nans else None
                state, metrics = train_step(state, bare, images, tokens, optimizer)
                done = step + 1
                saved = done % config.save_every == 0 or done == config.steps
                looked_at = saved or done % 25 == 0 or config.debug_nans
                if looked_at and not _nans.all_finite(metrics["loss"], metrics["grad_norm"]):
                    where = _nans.HINT
                    if before is not None:
                        where = _nans.explain(again, state=before, images=images, tokens=tokens)
                    raise _nans.NonFiniteError(
                        f"the loss or the gradient of step {step} is not finite; {checkpoints.last_good()}. {where}. "
                        "Lower --learning_rate"
                    )
                if done % 25 == 0 or done == config.steps:
                    log.write(done, **metrics)
                    progress.update(done - progress.done, loss=metrics["loss"])
                if done % config.eval_every == 0:
                    found = accuracies(clip.replace(params=state["params"]), config, "val", config.eval_images)
                    means = {title: _mean(found, title) for title in ("fitting", "photo")}
                    each = {f"{title}/{name}": values[title] for name, values in found.items() for title in means}
                    log.write(done, **means, **each)
                    progress.update(0, **means)
                if saved:
                    checkpoints.save(done, state)
                checkpoints.exit_if_preempted(done, state)
    return clip.replace(params=state["params"])


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Trains, writes the clip, and measures what was written on held-out renderings."""
    clip = train(config, workdir)
    (workdir / "clip").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:  # a work directory may be remote, a clip's folder is local
        gram.save_clip(clip, folder, dtype="float16")
        for path in pathlib.Path(folder).iterdir():
            (workdir / "clip" / path.name).write_bytes(path.read_bytes())
        return measure(config, gram.load_clip(folder))


def measure(config: Config, clip: Clip) -> evaluation.Results:
    """Zero-shot accuracy, a linear probe and unseen faces, on test renderings."""
    rows = []

    def row(method: str, name: str, value: float, domain: str = "", shots: int | None = None) -> None:
        rows.append(evaluation.Row(method, "zero_shot", f"glyphs:{name}", "accuracy", value, domain or None, shots))

    hashes = {}
    for name, values in accuracies(clip, config, "test", 10**6).items():
        row("zero_shot:fitting", name, values["fitting"])
        row("zero_shot:photo", name, values["photo"])
    for name in config.datasets:
        dataset = glyphs.labeled(name)
        hashes[dataset.name] = dataset.content_hash
        fit = [i for i in dataset.select("train") if dataset.references[i][2] < config.probe_images]
        test = dataset.select("test")
        predicted = evaluation.linear_probe(
            evaluation.image_features(clip, dataset.images(fit)),
            dataset.labels[fit],
            evaluation.image_features(clip, dataset.images(test)),
            len(dataset.class_names),
        )
        row("linear_probe", name, float(np.mean(predicted == dataset.labels[test])), shots=config.probe_images)
        unseen = [face for face in glyphs.catalog(name).faces if not glyphs.FACES[face].in_corpus]
        single = dataclasses.replace(config, datasets=(name,))
        faces = [accuracies(clip, single, "test", 4, face)[name]["fitting"] for face in unseen]
        row("zero_shot:fitting", name, float(np.mean(faces)), domain="unseen faces")
    for domain in (None, "unseen faces"):
        table = reporting_lib.transpose(
            reporting_lib.pivot([row for row in rows if row.domain == domain], over=("shots",))
        )
        print(f"\n{domain or 'corpus faces'}, top-1 accuracy, %\n{reporting_lib.to_text(table)}")
    environment = evaluation.environment(weights=gram.weights_hash(clip.params), splits=hashes)
    return evaluation.Results(dataclasses.asdict(config), environment, tuple(rows))


if __name__ == "__main__":
    launch(run, Config)
