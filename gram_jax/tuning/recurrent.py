"""Tuning attributes and objects in turns: DRPT, reconstructed from its abstract."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.clip import Clip
from gram_jax.errors import InputError, require_bool, require_int, require_known, require_number
from gram_jax.tuning.step import Tuning

PyTree = Any
SIDES = ("objects", "attributes")
_TERMS = {"objects": "object", "attributes": "attribute"}


class Phase(NamedTuple):
    """Some steps in which one table of a prompt is frozen.

    Attributes:
      steps: their number.
      active: "attributes" or "objects", the table that is tuned; "" for both.
    """

    steps: int
    active: str


class Recurrent(NamedTuple):
    """The parts of the schedule; every one can be switched off. Make it with `recurrent`."""

    rounds: int
    first: str
    independence: float
    balance: float
    restart: bool


def recurrent(
    rounds: int = 4,
    first: str = "objects",
    independence: float = 1.0,
    balance: float = 0.5,
    restart: bool = True,
) -> Recurrent:
    """Returns a schedule that tunes objects while attributes are frozen, then the reverse, again and again.

    Args:
      rounds: the number of times that both tables had their phase; 0: both are tuned together throughout.
      first: the table of the first phase, "objects" or "attributes".
      independence: weight of the cross-entropy of the active side alone, with logits summed over the other side; half
        of it for each side where both are active; 0: off.
      balance: strength of the weights of images against entanglement, see `gram_jax.data.compositions.balance`; 0: off.
      restart: whether every phase starts with new moments of the optimizer. Otherwise they also see the gradients of
        the frozen table.

    Reference:
      "DRPT: Disentangled and Recurrent Prompt Tuning for Compositional Zero-Shot Learning" (arXiv 2305.01239). Only its
      abstract is public: it names recurrent phases (objects, then states, and the reverse, with progressive updates), a
      measure of entanglement, and a rebalancing by it. Lengths, formulas and weights are a reconstruction.
    """
    require_int("rounds", rounds, least=0)
    require_known("first", first, SIDES)
    require_number("independence", independence, least=0)
    require_number("balance", balance, least=0)
    require_bool("restart", restart)
    return Recurrent(rounds, first, float(independence), float(balance), restart)


def phases(schedule: Recurrent, steps: int) -> list[Phase]:
    """Returns the phases of a run; their lengths differ by at most one step.

    Args:
      schedule, steps: the schedule, and the number of steps of the run.

    Example:
      >>> phases(recurrent(rounds=1), 5)
      [Phase(steps=2, active='objects'), Phase(steps=3, active='attributes')]
    """
    require_int("steps", steps, least=max(1, 2 * schedule.rounds))
    if not schedule.rounds:
        return [Phase(steps, "")]
    ends = np.arange(2 * schedule.rounds + 1) * steps // (2 * schedule.rounds)
    order = SIDES if schedule.first == SIDES[0] else SIDES[::-1]
    return [Phase(int(length), order[place % 2]) for place, length in enumerate(np.diff(ends))]


def tune_in_phases(
    tuning: Tuning,
    prompt: PyTree,
    phi: PyTree,
    clip: Clip,
    batches: Iterable[dict[str, Any]],
    schedule: Recurrent,
    steps: int,
    learning_rate: float,
) -> tuple[PyTree, np.ndarray]:
    """Tunes one prompt phase by phase, one step on each batch.

    A frozen table has the rate 0; other parts of the prompt, such as a context, are tuned in every phase. All phases
    run in one compiled step.

    Args:
      tuning: from `make_tuning` with the loss `objectives.pair_loss`.
      prompt: with the parts "attributes" and "objects" if there are rounds.
      phi, clip: the parameters of the regulator, and the frozen clip.
      batches: at least `steps` batches, as `make_tuning` describes them for one run.
      schedule, steps, learning_rate: the schedule, the length of the run, and the constant rate of the active parts.

    Returns:
      The prompt, and the loss of every step, `[steps]`.
    """
    if schedule.rounds and not {*SIDES} <= set(prompt):
        raise InputError(f"rounds={schedule.rounds}: the prompt has no tables {' and '.join(SIDES)}; use rounds=0")
    state = tuning.init(jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], prompt))
    losses, source = [], iter(batches)
    for phase in phases(schedule, steps):
        if schedule.restart:
            state = tuning.init(state.prompts)
        rates = _rates(prompt, phase, learning_rate)
        added = {"term_weights": _side_weights(schedule, phase)} if schedule.independence else {}
        for _ in range(phase.steps):
            batch = next(source) | added
            state, metrics = tuning.step(state, phi, clip, batch, rates, steps)
            losses.append(metrics["loss"])
    return jax.tree.map(lambda leaf: leaf[0], state.prompts), np.concatenate(losses)


def _rates(prompt: PyTree, phase: Phase, learning_rate: float) -> PyTree:
    """Returns the rate of every leaf of a prompt: 0 in the table that a phase freezes."""
    rate = {side: learning_rate * (phase.active in ("", side)) for side in SIDES}
    return {part: jax.tree.map(lambda _, part=part: rate.get(part, learning_rate), own) for part, own in prompt.items()}


def _side_weights(schedule: Recurrent, phase: Phase) -> dict[str, jax.Array]:
    """Returns the weights of the cross-entropies of attributes and of objects in a phase."""
    share = {side: 1.0 if side == phase.active else 0.0 if phase.active else 0.5 for side in SIDES}
    return {_TERMS[side]: jnp.float32(schedule.independence * share[side]) for side in SIDES}
