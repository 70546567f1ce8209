"""The result file of an experiment: rows in long form, paired comparisons, and where they come from."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from gram_jax.errors import InputError
from gram_jax.evaluation.statistics import Summary, p_value, paired_difference

SCHEMA = 1

_PACKAGES = ("gram_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "transformers", "pillow")


class ResultsError(InputError):
    """A result file does not follow the schema."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
      method: what was measured, e.g. "zero_shot", "coop", "coop+gram:init_only".
      protocol: how, e.g. "zero_shot", "base_to_new".
      dataset: on what, e.g. "glyphs:greek_small".
      metric: e.g. "accuracy"; fractions are in [0, 1].
      value: the number, finite.
      domain: the visual domain, where the dataset has several.
      shots: labeled images a class; None where nothing was trained.
      seed: the seed of the draw.
      split: the classes: "all", "base" or "new"; of long tails also "head", "middle" and "tail" of the base classes.
      step: the step of training; None where nothing was trained.
    """

    method: str
    protocol: str
    dataset: str
    metric: str
    value: float
    domain: str | None = None
    shots: int | None = None
    seed: int | None = None
    split: str = "all"
    step: int | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two methods over the same draws.

    Attributes:
      a, b: the methods.
      metric: what is compared.
      over: the fields whose values vary between the pairs, e.g. "dataset, seed".
      mean_difference: the mean of a - b.
      ci95: (low, high) of its 95 % confidence interval; None for one pair.
      n: the number of pairs.
      p_value: of the paired t-test that the true difference is zero, not corrected for the number of comparisons; None
        for one pair, and for pairs that all differ by the same.
    """

    a: str
    b: str
    metric: str
    over: str
    mean_difference: float
    ci95: tuple[float, float] | None
    n: int
    p_value: float | None = None


@dataclasses.dataclass(frozen=True)
class Results:
    """All that an experiment found.

    Attributes:
      config: the settings, JSON values.
      environment: what :func:`environment` returned.
      rows: the measurements.
      comparisons: paired comparisons of them.
      schema: the version of this layout.
    """

    config: dict[str, Any]
    environment: dict[str, Any]
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...] = ()
    schema: int = SCHEMA


def environment(
    *,
    weights: str | None = None,
    splits: Mapping[str, str] | None = None,
    draws: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Where numbers come from: versions, device, code, weights, splits and draws.

    Args:
      weights: the weights hash of the clip (``weights_hash(clip.params)``).
      splits: a hash for each dataset split that was used.
      draws: a hash for each few-shot draw that was used.

    Returns:
      JSON values: "python", "packages", "device" (kind, count, processes), "git" (revision of the checkout that the
      code runs from, "-dirty" appended if it was changed; None outside of one), "weights", "splits", "draws".

    Example:
      >>> found = environment(weights="abc")
      >>> found["weights"], found["device"]["count"] >= 1
      ('abc', True)

    Reference:
      Our own choice.
    """
    import jax

    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "packages": versions,
        "device": {
            "kind": jax.devices()[0].device_kind,
            "platform": jax.devices()[0].platform,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
        "git": _git_revision(),
        "weights": weights,
        "splits": dict(splits or {}),
        "draws": dict(draws or {}),
    }


def compare(
    rows: Iterable[Row],
    a: str,
    b: str,
    *,
    metric: str = "accuracy",
    over: Sequence[str] = ("dataset", "domain", "seed"),
) -> Comparison:
    """Compares two methods on the draws that both were measured on.

    Rows are paired when they agree in every field but the method and the value.

    Args:
      rows: measurements; only those of the two methods and the metric are looked at.
      a: a method.
      b: the method it is compared with.
      metric: what is compared.
      over: the fields in which pairs may differ from each other; in all others they must agree, so that, say, base
        and new classes or two numbers of shots are not averaged by accident.

    Returns:
      The :class:`Comparison`, its ``over`` naming the fields that do vary.

    Raises:
      InputError: a method has no rows or several for one draw, a draw is missing on one side, or the rows vary in a
        field outside ``over``.

    Example:
      >>> def row(method, seed, value):
      ...     return Row(method, "few_shot", "toy", "accuracy", value, seed=seed)
      >>> rows = [row("coop", 1, 0.5), row("coop", 2, 0.6), row("gram", 1, 0.6), row("gram", 2, 0.7)]
      >>> comparison = compare(rows, "gram", "coop")
      >>> round(comparison.mean_difference, 3), comparison.n, comparison.over
      (0.1, 2, 'seed')

    Reference:
      The paired t interval of :func:`gram_jax.evaluation.paired_difference`.
    """
    draws: dict[str, dict[tuple, float]] = {a: {}, b: {}}
    names = [field.name for field in dataclasses.fields(Row) if field.name not in ("method", "metric", "value")]
    for row in rows:
        if row.metric != metric or row.method not in draws:
            continue
        draw = tuple(getattr(row, name) for name in names)
        if draw in draws[row.method]:
            raise InputError(f"{row.method!r} has two rows of {metric!r} for {_describe(names, draw)}: keep one")
        draws[row.method][draw] = row.value
    for method, found in draws.items():
        if not found:
            raise InputError(f"no rows of {metric!r} for method {method!r}")
    for draw in draws[a].keys() ^ draws[b].keys():
        missing = b if draw in draws[a] else a
        raise InputError(f"{missing!r} was not measured on {_describe(names, draw)}: compare methods on the same draws")
    pairs = list(draws[a])
    varying = [name for i, name in enumerate(names) if len({draw[i] for draw in pairs}) > 1]
    if not set(varying) <= set(over):
        extra = sorted(set(varying) - set(over))
        raise InputError(f"the rows also vary in {', '.join(extra)}: filter them, or name these fields in `over`")
    difference = paired_difference([draws[a][draw] for draw in pairs], [draws[b][draw] for draw in pairs])
    return comparison(a, b, metric, ", ".join(varying), difference)


def comparison(a: str, b: str, metric: str, over: str, difference: Summary) -> Comparison:
    """A comparison of a paired difference.

    Args:
      a: a method.
      b: the method it is compared with.
      metric: what is compared.
      over: the fields whose values vary between the pairs.
      difference: of a - b, from :func:`gram_jax.evaluation.paired_difference`.

    Returns:
      The :class:`Comparison`, with an interval where there are several pairs, and a p-value where they vary.

    Example:
      >>> from gram_jax.evaluation import paired_difference
      >>> comparison("gram", "coop", "accuracy", "seed", paired_difference([0.6], [0.5])).p_value is None
      True

    Reference:
      See :func:`gram_jax.evaluation.p_value`.
    """
    ci95, p = difference.ci95 if difference.n > 1 else None, p_value(difference)
    return Comparison(a, b, metric, over, difference.mean, ci95, difference.n, None if math.isnan(p) else p)


def write_results(path: str | os.PathLike[str], results: Results) -> None:
    """Writes a result file in one piece: a reader finds the old file or the new one, never half of it.

    Args:
      path: the file, local or remote, e.g. ``WORKDIR/results.json``; its folder is created.
      results: what to write.

    Raises:
      ResultsError: the results do not follow the schema.

    Example:
      >>> import tempfile, pathlib
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "results.json"
      >>> results = Results({}, {}, (Row("zero_shot", "zero_shot", "toy", "accuracy", 0.5),))
      >>> write_results(path, results)
      >>> read_results(path) == results
      True

    Reference:
      Our own choice.
    """
    document = dataclasses.asdict(results)
    document = {"schema": document.pop("schema")} | document
    try:
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        validate(document)  # names the field, where it is one of ours
        raise ResultsError(f"{path}: config or environment hold something that is not JSON: {error}") from error
    validate(json.loads(text))
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f"{path.name}.part"
    part.write_text(text)
    part.replace(path)


def read_results(path: str | os.PathLike[str]) -> Results:
    """Reads and checks a result file.

    Args:
      path: a file written by :func:`write_results`.

    Returns:
      The results.

    Raises:
      FileNotFoundError: there is no such file.
      ResultsError: it is not JSON or does not follow the schema; the message names file and field.

    Example:
      >>> read_results("nowhere/results.json")
      Traceback (most recent call last):
      FileNotFoundError: ...

    Reference:
      Our own choice.
    """
    try:
        return validate(json.loads(epath.Path(path).read_text()))
    except ResultsError as error:
        raise ResultsError(f"{path}: {error}") from error
    except ValueError as error:
        raise ResultsError(f"{path}: not a JSON file: {error}") from error


def validate(document: Any) -> Results:
    """Turns the JSON value of a result file into :class:`Results`, checking every field.

    Args:
      document: what ``json.loads`` returned.

    Returns:
      The results.

    Raises:
      ResultsError: a field is missing, unknown or of another type; the message names it and the value found.

    Example:
      >>> validate({"schema": 1, "config": {}, "environment": {}, "rows": [{"method": 3}], "comparisons": []})
      Traceback (most recent call last):
      gram_jax.evaluation.results.ResultsError: rows[0].method: expected str, found 3

    Reference:
      Our own choice.
    """
    if isinstance(document, dict) and document.get("schema", SCHEMA) != SCHEMA:
        raise ResultsError(f"schema: this version reads {SCHEMA}, found {document['schema']!r}")
    return _parse(Results, document, "")


def _parse(kind: Any, value: Any, place: str) -> Any:
    """``value`` as ``kind``; ``place`` is where it stands in the document."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is types.UnionType:
        return None if value is None else _parse(arguments[0], value, place)
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or (arguments[-1] is not ... and len(value) != len(arguments)):
            raise _error(place, "a list" if arguments[-1] is ... else f"a list of {len(arguments)}", value)
        return tuple(_parse(arguments[0], item, f"{place}[{i}]") for i, item in enumerate(value))
    if dataclasses.is_dataclass(kind):
        return _parse_fields(kind, value, place)
    if origin is dict:
        kind = dict
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or isinstance(value, bool) or (kind is float and not math.isfinite(value)):
        raise _error(place, "a finite number" if kind is float else kind.__name__, value)
    return float(value) if kind is float else value


def _parse_fields(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise _error(place or "the document", "an object", value)
    hints = typing.get_type_hints(kind)
    prefix = f"{place}." if place else ""
    for name in sorted(value.keys() - hints.keys()):
        raise ResultsError(f"{prefix}{name}: unknown field; the fields are {', '.join(hints)}")
    found = {name: _parse(hints[name], value[name], f"{prefix}{name}") for name in hints if name in value}
    for field in dataclasses.fields(kind):
        optional = field.default is not dataclasses.MISSING and field.name != "schema"
        if field.name not in found and not optional:
            raise ResultsError(f"{prefix}{field.name}: missing")
    return kind(**found)


def _error(place: str, expected: str, value: Any) -> ResultsError:
    return ResultsError(f"{place}: expected {expected}, found {value!r}"[:300])


def _describe(names: Sequence[str], values: Sequence[Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in zip(names, values, strict=True) if value is not None)


def _git_revision() -> str | None:
    here = Path(__file__)

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie, untracked, within the checkout of another project.
    if not git("ls-files", "--error-unmatch", here.name):
        return None
    return git("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
