"""Watches what methods learn, for tests of programs."""

from typing import Any, NamedTuple

from gram_jax.evaluation.methods import Method, Task
from gram_jax.evaluation.tuned import TunedMethod


class Learned(NamedTuple):
    """A call of `TunedMethod.learn` and its result."""

    method: Method
    task: Task
    tuned: Any


def watch(monkeypatch):
    """Returns a list that every later call of `TunedMethod.learn` is added to."""
    calls, learn = [], TunedMethod.learn

    def watched(self, trial, *arguments, **named):
        tuned = learn(self, trial, *arguments, **named)
        calls.append(Learned(self, trial.task, tuned))
        return tuned

    monkeypatch.setattr(TunedMethod, "learn", watched)
    return calls


def forbid(monkeypatch):
    """Makes every method fail that would learn or predict."""
    monkeypatch.setattr(TunedMethod, "learn", None)
    monkeypatch.setattr("experiments.evaluate.run.Comparison.run", None)
