"""Tuned prompts as a method: one run per seed, one after the other in one compiled step."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax import objectives, tuning
from gram_jax.data import Dataset
from gram_jax.errors import InputError
from gram_jax.evaluation.encoder import PHOTO, Encoder, training_images
from gram_jax.evaluation.methods import PredictionsByStep, PromptMethod, Task, Trial
from gram_jax.evaluation.plans import Length, by_part
from gram_jax.evaluation.prediction import Predictions, cross_entropy, predict_labels
from gram_jax.evaluation.protocols import Part
from gram_jax.evaluation.references import class_reference, regulator_contexts, task_contexts
from gram_jax.meta import gated_prompt, prompt_between

FEATURE_BATCH = 4096  # frozen image features that are classified at once


class TunedMethod(PromptMethod):
    """Prompts that are tuned on labeled images; `plan` is a `TuningPlan`."""

    def learn(self, trial: Trial, report: Sequence[int] = (), measure_cost: bool = False) -> tuning.Tuned:
        """Tunes one prompt for each seed on its own draw.

        One run at a time: a compiled step of several runs sums in another order, so that a seed's numbers would depend
        on the number of seeds beside it. On CPUs it is faster, too.
        """
        each = [trial._replace(task=trial.task._replace(seeds=(seed,))) for seed in trial.task.seeds]
        return tuning.join([self._learn_run(one, report, measure_cost, one is each[0]) for one in each])

    def _learn_run(self, trial: Trial, report: Sequence[int], measure_cost: bool, announce: bool) -> tuning.Tuned:
        """Tunes the prompt of a task of one seed."""
        (encoder, task, candidate), supports = trial, trial.task.supports()
        context = task_contexts(encoder, supports) if self.needs_context else None
        prompts, _ = self._initial_prompts(trial, supports, context)
        length = candidate.length(task.dataset.name, task.shots)
        orders, weights = self._orders(task, length, len(supports[0]))
        recipe = tuning.Recipe(
            candidate.learning_rate,
            total_steps=len(orders[0]),
            epoch_steps=max(1, len(supports[0]) // self.plan.batch_size),
            warmup_epochs=by_part("part_warmup", length.warmup, 1, prompts) if length.warmup else 1,
            epoch_weights=weights,
        )
        batches = self._batches(trial, supports, orders, context, recipe.epoch_steps)
        phi = self._initial_phi(task.seeds, prompts)
        # On all devices from the first step on, so that the second step has arguments of the same layout.
        placed = self.compiled.tuning._replace(init=lambda *begun: encoder.place(self.compiled.tuning.init(*begun)))
        if announce and (first := next(batches, None)) is not None:
            lowered = placed.lower(placed.init(prompts, phi), phi, encoder.clip, first, *recipe[:4])
            where = f"{task.dataset.name}, {len(supports[0].class_names)} classes"
            # Compiled here, and not again when the step is taken.
            encoder.announce(self.name, where, tuning.memory_bytes(lowered.compile()))
            batches = itertools.chain([first], batches)
        told: dict[str, Any] = {"report": [s for s in report if s <= len(orders[0])], "measure_cost": measure_cost}
        return tuning.tune(placed, prompts, phi, encoder.clip, batches, recipe, **told)

    def predict(self, trial: Trial, learned: tuning.Tuned, parts: Sequence[Part]) -> PredictionsByStep:
        """Predicts each part; on other datasets, without the offset of the theme that the prompt was tuned on."""
        by_step = sorted(learned.prompts.items())
        if self.structured and trial.task.protocol.elsewhere == "datasets":
            start = self._start(trial)
            return {step: self._predict_elsewhere(trial, prompts, parts, start) for step, prompts in by_step}
        return {step: self.predict_with(trial.encoder, prompts, parts) for step, prompts in by_step}

    def predict_with(self, encoder: Encoder, prompts: Any, parts: Sequence[Part]) -> list[Predictions]:
        """Returns what each run predicts on each part; class texts are encoded once for all parts of one class list."""
        predictions: dict[int, Predictions] = {}
        batch_size = encoder.batch_size if self.tuner.needs_pixels else FEATURE_BATCH
        lists = [(part.dataset.class_names, part.dataset.template) for part in parts]
        lists = lists if self.tuner.reads_template else [(names, PHOTO) for names, _ in lists]
        for names, template in dict.fromkeys(lists):
            members = [i for i, each in enumerate(lists) if each == (names, template)]
            inputs = [encoder.inputs(self.tuner, parts[i].dataset) for i in members]
            together = inputs if self.tuner.needs_pixels else [np.concatenate(inputs)]
            classes, valid = encoder.classes(self.tuner, names, template)
            predicted = [
                predict_labels(self.compiled.tuning, prompts, encoder.clip, classes, valid, own, batch_size=batch_size)
                for own in together
            ]
            ends = np.cumsum([len(parts[i].dataset) for i in members])[:-1]
            pieces = [np.split(np.concatenate(field, axis=1), ends, axis=1) for field in zip(*predicted, strict=True)]
            predictions |= dict(zip(members, map(Predictions, *pieces), strict=True))
        return [predictions[i] for i in range(len(parts))]

    def predict_following(self, trial: Trial, prompts: Any, parts: Sequence[Part]) -> list[Predictions]:
        """Returns the predictions of prompts that follow the class names of other datasets.

        A tuned prompt moves as its structured initialization would move if the text of the task were that of the new
        class names. No image of a part is read for it.
        """
        return self._predict_elsewhere(trial, prompts, parts, self._start(trial), follow=True)

    def _start(self, trial: Trial) -> tuple[np.ndarray, Any, np.ndarray]:
        """Returns the contexts of the runs, the prompts that they begin with, and their gates."""
        supports = trial.task.supports()
        contexts = task_contexts(trial.encoder, supports)
        return contexts, *self._initial_prompts(trial, supports, contexts)

    def _predict_elsewhere(
        self,
        trial: Trial,
        prompts: Any,
        parts: Sequence[Part],
        start: tuple[np.ndarray, Any, np.ndarray],
        follow: bool = False,
    ) -> list[Predictions]:
        """Replaces, on other datasets, theta_0(c) of the tuned task by theta, or by theta_0 of the new class names."""
        encoder, _, candidate = trial
        here, begun, gates = start
        begin = functools.partial(candidate.initialize, jax.random.key(0), encoder.clip, None)
        theta = begin(None)
        predictions = []
        for part in parts:
            moved = prompts
            if part.domain is not None:
                ends = [theta] * len(here)
                if follow:
                    contexts = here.copy()
                    contexts[:, here.shape[1] // 2 :] = encoder.texts(part.dataset.class_names).mean(0)
                    runs = zip(contexts, gates.tolist(), strict=True)
                    ends = [prompt_between(theta, begin(context), gate) for context, gate in runs]
                there = _stack_trees(ends)
                moved = jax.tree.map(lambda prompt, end, first: prompt + (end - first), prompts, there, begun)
            predictions += self.predict_with(encoder, moved, [part])
        return predictions

    def shared_runs(self) -> list[list[int]]:
        """Groups candidates that differ in steps only, longest first: at a constant rate, a shorter run begins it."""
        groups: dict[Any, list[int]] = {}
        apart = self.plan.schedule != "constant"
        for i, candidate in enumerate(self.candidates):
            groups.setdefault(tuple(kv for kv in candidate.described.items() if apart or kv[0] != "steps"), []).append(
                i
            )
        steps = [candidate.described.get("steps", 0) for candidate in self.candidates]
        return [sorted(group, key=steps.__getitem__, reverse=True) for group in groups.values()]

    def require_finite(self, task: Task, tuned: tuning.Tuned) -> None:
        """Raises InputError if a loss is not finite."""
        for step, losses in enumerate(tuned.metrics.get("loss", ())):
            if not np.all(np.isfinite(losses)):
                seed = task.seeds[int(np.argmin(np.isfinite(losses)))]
                raise InputError(
                    f"the loss of {self.name} on {task.dataset.name} is not finite at step {step}, {task.shots} shots, "
                    f"seed {seed}; lower its learning rate"
                )

    def _initial_prompts(
        self, trial: Trial, supports: Sequence[Dataset], context: np.ndarray | None
    ) -> tuple[Any, np.ndarray]:
        """Returns the prompt that each run begins with, and the gate of a structured initialization of each run."""
        encoder, task, candidate = trial
        names, template = supports[0].class_names, supports[0].template if self.tuner.reads_template else PHOTO
        classes, valid = encoder.classes(self.tuner, names, template)
        batch_size = encoder.batch_size if self.tuner.needs_pixels else FEATURE_BATCH
        begun = []
        for run, (seed, support) in enumerate(zip(task.seeds, supports, strict=True)):
            begin = functools.partial(candidate.initialize, jax.random.key(seed), encoder.clip, classes)
            if not self.structured or context is None:
                begun.append((begin(None), 1.0))
                continue
            images = encoder.inputs(self.tuner, support)

            def loss(prompt: Any, images: Any = images, labels: np.ndarray = support.labels) -> float:
                frozen = encoder.clip, classes, valid
                return cross_entropy(self.compiled.tuning, prompt, *frozen, images, labels, batch_size=batch_size)

            begun.append(gated_prompt(begin(None), begin(context[run]), loss, self.gates))
        prompts, gates = zip(*begun, strict=True)
        return _stack_trees(prompts), np.array(gates)

    def _initial_phi(self, seeds: Sequence[int], prompts: Any) -> Any:
        """Returns the regulator's parameters; `[runs, ...]`, drawn by seed, if they are learned with the prompt."""
        prompt = jax.tree.map(lambda leaf: leaf[0], prompts)
        if not self.plan.alternating:
            return self.initial_phi(prompt)
        return _stack_trees(self.initial_phi(prompt, jax.random.fold_in(jax.random.key(seed), 1)) for seed in seeds)

    def _orders(self, task: Task, length: Length, count: int) -> tuple[list[np.ndarray], np.ndarray | None]:
        """Returns the items of every batch of each run, and the weights of the prompts of all epochs."""
        size = self.plan.batch_size
        if length.epochs is None:
            assert length.steps is not None
            return [tuning.shuffled_batches(seed, count, size, length.steps) for seed in task.seeds], None
        orders = [tuning.epoch_batches(seed, count, size, length.epochs) for seed in task.seeds]
        weights = objectives.gaussian_weights(length.epochs, *length.aggregation) if length.aggregation else None
        return orders, weights

    def _batches(
        self,
        trial: Trial,
        supports: Sequence[Dataset],
        orders: Sequence[np.ndarray],
        context: np.ndarray | None,
        epoch_steps: int,
    ) -> Iterator[dict[str, Any]]:
        """Yields the batch of every step, all runs together."""
        plan, loss, encoder, seeds = self.plan, self.compiled.loss, trial.encoder, trial.task.seeds
        classes, valid = encoder.classes(self.tuner, supports[0].class_names, supports[0].template)
        context = regulator_contexts(self.regulator, self.structure, context)
        shared, own_reference, frozen = {"classes": classes, "valid": valid, "context": context}, {}, False
        if loss is not None:
            shared["reference"] = class_reference(encoder, supports[0], loss)
            frozen = bool(loss.reads & {"image_features", "logits"})
            if "counts" in loss.reads:
                counts = [np.bincount(own.labels, minlength=len(valid)).astype(np.float32) for own in supports]
                own_reference["counts"] = np.stack(counts)
        shared, own_reference = jax.device_put((shared, own_reference))
        options = {"augmentation": plan.augmentation, "stored": plan.views, "frozen": frozen}
        draws = zip(supports, orders, seeds, strict=True)
        runs = [training_images(encoder, self.tuner, *each, **options) for each in draws]
        for step, (positions, *pairs) in enumerate(zip(zip(*orders, strict=True), *runs, strict=True)):
            images, features = zip(*pairs, strict=True)
            batch = shared | {
                "images": _stacked(images),
                "labels": np.stack([own.labels[at] for own, at in zip(supports, positions, strict=True)]),
                "run_reference": own_reference
                | ({} if features[0] is None else {"image_features": _stacked(features)}),
            }
            if plan.staged is not None:
                batch["guided"] = np.array(step // epoch_steps < plan.staged.guided_epochs)
            if plan.alternating:
                batch["seed"] = np.array([seed % 2**32 for seed in seeds], np.uint32)
            yield batch


def _stack_trees(trees: Iterable[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _stacked(runs: Sequence[Any]) -> Any:
    """Returns the arrays of all runs in one, on the device if they are there already."""
    return (np if all(isinstance(each, np.ndarray) for each in runs) else jnp).stack(runs)
