"""What the numbers of a method depend on, by content: no paths, no spellings, no settings of memory or output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from gram_jax import artifacts
from gram_jax.data import Dataset
from gram_jax.evaluation import Candidate, Method
from gram_jax.evaluation.methods import BaselineMethod, PromptMethod, ZeroShot
from gram_jax.evaluation.protocols import Protocol, selecting

from .datasets import Opened
from .methods import INITIAL, RANDOM_START, TUNERS_START
from .settings import Settings

# Flags that change no number of a unit: what is measured at all, memory, output, places.
BESIDE = (
    "baselines", "class_chunk", "clip", "controls", "dataset", "dataset_seed", "domains", "feature_store",
    "follow_classes", "image_batch", "meta", "methods", "metrics", "protocol", "report_steps", "save_confusion",
    "save_features", "save_predictions", "save_prompts", "seeds", "select_seeds", "select_shots", "shard_classes",
    "shots", "source", "targets", "test_time_batch",
)  # fmt: skip
# Flags that enter by what they stand for: a plan, a candidate. Any other flag is taken as it is: none is forgotten.
RESOLVED = (
    "aggregation", "augmentation", "batch_size", "epochs", "gates", "gram_learning_rate", "gram_rate_factor",
    "init_text", "largest", "learning_rate", "loss", "momentum", "optimizer", "part_rates", "part_warmup", "preset",
    "regularizers", "regulation", "regulator", "schedule", "steps", "tau", "test_time_share", "test_time_views",
    "tuner", "views", "weight_decay",
)  # fmt: skip
# Fields of a plan that a candidate replaces, that are measured beside, or that change no number.
_NOT_IN_PLAN = ("learning_rate", "steps", "epochs", "report_steps", "regularizers")


def file_hashes(settings: Settings) -> dict[str, str]:
    """Returns a hash of the content of every meta checkpoint: that of --meta as "meta", controls by name."""
    paths = ({"meta": settings.meta} if settings.meta else {}) | dict(settings.control_paths)
    return {name: artifacts.content_hash(path) for name, path in paths.items()}


def method_settings(settings: Settings, method: Method, candidate: Candidate, files: Mapping[str, str]) -> Any:
    """Returns the settings that a method's numbers depend on, on whatever dataset, as JSON values."""
    about = {name: value for name, value in settings.flags.items() if name not in (*BESIDE, *RESOLVED)}
    if settings.split == "test":
        del about["split"]  # results of earlier versions do not have it
    if isinstance(method, ZeroShot):
        return about | {"template": method.template}
    if isinstance(method, BaselineMethod):
        return about | {"baseline_settings": dict(method.baseline.settings)}
    assert isinstance(method, PromptMethod)
    _, plus, role = method.name.partition("+gram")
    plan = {name: value for name, value in dataclasses.asdict(method.plan).items() if name not in _NOT_IN_PLAN}
    if settings.test_time:
        del plan["batch_size"]  # images side by side
    regulator = settings.fixed_regulator
    # Words, or a checkpoint, to start from: they set the number of tokens, too.
    spoken = INITIAL if candidate.described.get("start") not in (RANDOM_START, TUNERS_START) else ("init_text",)
    return {
        **about,
        **candidate.described,
        "tuner": method.tuner.name,
        "tuner_settings": {name: value for name, value in method.tuner.settings.items() if name not in spoken},
        **({"frozen_texts": "the template of the dataset"} if method.tuner.reads_template else {}),
        **({"gates": list(method.gates)} if method.structured and not settings.test_time else {}),
        "part_rates": dict(settings.rate_factors),
        **plan,
        "regularizers": [[term.name, term.weight, dict(term.settings)] for term in settings.terms],
        "regulator": [regulator.name, dict(regulator.settings)],
        "checkpoint": files.get(role.removeprefix(":"), files["meta"]) if plus else None,
    }


def unit_depends(
    settings: Settings,
    told: Mapping[str, Any],
    candidate: Candidate,
    opened: Opened,
    protocol: Protocol,
    shots: Any,
    content: Callable[[Dataset], str],
) -> dict[str, Any]:
    """Returns all that the result of a unit depends on.

    `told` is that of its method, with the weights of the clip; `content` returns the hash of a dataset.
    """
    dataset, targets = opened
    depends = {
        **told,
        "dataset": content(dataset),
        "tested": {name: content(each) for name, each in targets[protocol].items()},
        "metrics": list(settings.metrics),
    }
    if "tuner" in told:
        length = candidate.length(dataset.name, shots)
        depends |= {"report_steps": list(settings.report_steps), "follow_classes": settings.follow_classes}
        depends |= {"length": length._replace(warmup=dict(length.warmup))._asdict()}
    return depends


def selection_depends(
    settings: Settings, told: Mapping[str, Any], method: Method, opened: Opened, content: Callable[[Dataset], str]
) -> dict[str, Any]:
    """Returns all that the validation scores of a method's candidates on a dataset depend on."""
    candidates = [{**each.described, "length": str(each.length(opened.dataset.name, 1))} for each in method.candidates]
    tasks = [[protocol.name, *settings.counts(protocol, select=True)] for protocol in selecting(settings.protocols)]
    asked = {"select_seeds": settings.select_seeds, "tasks": tasks, "candidates": candidates}
    return {**told, **asked, "dataset": content(opened.dataset)}
