"""The result file of an experiment: measurements in long form, paired comparisons, and their provenance."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epath

from gram_jax.errors import InputError, differences, explain, nearest
from gram_jax.evaluation.statistics import Summary, paired_difference
from gram_jax.io import file_hash, keep_older, read_json, write_file
from gram_jax.summary import short_repr

if TYPE_CHECKING:
    import pydantic

logger = logging.getLogger(__name__)

SCHEMA = 1

_PACKAGES = ("gram_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "transformers", "pillow")
_STRICT = {"strict": True, "extra": "forbid", "allow_inf_nan": False}  # as pydantic reads it


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
      method, protocol, dataset: e.g. "coop+gram:init_only", "base_to_new", "glyphs:greek_small".
      metric, value: e.g. "accuracy", and the finite number; fractions are in [0, 1].
      domain: the visual domain, or the dataset tested on, if it differs from `dataset`.
      shots: labeled images per class; None without training.
      seed: the seed of the draw.
      split: the classes: "all", "base" or "new"; for long tails also "head", "middle" and "tail" of the base classes.
      step: the training step; None without training.
    """

    __pydantic_config__ = _STRICT

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


_DRAW = tuple(field.name for field in dataclasses.fields(Row) if field.name not in ("method", "metric", "value"))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A comparison of two methods, a and b, on the same draws.

    Attributes:
      over: the fields whose values vary between the pairs, e.g. "dataset, seed".
      mean_difference: the mean of a - b.
      ci95: (low, high) of its 95 % confidence interval; None for one pair.
      n: the number of pairs.
      p_value: that of the paired t-test of zero difference, not corrected for the number of comparisons; None for one
        pair, and for pairs with equal differences.
    """

    __pydantic_config__ = _STRICT

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
    """The results of an experiment: settings (JSON values), provenance from `environment`, and measurements."""

    __pydantic_config__ = _STRICT

    config: dict[str, Any]
    environment: dict[str, Any]
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...] = ()
    schema: int = SCHEMA

    __repr__ = short_repr


def environment(
    *, weights: str | None = None, splits: Mapping[str, str] | None = None, draws: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Returns the provenance of results: versions, device, code, weights, splits and draws.

    Args:
      weights: the weights hash of the clip (`weights_hash(clip.params)`).
      splits, draws: a hash of each dataset split and each few-shot draw in use.

    Returns:
      JSON values: "python", "packages", "device" (kind, platform, count, processes), "git" (the revision of the
      checkout that contains the code, with "-dirty" after changes; None outside a checkout), "code" (a hash of the
      source files), "weights", "splits", "draws".
    """
    import jax

    versions, device = {}, jax.devices()[0]
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "python": platform.python_version(),
        "packages": versions,
        "device": {"kind": device.device_kind, "platform": device.platform}
        | {"count": jax.device_count(), "processes": jax.process_count()},
        "git": _git_revision(),
        "code": _code_hash(),
        "weights": weights,
        "splits": dict(splits or {}),
        "draws": dict(draws or {}),
    }


_VERSIONS = ("python", "packages", "device", "git", "code")


def measured_by(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of an environment that name the code and the versions of a measurement.

    Args:
      environment: what `environment` returns.
    """
    by = {name: environment[name] for name in _VERSIONS}
    return by | {"device": {name: by["device"][name] for name in ("kind", "platform")}}


def warn_of_versions(environment: Mapping[str, Any]) -> None:
    """Logs a warning if results were measured by other code or versions than this process has.

    Args:
      environment: the provenance of the results, with "measured_by".
    """
    here = json.loads(json.dumps(measured_by(environment)))
    for other in environment["measured_by"]:
        if changed := differences({name: other.get(name) for name in here}, here):
            logger.warning(
                "%d finished units were measured by other code or versions, which results.json names: %s",
                other["units"], "; ".join(changed),
            )  # fmt: skip


def compare(
    rows: Iterable[Row],
    a: str,
    b: str,
    *,
    metric: str = "accuracy",
    over: Sequence[str] = ("dataset", "domain", "seed"),
) -> Comparison:
    """Compares two methods on the same draws.

    Two rows form a pair if they agree in every field except the method and the value.

    Args:
      rows: measurements; rows of other methods and metrics are ignored.
      a, b, metric: the methods, and the metric in which they are compared.
      over: the fields in which pairs may differ from each other. They must agree in all other fields, so that, for
        example, base and new classes or two numbers of shots are not averaged by accident.

    Returns:
      The comparison; its `over` names the fields that vary. InputError if a method has no rows or several for one draw,
      a draw is missing on one side, or the rows vary in a field that is not in `over`.

    Example:
      >>> def row(method, seed, value):
      ...     return Row(method, "few_shot", "toy", "accuracy", value, seed=seed)
      >>> rows = [row("coop", 1, 0.5), row("coop", 2, 0.6), row("gram", 1, 0.6), row("gram", 2, 0.7)]
      >>> comparison = compare(rows, "gram", "coop")
      >>> round(comparison.mean_difference, 3), comparison.n, comparison.over
      (0.1, 2, 'seed')
    """
    rows = [row for row in rows if row.metric == metric]
    of_a, of_b = _by_draw(rows, a, metric), _by_draw(rows, b, metric)
    for draw in of_a.keys() ^ of_b.keys():
        missing = b if draw in of_a else a
        raise InputError(f"{missing!r} was not measured on {_describe(draw)}; compare methods on the same draws")
    varying = [name for name, *values in zip(_DRAW, *of_a, strict=True) if len(set(values)) > 1]
    if extra := sorted(set(varying) - set(over)):
        raise InputError(f"the rows also vary in {', '.join(extra)}; filter them, or name these fields in `over`")
    difference = paired_difference(list(of_a.values()), [of_b[draw] for draw in of_a])
    return comparison(a, b, metric, ", ".join(varying), difference)


def _by_draw(rows: Iterable[Row], method: str, metric: str) -> dict[tuple, float]:
    values: dict[tuple, float] = {}
    for row in rows:
        if row.method == method:
            draw = tuple(getattr(row, name) for name in _DRAW)
            if draw in values:
                raise InputError(f"{method!r} has two rows of {metric!r} for {_describe(draw)}; keep one")
            values[draw] = row.value
    if not values:
        raise InputError(f"no rows of {metric!r} for method {method!r}")
    return values


def comparison(a: str, b: str, metric: str, over: str, difference: Summary) -> Comparison:
    """Returns a `Comparison` from a paired difference.

    Args:
      a, b, metric, over, difference: the fields of the comparison, and the `paired_difference` of a and b.
    """
    ci95 = difference.ci95 if difference.n > 1 else None
    p = None if math.isnan(difference.p_value) else difference.p_value
    return Comparison(a, b, metric, over, difference.mean, ci95, difference.n, p)


@functools.cache
def _adapter() -> pydantic.TypeAdapter[Results]:
    import pydantic  # late: it is not needed before results are written

    return pydantic.TypeAdapter(Results)


def write_results(path: str | os.PathLike[str], results: Results) -> None:
    """Writes a result file atomically; InputError names what does not follow the schema.

    Args:
      path, results: the file, local or remote, whose missing folders are created, and its content.

    Example:
      >>> import tempfile, pathlib
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "results.json"
      >>> results = Results({}, {}, (Row("zero_shot", "zero_shot", "toy", "accuracy", 0.5),))
      >>> write_results(path, results)
      >>> read_results(path) == results
      True
    """
    document = dataclasses.asdict(results)
    document = {"schema": document.pop("schema")} | document
    validate(document)
    try:
        text = json.dumps(document, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: config or environment contains a value that is not JSON: {error}") from error
    write_file(path, text + "\n")


def save_results(folder: str | os.PathLike[str], results: Results) -> None:
    """Writes `results.json` of a work directory; keeps an older one, unless the new one has all of its rows.

    Args:
      folder, results: the work directory, and what it shall hold.
    """
    path = epath.Path(folder) / "results.json"
    if path.exists() and not _includes(results, path):
        logger.warning("the older %s has other results and is kept as %s", path, keep_older(path).name)
    write_results(path, results)


def _includes(results: Results, path: epath.Path) -> bool:
    """Returns whether results have every row of a file, costs aside, which vary; False for a file of another kind."""
    try:
        older = read_results(path)
    except InputError:
        return False
    values = {dataclasses.replace(row, value=0.0): row.value for row in results.rows}
    measured = ((dataclasses.replace(row, value=0.0), row) for row in older.rows)
    return all(draw in values and (values[draw] == row.value or row.seed is None) for draw, row in measured)


def read_results(path: str | os.PathLike[str]) -> Results:
    """Returns the results of a file after checking every field; InputError names the file and the field.

    Args:
      path: a file that `write_results` wrote.
    """
    document = read_json(path)
    with explain(f"{path}: "):
        return validate(document)


def validate(document: Any) -> Results:
    """Returns the results in the JSON value of a result file; InputError names a wrong field and its value.

    Args:
      document: a value as `json.loads` returns it.

    Example:
      >>> validate({"schema": 1, "config": {}, "environment": {}, "rows": [{"method": 3}], "comparisons": []})
      Traceback (most recent call last):
      gram_jax.errors.InputError: rows[0].method: Input should be a valid string, found 3 (and 4 more errors)
    """
    if isinstance(document, dict) and document.get("schema") != SCHEMA:
        raise InputError(f"schema: this version reads {SCHEMA}, found {document.get('schema')!r}")
    from pydantic import ValidationError

    try:
        return _adapter().validate_json(json.dumps(document, default=repr))  # JSON, in which a list may become a tuple
    except ValidationError as error:
        raise InputError(_first_error(error)) from error


def _first_error(error: pydantic.ValidationError) -> str:
    first, *others = error.errors(include_url=False)
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]]
    message = f"{''.join(parts).removeprefix('.') or 'the document'}: {first['msg']}"
    if first["type"] == "unexpected_keyword_argument":
        known = [field.name for kind in (Row, Comparison, Results) for field in dataclasses.fields(kind)]
        message += nearest(str(first["loc"][-1]), known)
    if first["type"] != "missing":
        message += f", found {first['input']!r}"[:200]
    return message + (f" (and {len(others)} more errors)" if others else "")


def _describe(draw: tuple) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in zip(_DRAW, draw, strict=True) if value is not None)


@functools.cache
def _code_hash() -> str:
    """Returns a hash of the source files of the library and its programs."""
    package = Path(__file__).parents[1]
    hashed = hashlib.sha256()
    for folder in (package, package.parent / "experiments"):
        for path in sorted(folder.rglob("*.py")):
            hashed.update(f"{path.relative_to(package.parent).as_posix()} {file_hash(path)}\n".encode())
    return hashed.hexdigest()


@functools.cache
def _git_revision() -> str | None:
    here = Path(__file__)

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may be an untracked file in the checkout of another project.
    if not git("ls-files", "--error-unmatch", here.name):
        return None
    return git("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
