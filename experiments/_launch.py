"""Turns the command line into a frozen config dataclass.

An experiment module holds a frozen dataclass of settings, a function `run(config, workdir)`, and at its end::

    if __name__ == "__main__":
        launch(run, Config)

`run` can be imported; it returns `gram_jax.evaluation.Results` or None. `_execute` does the rest of a program's work:
it joins processes, locks the work directory, writes the results, and turns errors into exit statuses.
"""

from __future__ import annotations

import csv
import dataclasses
import gc
import io
import os
import pathlib
import re
import shlex
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import app, flags

from gram_jax.errors import MOST_SEED, InputError, require_int, require_number

from . import _terminal

_DEFINE = {
    bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string
}  # fmt: skip


MOST = 2**31 - 1  # the largest integer of a setting
_HOME = re.compile(r"(?:^|(?<=[:=,]))~[\w.-]*(?=/)")


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    repeated: bool = False,
    most: int = MOST,
    above: float | None = None,
    positional: bool = False,
) -> Any:
    """Returns a field of a config dataclass that becomes a flag.

    Args:
      default: the default value. The field's annotation is the type: bool, int, float, str, a tuple of one of these
        (`tuple[int, ...]`), or any of them `| None`.
      help: the meaning of the setting, with its unit.
      choices: the allowed values of a string.
      repeated: a tuple of strings is given by repeating the flag (for values that contain commas) instead of one
        comma-separated list.
      most: the largest allowed integer; of settings that are called "seed" or "...seeds", `MOST_SEED`.
      above: numbers must be above it; None for no bound.
      positional: the value may also be given without the flag's name; such settings are taken in their order.

    Example:
      >>> @dataclasses.dataclass(frozen=True)
      ... class Config:
      ...     seeds: tuple[int, ...] = setting((0, 1, 2), "seeds of the few-shot draws")
      >>> Config().seeds
      (0, 1, 2)
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "choices": choices,
            "repeated": repeated,
            "most": most,
            "above": above,
            "positional": positional,
        },
    )


def at_least(config: object, least: int, *names: str) -> None:
    """Raises InputError if an integer setting, or an element of a tuple setting, is below a bound; None passes."""
    for name, value in _values(config, names):
        require_int(name, value, least)


def positive(config: object, *names: str) -> None:
    """Raises InputError if a setting, or an element of a tuple setting, is not a positive number; None passes."""
    for name, value in _values(config, names):
        require_number(name, value, above=0)


def _values(config: object, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for name in names:
        value = getattr(config, name)
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None:
                yield f"--{name}", item


def launch(
    run: Callable[[Any, Any], Any],
    config_class: type,
    *,
    make: Callable[..., Any] | None = None,
    distributed: str | None = None,
) -> None:
    """Parses flags into a config, runs the experiment, writes its results, and exits.

    Every field is a flag, and so is `--workdir`, which one run uses at a time. The exit status is 0 on success (and
    after a preemption or SIGTERM), and 2 after an error that the user can fix: `InputError`, a missing file, a full
    disk. Such an error is one line without a traceback; `--verbosity=1` shows the traceback. Any other error is a bug
    and keeps its traceback.

    Args:
      run: `run(config, workdir) -> Results | None`; `workdir` is an absolute `epath.Path` of an existing folder.
      config_class: a frozen dataclass whose fields all have defaults, see `setting`.
      make: makes the config from the values of all flags, by name; default `config_class`.
      distributed: the way in which several processes share the experiment. "steps": all take every step together, and
        after a notice to stop all save the same step. "units": each does its own units of work; one that must stop
        keeps what it finished, and the others stop too. None: one process only, without the flag `--distributed`.
    """
    # Imports and tracing make many objects that stay: with the default of 700, looking for cycles among them takes a
    # tenth of the start of a program.
    gc.set_threshold(50_000)
    _terminal.prepare()
    name = _experiment_name()
    flags.disclaim_key_flags()  # so that --help lists these flags as the experiment's own
    flags.DEFINE_string("workdir", f"runs/{name}", "folder of checkpoints, metrics and results, local or gs://")
    for field in dataclasses.fields(config_class):
        _define(field, typing.get_type_hints(config_class)[field.name])
    if distributed:
        cluster = "detected on TPU, Slurm and Open MPI"
        flags.DEFINE_boolean("distributed", False, "this is one of several processes of one run, on one or more hosts")
        flags.DEFINE_string("coordinator_address", None, f"with --distributed: HOST:PORT of process 0; {cluster}")
        flags.DEFINE_integer("num_processes", None, f"with --distributed: the number of processes; {cluster}")
        flags.DEFINE_integer("process_id", None, f"with --distributed: the number of this process, from 0; {cluster}")

    def main(config: object) -> int:
        from ._execute import execute  # it imports JAX: late, so that --help and flag errors answer at once

        return execute(run, config, name, distributed)

    app.run(main, flags_parser=lambda args: _parse(args, config_class, make or config_class))


def _experiment_name() -> str:
    """Returns the name after `python -m`: of a module or a package, in a clone or inside the installed gram_jax."""
    main = sys.modules["__main__"]
    module = main.__spec__.name if main.__spec__ else pathlib.Path(main.__file__ or "experiment").stem
    return module.removesuffix(".__main__").rpartition(".")[2]


def command(name: str, config: Any) -> str:
    """Returns the command line that a config comes from, without its work directory: flags that are not the default.

    Example:
      >>> @dataclasses.dataclass(frozen=True)
      ... class Config:
      ...     dataset: tuple[str, ...] = setting(("a",), "datasets")
      ...     save: bool = setting(True, "whether to save")
      >>> command("evaluate", Config(("folder:my photos", "b"), False))
      "python -m experiments.evaluate '--dataset=folder:my photos,b' --nosave"
    """
    words = ["python", "-m", f"experiments.{name}"]
    for field in dataclasses.fields(config):
        if (value := getattr(config, field.name)) == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no'}{field.name}")
        elif isinstance(value, tuple) and field.metadata.get("repeated"):
            words += [f"--{field.name}={each}" for each in value]
        elif isinstance(value, tuple):
            csv.writer(line := io.StringIO(), lineterminator="").writerow(value)
            words.append(f"--{field.name}={line.getvalue()}")
        else:
            words.append(f"--{field.name}={value}")
    return shlex.join(words)


def _define(field: dataclasses.Field, annotation: Any) -> None:
    """Defines the flag of one field."""
    name, default, help = field.name, field.default, field.metadata.get("help", "")
    if default is dataclasses.MISSING:
        raise TypeError(f"config field {name!r} needs a default")
    if typing.get_origin(annotation) is types.UnionType:
        annotation = next(member for member in typing.get_args(annotation) if member is not types.NoneType)
    if typing.get_origin(annotation) is tuple:
        item = typing.get_args(annotation)[0]
        if field.metadata.get("repeated"):
            flags.DEFINE_multi_string(name, None if default is None else list(default), help)
        else:
            text = None if default is None else [str(value) for value in default]
            flags.DEFINE(_ListParser(item), name, text, help, serializer=flags.CsvListSerializer(","))
    elif field.metadata.get("choices"):
        flags.DEFINE_enum(name, default, list(field.metadata["choices"]), help)
    else:
        _DEFINE[annotation](name, default, help)


def require_ranges(config_class: type, values: Mapping[str, Any]) -> None:
    """Raises InputError for a seed, or any other number, that is out of every program's range.

    Seeds are from 0 to `MOST_SEED`, other integers are at most their setting's `most`; numbers are finite, and above
    their setting's `above`.
    """
    for field in dataclasses.fields(config_class):
        seed = re.search(r"(^|_)seeds?$", field.name) is not None
        least, most = (0, MOST_SEED) if seed else (-MOST, field.metadata.get("most", MOST))
        value = values[field.name]
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, int) and not isinstance(item, bool):
                require_int(f"--{field.name}", item, least, most)
            elif isinstance(item, float):
                require_number(f"--{field.name}", item, above=field.metadata.get("above"))


def _home(value: Any) -> Any:
    """Returns a text whose path, after a prefix such as "folder:" or "NAME=" or none, begins in the home folder.

    Example:
      >>> _home("a photo of a ~"), _home("folder:~/photos") == "folder:" + os.path.expanduser("~/photos")
      ('a photo of a ~', True)
    """
    return _HOME.sub(lambda found: os.path.expanduser(found[0]), value) if isinstance(value, str) else value


class _ListParser(flags.ListParser):
    """Comma-separated values of one type; quotes protect commas, as in CSV."""

    def __init__(self, item: type):
        super().__init__()
        self._item = item

    def parse(self, argument: Any) -> list[Any]:
        values = super().parse(argument)
        found = []
        for value in values:
            try:
                found.append(self._item(value))
            except ValueError as error:
                kind, example = ("integer", "1,2,3") if self._item is int else ("number", "0.1,0.3")
                raise InputError(f"{value!r} is no {kind}; give them with commas between, such as {example}") from error
        return found


def _parse(argv: Sequence[str], config_class: type, make: Callable[..., Any]) -> Any:
    """Parses flags into a config; a wrong flag ends the program with status 2."""
    try:
        rest = flags.FLAGS([{"-h": "--help"}.get(word, word) for word in argv])[1:]
        places = [field.name for field in dataclasses.fields(config_class) if field.metadata.get("positional")]
        if len(rest) > len(places):
            raise flags.Error(f"unexpected argument {rest[len(places)]!r}: give settings as --name=value")
        values = {field.name: getattr(flags.FLAGS, field.name) for field in dataclasses.fields(config_class)}
        values |= dict(zip(places, rest, strict=False))
        values = {k: tuple(map(_home, v)) if isinstance(v, list) else _home(v) for k, v in values.items()}
        require_ranges(config_class, values)
        return make(**values)
    except SystemExit:  # after --help
        raise SystemExit(0) from None
    except (flags.Error, InputError) as error:
        print(f"error: {error}\nPass --help to see all settings.", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
