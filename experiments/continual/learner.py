"""One method along one stream, task after task, with checkpoints inside a task."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax import meta as meta_learning
from gram_jax.artifacts import LoadedMeta
from gram_jax.batching import map_batches
from gram_jax.clip import encode_image
from gram_jax.data import Dataset
from gram_jax.data.task_streams import StreamTask, TaskStream, limit
from gram_jax.evaluation import Encoder
from gram_jax.evaluation.encoder import view_numbers
from gram_jax.runtime.checkpoints import Checkpoints
from gram_jax.tuners import Tuner, kv_slots
from gram_jax.tuning import observe, shuffled_batches, task_covariances
from gram_jax.tuning.stream import StreamState, StreamTuning, project_jump, refine_projection

from .presets import Method

Array = jax.Array


class Setting(NamedTuple):
    """What all runs share.

    Attributes:
      encoder, tuner: the frozen clip with its memory, and the tuner.
      tuning, gram_tuning: the compiled steps, without and with GRAM's regulator (None without a meta checkpoint).
      meta: the meta checkpoint, or None.
      texts: normalized text features of all classes.
      flags: the settings of the recipe by name.
    """

    encoder: Encoder
    tuner: Tuner
    tuning: StreamTuning
    gram_tuning: StreamTuning | None
    meta: LoadedMeta | None
    texts: np.ndarray
    flags: Mapping[str, Any]


class Pool:
    """The images of several datasets under one numbering, in the form that the tuner requires."""

    def __init__(self, setting: Setting, parts: Sequence[Dataset]):
        self.setting, self.parts = setting, parts
        self.labels = np.concatenate([part.labels for part in parts])
        self._starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice) -> np.ndarray:
        return self.images(np.arange(len(self))[index])

    def images(self, rows: np.ndarray, views: tuple[int, np.ndarray] | None = None) -> np.ndarray:
        """Returns images `[rows, size, size, channels]`; with `views`, the seed and the number of each view."""
        found = None
        for part, start in zip(self.parts, self._starts, strict=False):
            inside = np.flatnonzero((rows >= start) & (rows < start + len(part)))
            if not len(inside):
                continue
            own = rows[inside] - start
            if views is None:
                pixels = self.setting.encoder.inputs(self.setting.tuner, part)[own]
            else:
                shown = [(int(i), views[0], int(n)) for i, n in zip(own, views[1][inside], strict=True)]
                pixels = self.setting.encoder.views(part, shown)
            found = np.zeros((len(rows), *pixels.shape[1:]), np.float32) if found is None else found
            found[inside] = pixels
        assert found is not None
        return found


class Plan(NamedTuple):
    """The batches of a task: the pool, the rows of every step `[steps, batch]`, and the classes that compete."""

    pool: Pool
    order: np.ndarray
    valid: np.ndarray
    old: Pool | None
    old_order: np.ndarray | None


def plan_task(setting: Setting, stream: TaskStream, method: Method, number: int, seed: int) -> Plan:
    """Returns the batches of a task, which depend on nothing but the seed and the number."""
    flags, tasks = setting.flags, stream.tasks
    taught = tasks if method.joint else tasks[number : number + 1]
    pool = Pool(setting, [task.train for task in taught])
    steps = sum(task_steps(flags, task) for task in taught)
    order = shuffled_batches(seed * 1000 + number, len(pool), flags["batch_size"], steps)
    valid, old, old_order = np.zeros(len(stream.class_names), bool), None, None
    for task in taught:
        valid[task.labels] = True
    if method.replay and number:
        old = Pool(setting, [limit(task.train, flags["replay"], seed) for task in tasks[:number]])
        old_order = shuffled_batches(seed * 1000 + 500 + number, len(old), flags["batch_size"], steps)
        for task in tasks[:number]:
            valid[task.labels] = True
    return Plan(pool, order, valid, old, old_order)


def task_steps(flags: Mapping[str, Any], task: StreamTask) -> int:
    """Returns the number of optimizer steps of a task."""
    if flags["epochs"] is None:
        return int(flags["steps"])
    return int(flags["epochs"]) * max(1, -(-len(task.train) // int(flags["batch_size"])))


def batches(setting: Setting, plan: Plan, seed: int, begin: int) -> Iterator[dict[str, Array]]:
    """Yields the batches of a task from a step on."""
    numbers = None
    if setting.flags["augmentation"] == "fresh":
        numbers = view_numbers(seed, plan.order, len(plan.pool), 0)
    for step in range(begin, len(plan.order)):
        rows = plan.order[step]
        images = plan.pool.images(rows, None if numbers is None else (seed, numbers[step]))
        labels = plan.pool.labels[rows]
        if plan.old is not None and plan.old_order is not None:
            images = np.concatenate([images, plan.old.images(plan.old_order[step])])
            labels = np.concatenate([labels, plan.old.labels[plan.old_order[step]]])
        arrays = {"images": images, "labels": labels, "texts": setting.texts, "valid": plan.valid}
        yield {name: jnp.asarray(array) for name, array in arrays.items()}


def rate(flags: Mapping[str, Any], step: int, steps: int) -> float:
    """Returns the learning rate of a step: a tenth of it after half of the steps, a hundredth after four fifths."""
    return float(flags["learning_rate"]) * 0.1 ** ((step >= steps * 0.5) + (step >= steps * 0.8))


def learn(
    setting: Setting,
    stream: TaskStream,
    method: Method,
    seed: int,
    checkpoints: Checkpoints,
    *,
    every: float,
    tell: Callable[[int], None],
) -> tuple[np.ndarray, Any]:
    """Returns the accuracies A[t, j] `[tasks, tasks]`, NaN above the diagonal, and the last prompt of a method.

    The state is a pure function of the number of steps, so that a run killed at any moment resumes bit for bit.
    `every` is the number of seconds between checkpoints inside a task; the end of a task is always saved. `tell` is
    called with the number of tasks that are learned.
    """
    tuning = setting.gram_tuning if method.gram else setting.tuning
    assert tuning is not None
    count, last = len(stream.tasks), len(stream.tasks) - 1
    carry = start(setting, stream, tuning, seed)
    restored = checkpoints.restore(carry)
    done, carry = (0, carry) if restored is None else restored
    saved, end = time.monotonic(), 0
    for number in range(last if method.joint else 0, count):
        plan = plan_task(setting, stream, method, number, seed)
        begin, end = end, end + len(plan.order) + 1
        learned = count if method.joint else 1
        if done >= end:
            tell(learned)
            continue
        if done == begin:
            carry["state"] = begin_task(setting, stream, method, tuning, carry["state"], number)
        phi, context = regulation(setting, stream, method, number)
        for step, batch in enumerate(batches(setting, plan, seed, done - begin), done - begin):
            weights = step_weights(setting.flags, method, number, step, len(plan.order))
            carry["state"], _ = tuning.step(carry["state"], phi, context, setting.encoder.clip, batch, weights)
            done += 1
            if time.monotonic() - saved > every and done < end - 1:
                checkpoints.save(done, carry)
                saved = time.monotonic()
            checkpoints.exit_if_preempted(done, carry)
        carry = end_task(setting, stream, method, tuning, carry, number, seed)
        done = end
        checkpoints.save(done, carry)
        tell(learned)
    return np.asarray(carry["matrix"], np.float64), carry["state"].prompt


def start(setting: Setting, stream: TaskStream, tuning: StreamTuning, seed: int) -> dict[str, Any]:
    """Returns what a run carries from step to step: the state, the matrix, and the features of `refine_head`."""
    clip, count, classes = setting.encoder.clip, len(stream.tasks), len(stream.class_names)
    prompt = setting.tuner.init(jax.random.key(seed), clip, None)
    carry = {"state": tuning.init(prompt, clip, classes), "matrix": jnp.full((count, count), jnp.nan)}
    if setting.flags["refine_head"]:
        width = clip.config.vision.width
        carry["refined"] = {
            "projection": clip.params["vision"]["projection"],
            "means": jnp.zeros((classes, width)),
            "covariances": jnp.zeros((classes, width, width)),
        }
    return carry


def begin_task(
    setting: Setting, stream: TaskStream, method: Method, tuning: StreamTuning, state: StreamState, number: int
) -> StreamState:
    """Returns the state at the first step of a task; with GRAM, from its initialization for the task."""
    if method.gram:
        assert setting.meta is not None
        target = meta_learning.initial_prompt(setting.meta.meta, task_context(setting, stream, stream.tasks[number]))
        state = state.replace(prompt=project_jump(state, target))  # type: ignore[attr-defined]  # flax adds it
    begun: StreamState = tuning.begin(state)
    return begun


def task_context(setting: Setting, stream: TaskStream, task: StreamTask) -> Array:
    """Returns GRAM's context of a task, from its training images and its names under "a photo of a {}."."""
    names = [stream.class_names[label] for label in task.labels]
    images, texts = setting.encoder.features(task.train), setting.encoder.texts(names)
    return meta_learning.task_context(setting.encoder.clip, jnp.asarray(images), jnp.asarray(texts))


def regulation(setting: Setting, stream: TaskStream, method: Method, number: int) -> tuple[Any, Any]:
    """Returns the parameters and the input of GRAM's regulator for a task, or None twice."""
    if not method.gram:
        return None, None
    assert setting.meta is not None
    loaded, context = setting.meta, task_context(setting, stream, stream.tasks[number])
    return loaded.meta.phi, meta_learning.regulator_context(loaded.meta, loaded.regulator, context)


def step_weights(flags: Mapping[str, Any], method: Method, number: int, step: int, steps: int) -> dict[str, Array]:
    """Returns the weights of a step, as arrays, so that all methods share one compiled program."""
    later = number > 0 and not method.joint
    weights = {
        "rate": rate(flags, step, steps),
        "norm": flags["norm_weight"] * (method.project and later),
        "distance": flags["distance"] * (method.distance and later),
    }
    return {name: jnp.float32(value) for name, value in weights.items()}


def end_task(
    setting: Setting,
    stream: TaskStream,
    method: Method,
    tuning: StreamTuning,
    carry: dict[str, Any],
    number: int,
    seed: int,
) -> dict[str, Any]:
    """Returns what a run carries after a task: covariances are added, the projection refined, accuracies measured."""
    carry, state = dict(carry), carry["state"]
    taught = stream.tasks if method.joint else stream.tasks[number : number + 1]
    pools = [Pool(setting, [task.train]) for task in taught]
    if method.project and number + 1 < len(stream.tasks):
        size = setting.encoder.batch_size
        images = (pool[at : at + size] for pool in pools for at in range(0, len(pool), size))
        slots = kv_slots(state.prompt, setting.tuner.settings["first"])
        gain = setting.flags["gain"]
        found = task_covariances(setting.encoder.clip, images, slots, gain=gain)
        carry["state"] = state.replace(space=observe(state.space, found))
    if "refined" in carry:
        carry["refined"] = refine(setting, stream, carry["refined"], state, pools, number, seed)
    carry["matrix"] = carry["matrix"].at[number, : number + 1].set(row(setting, stream, tuning, carry, number))
    return carry


def refine(
    setting: Setting,
    stream: TaskStream,
    refined: dict[str, Array],
    state: StreamState,
    pools: Sequence[Pool],
    number: int,
    seed: int,
) -> dict[str, Array]:
    """Returns the statistics of all classes so far, and the image projection retrained on them."""
    clip = setting.encoder.clip
    vision = {name: leaf for name, leaf in clip.params["vision"].items() if name != "projection"}
    bare = clip.replace(params={**clip.params, "vision": vision})
    slots = kv_slots(state.prompt, setting.tuner.settings["first"])
    refined = dict(refined)
    for pool in pools:
        features = map_batches(
            lambda batch: encode_image(bare, jnp.asarray(batch), slots=slots, normalize=False),
            pool,
            setting.encoder.batch_size,
        )
        for label in np.unique(pool.labels):
            own = features[pool.labels == label]
            centered = own - own.mean(0)
            covariance = centered.T @ centered / max(1, len(own) - 1)
            refined["means"] = refined["means"].at[label].set(own.mean(0))
            refined["covariances"] = refined["covariances"].at[label].set(covariance)
    seen = seen_classes(stream, number)
    key, scale = jax.random.fold_in(jax.random.key(seed), number), clip.params["logit_scale"]
    given = refined["means"][seen], refined["covariances"][seen], jnp.asarray(setting.texts[seen])
    refined["projection"] = refine_projection(refined["projection"], *given, scale, key)
    return refined


def seen_classes(stream: TaskStream, number: int) -> np.ndarray:
    """Returns the classes of the tasks up to one, in increasing order."""
    return np.unique(np.concatenate([task.labels for task in stream.tasks[: number + 1]]))


def row(
    setting: Setting, stream: TaskStream, tuning: StreamTuning, carry: Mapping[str, Any], number: int
) -> np.ndarray:
    """Returns the accuracies on all tasks so far, among all classes so far."""
    clip = setting.encoder.clip
    if "refined" in carry:
        vision = {**clip.params["vision"], "projection": carry["refined"]["projection"]}
        clip = clip.replace(params={**clip.params, "vision": vision})
    seen, texts = seen_classes(stream, number), jnp.asarray(setting.texts)
    state = carry["state"]

    def scores(batch: np.ndarray) -> Array:
        return tuning.logits(state.prompt, state.head, clip, texts, jnp.asarray(batch))

    return np.array([
        accuracy(map_batches(scores, Pool(setting, [task.test]), setting.encoder.batch_size), seen, task.test.labels)
        for task in stream.tasks[: number + 1]
    ])  # fmt: skip


def accuracy(scores: np.ndarray, seen: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of images whose largest score among the seen classes is that of their label."""
    return float(np.mean(seen[scores[:, seen].argmax(-1)] == labels))


def frozen(setting: Setting, stream: TaskStream, name: str) -> np.ndarray:
    """Returns the matrix of "zero_shot", or of "nearest_mean", which knows the mean training feature of each class."""
    count = len(stream.tasks)
    matrix, kernel = np.full((count, count), np.nan), np.array(setting.texts)
    test = [setting.encoder.features(task.test) for task in stream.tasks]
    train = [task.train for task in stream.tasks] if name == "nearest_mean" else []
    pooled = [(setting.encoder.features(part), part.labels) for part in train]
    for number in range(count):
        if pooled:
            features, labels = (np.concatenate(each) for each in zip(*pooled[: number + 1], strict=True))
            for label in np.unique(labels):
                mean = features[labels == label].mean(0)
                kernel[label] = mean / np.linalg.norm(mean)
        seen = seen_classes(stream, number)
        for j in range(number + 1):
            matrix[number, j] = accuracy(test[j] @ kernel.T, seen, stream.tasks[j].test.labels)
    return matrix


def limited(stream: TaskStream, train: int, test: int, seed: int) -> TaskStream:
    """Returns the stream with at most so many training and test images per class; 0 for all."""
    tasks = [
        task._replace(train=limit(task.train, train, seed), test=limit(task.test, test, 0)) for task in stream.tasks
    ]
    return stream._replace(tasks=tuple(tasks))
