"""Methods side by side on the draws that all of them share: what the tables and plots of a report are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from gram_jax import evaluation
from gram_jax.evaluation import Comparison, Row, Summary
from gram_jax.evaluation.protocols import TEST_TIME, THIRDS, TRANSFER, has_new, imbalance

FAMILIES = {
    "coop": "CoOp",
    "cocoop": "CoCoOp",
    "vpt": "VPT",
    "text_deep": "deep language prompts",
    "ivlp": "IVLP",
    "maple": "MaPLe",
    "upt": "UPT",
    "dpt": "DPT",
}
# What stands behind a tuner's name, "+" before each, with its weight behind ":" where that is not the published one.
PARTS = {
    "class_weights": "class weights",
    "cpt": "CPT",
    "distillation": "distillation",
    "gpa": "GPA",
    "kgcoop": "KgCoOp",
    "logit_adjustment": "logit adjustment",
    "npt": "NPT",
    "prograd": "ProGrad",
    "prometar": "ProMetaR",
    "promptsrc": "PromptSRC",
    "staged": "staged loss",
    "tpt": "TPT",
}
ROLES = {
    "tuner": "",
    "gram": " + GRAM",
    "following": " + GRAM, following class names",
    "init_only": " + GRAM, initialization only",
    "init_only:following": " + GRAM, initialization only, following class names",
    "regulator_only": " + GRAM, regulator only",
    "random_tasks": " + GRAM, random tasks",
    "true_groups": " + GRAM, true groups (ceiling)",
}
ZERO_SHOT, CEILING = "zero_shot", "true_groups"
TITLES = {
    "base_to_new": "Base-to-new",
    "few_shot": "Few-shot",
    "cross_dataset": "Cross-dataset",
    "domain_generalization": "Domain generalization",
    TEST_TIME: "Test-time",
}
_SINGLE_MODAL, _MULTI_MODAL = ("coop+gram", "vpt+gram"), "ivlp+gram"


class Kind(NamedTuple):
    """What was measured: a protocol, where prompts were tuned or elsewhere, of some parts of the classes or all."""

    protocol: str
    shifted: bool
    parts: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        return self.parts or (("base", "new") if has_new(self.protocol) else ("all",))

    @property
    def quantity(self) -> str:
        return "mean of H" if has_new(self.protocol) else "accuracy"

    @property
    def title(self) -> str:
        tau = imbalance(self.protocol)
        title = TITLES[self.protocol] if tau is None else f"Imbalanced, tau {tau:g}"
        elsewhere = "targets" if self.protocol == "cross_dataset" else "shifted domains"
        return title + f", {elsewhere}" * self.shifted


KINDS = tuple(
    Kind(protocol, shifted) for protocol in ("base_to_new", "few_shot", TEST_TIME) for shifted in (False, True)
)


def kinds(rows: Iterable[Row]) -> tuple[Kind, ...]:
    """The kinds that rows may be of: those within a dataset, then transfer, then long tails, the most even first."""
    taus = {imbalance(row.protocol): row.protocol for row in rows if imbalance(row.protocol) is not None}
    elsewhere = [Kind(protocol, shifted) for protocol in TRANSFER for shifted in (False, True)]
    return (*KINDS, *elsewhere, *(Kind(taus[tau], False) for tau in sorted(taus, reverse=True)))


def thirds_of(rows: Iterable[Row], kind: Kind) -> Kind:
    """The same of those thirds of the base classes, by the size of their class, that anything was measured on."""
    there = {row.split for row in rows if row.protocol == kind.protocol}
    return kind._replace(parts=tuple(third for third in THIRDS if third in there))


def parse(method: str) -> tuple[str, str]:
    """What is tuned and its role: "coop+kgcoop+gram:init_only" is ("coop+kgcoop", "init_only")."""
    if method.partition(":")[0] == ZERO_SHOT:
        return "", method
    family, plus, variant = method.partition("+gram")
    return family, (variant.removeprefix(":") or "gram") if plus else "tuner"


def label(method: str) -> str:
    """A method's name for people."""
    family, role = parse(method)
    if not family:
        template = method.partition(":")[2]
        return "zero-shot" + {"": "", "own": ", own template"}.get(template, f", {template}")
    return family_label(family) + ROLES.get(role, f" + GRAM, {role}")


def family_label(family: str) -> str:
    """The name for people of what is tuned: a tuner, and what it is composed with."""
    tuner, *parts = family.split("+")
    names = [FAMILIES.get(tuner, tuner)]
    for name, _, weight in (part.partition(":") for part in parts):
        names.append(PARTS.get(name, name) + f" (weight {weight})" * bool(weight))
    return " + ".join(names)


def ordered(methods: Iterable[str]) -> tuple[str, ...]:
    """Methods in the order of all tables and plots: a tuner alone, then what it is composed with; ceilings last."""
    families, roles = list(FAMILIES), [*(role for role in ROLES if role != CEILING), "", CEILING]

    def place(method: str) -> tuple:
        family, role = parse(method)
        tuner, _, composed = family.partition("+")
        nth = families.index(tuner) if tuner in families else len(families)
        nth_role = roles.index(role if role in roles else "")
        return (bool(family), nth, tuner, composed.count("+"), composed, nth_role, role)

    return tuple(sorted(set(methods), key=place))


def tuner_of(method: str) -> str | None:
    """The same without GRAM, that a variant of GRAM is compared with; None of all other methods."""
    family, role = parse(method)
    return family if role not in ("tuner", method) else None


def is_multi_modal(comparison: Comparison) -> bool:
    """Whether multi-modal GRAM is compared with single-modal GRAM."""
    return comparison.a == _MULTI_MODAL and comparison.b in _SINGLE_MODAL


def pairs(methods: Sequence[str], against: str | None = None) -> list[tuple[str, str]]:
    """What is compared: variants of GRAM with their tuner alone, multi-modal with single-modal GRAM, all with one."""
    found = [(method, tuner) for method in methods if (tuner := tuner_of(method))]
    found += [(_MULTI_MODAL, single) for single in _SINGLE_MODAL]
    found += [(method, against) for method in methods if against not in (None, method)]
    return list(dict.fromkeys((a, b) for a, b in found if a in methods and b in methods))


@dataclasses.dataclass(frozen=True)
class Grid:
    """Accuracies of several methods on the same datasets and seeds.

    Attributes:
      kind: what was measured.
      shots: labeled images a class.
      items: (dataset, domain) pairs, the first axis of the values.
      seeds: the second axis.
      values: by method and split, fractions ``[items, seeds]``.
      constant: the methods that no seed has a part in; their values are repeated.
      steps: the gradient step at which each method was measured, None where nothing was trained.
      lacking: how many of all draws a method was not measured on, by method; those that lack none are left out.
      left_out: how many draws of any method the values do not hold.
    """

    kind: Kind
    shots: int | None
    items: tuple[tuple[str, str | None], ...]
    seeds: tuple[int | None, ...]
    values: dict[str, dict[str, np.ndarray]]
    constant: frozenset[str]
    steps: dict[str, int | None]
    lacking: dict[str, int]
    left_out: int

    def score(self, method: str) -> np.ndarray:
        """What the protocol is judged by, ``[items, seeds]``: H of base and new, or accuracy."""
        parts = [self.values[method][split] for split in self.kind.splits]
        return evaluation.harmonic_mean(*parts) if len(parts) == 2 else parts[0]

    def summary(self, method: str, values: np.ndarray) -> Summary | None:
        """A method's ``[items, seeds]``, averaged over the items within each seed, over the seeds."""
        if method not in self.values or not values.size:
            return None
        means = values.mean(axis=0)
        return evaluation.summarize(means[:1] if method in self.constant else means)

    def difference(self, a: str, b: str) -> Summary | None:
        """The score of `a` minus that of `b`, averaged over the items within each seed, paired over the seeds."""
        return self.difference_on(range(len(self.items)), a, b)

    def difference_on(self, items: Sequence[int], a: str, b: str) -> Summary | None:
        """The same over some of the items, given by their places."""
        if a not in self.values or b not in self.values or not items:
            return None
        draws = slice(1) if {a, b} <= self.constant else slice(None)  # repeated values are no further evidence
        return evaluation.paired_difference(*(self.score(each)[list(items), draws].mean(axis=0) for each in (a, b)))


def shots_of(rows: Iterable[Row], kind: Kind, metric: str = "accuracy") -> list[int | None]:
    """The numbers of shots at which something was trained; [None] where there is zero-shot only."""
    found = {row.shots for row in rows if _is_of(row, kind, metric)}
    return sorted(found - {None}) or list(found)


def default_shots(rows: Sequence[Row]) -> int | None:
    """The largest number of shots of the first protocol that was measured."""
    return next((shots_of(rows, kind)[-1] for kind in kinds(rows) if shots_of(rows, kind)), None)


def common_steps(rows: Iterable[Row], kind: Kind, shots: int | None) -> list[int]:
    """The gradient steps at which every trained method was measured."""
    steps: dict[str, set] = {}
    for row in rows:
        if _is_of(row, kind) and row.shots == shots and row.step is not None:
            steps.setdefault(row.method, set()).add(row.step)
    return sorted(set.intersection(*steps.values())) if steps else []


def measure(
    rows: Iterable[Row], kind: Kind, shots: int | None, step: int | None = None, metric: str = "accuracy"
) -> Grid:
    """Puts methods side by side, on the draws that all of them share.

    Args:
      rows: measurements, each draw once.
      kind: which of them.
      shots: labeled images a class; what was not trained is measured at any.
      step: the gradient step; None is the last of each method.
      metric: what was measured.

    Returns:
      The grid; without items where the methods share no draw.
    """
    rows = [row for row in rows if _is_of(row, kind, metric) and row.shots in (None, shots)]
    last: dict[str, int | None] = {}
    for row in rows:
        last[row.method] = max((s for s in (last.get(row.method), row.step) if s is not None), default=None)
    steps = {method: None if final is None else final if step is None else step for method, final in last.items()}
    found: dict[str, dict[tuple, dict[str, float]]] = {method: {} for method in ordered(last)}
    for row in rows:
        if row.step == steps[row.method] and row.split in kind.splits:
            found[row.method].setdefault(((row.dataset, row.domain), row.seed), {})[row.split] = row.value
    draws = {m: {draw: parts for draw, parts in d.items() if len(parts) == len(kind.splits)} for m, d in found.items()}
    constant = {m for m, d in found.items() if last[m] is None and {seed for _, seed in d} == {None}}
    seeds = {seed for method, d in found.items() if method not in constant for _, seed in d} or {None}
    for held in (draws, found):
        for method in constant:
            held[method] = {(item, seed): parts for (item, _), parts in held[method].items() for seed in seeds}
    every = dict.fromkeys(draw for d in found.values() for draw in d)
    shared = set.intersection(*(set(d) for d in draws.values())) if draws else set()
    kept_items, kept_seeds = rectangle(shared)
    items = tuple(dict.fromkeys(item for item, _ in every if item in kept_items))
    columns = tuple(sorted(kept_seeds, key=lambda seed: (seed is not None, seed)))
    values = {
        method: {s: np.array([[d[i, seed][s] for seed in columns] for i in items]) for s in kind.splits}
        for method, d in draws.items()
    }
    lacking = {method: len(every) - len(d) for method, d in draws.items() if len(d) < len(every)}
    left_out = len(every) - len(items) * len(columns)
    return Grid(kind, shots, items, columns, values, frozenset(constant), steps, lacking, left_out)


def _is_of(row: Row, kind: Kind, metric: str = "accuracy") -> bool:
    return row.metric == metric and row.protocol == kind.protocol and (row.domain is not None) == kind.shifted


def rectangle(draws: set[tuple]) -> tuple[set, set]:
    """Items and seeds of which every combination is among the draws: the line with the most holes goes first."""
    lines = ({item for item, _ in draws}, {seed for _, seed in draws})
    while True:
        worst, drop = 0.0, None
        for axis, other in ((0, 1), (1, 0)):
            for line in sorted(lines[axis], key=repr):
                held = sum(draw[axis] == line and draw[other] in lines[other] for draw in draws)
                holes = len(lines[other]) - held
                # Measurements lost are weighed against holes removed.
                if holes and holes / max(held, 1e-9) > worst:
                    worst, drop = holes / max(held, 1e-9), (axis, line)
        if drop is None:
            return lines if all(lines) else (set(), set())
        lines[drop[0]].discard(drop[1])


def comparisons(rows: Iterable[Row], against: str | None = None) -> tuple[Comparison, ...]:
    """Paired comparisons of every variant of GRAM with its tuner, of multi-modal with single-modal GRAM, and of every
    method with the one that is named.

    Pairs are seeds: values are averaged over the datasets (and domains) within each seed first. The metric names what
    is compared, the protocol and the number of shots.
    """
    rows, found = list(rows), []
    for kind in kinds(rows):
        for shots in shots_of(rows, kind):
            grid = measure(rows, kind, shots)
            for a, b in pairs(list(grid.values), against):
                if (difference := grid.difference(a, b)) is not None:
                    found.append(evaluation.comparison(a, b, metric_name(kind, shots), "seed", difference))
    return tuple(found)


def reference(rows: Iterable[Row]) -> str | None:
    """What everything is compared with where nobody says: zero-shot, if no method is a variant of another one."""
    methods = {row.method for row in rows}
    return ZERO_SHOT if ZERO_SHOT in methods and not any(map(tuner_of, methods)) else None


def metric_name(kind: Kind, shots: int | None) -> str:
    """What a comparison compares, e.g. "accuracy (few-shot, shifted domains, 4 shots)"."""
    return f"{kind.quantity} ({kind.title.lower()}, {in_shots(shots)})"


def in_shots(shots: int | None) -> str:
    """ "1 shot", "4 shots"."""
    return "no shots" if shots is None else f"{shots} shot" + "s" * (shots != 1)
