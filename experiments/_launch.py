"""From a frozen config dataclass to a command line program.

An experiment module holds a frozen dataclass of settings, a function ``run(config, workdir)``, and at its end::

    if __name__ == "__main__":
        launch(run, Config)

``run`` is importable and returns :class:`gram_jax.evaluation.Results` (or None); everything that only a program does
(flags, the compilation cache, writing the result file, exit codes) happens here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import dis
import errno
import json
import logging
import os
import pathlib
import signal
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags
from absl import logging as absl_logging

from gram_jax.errors import InputError

from . import _processes

logger = logging.getLogger(__name__)

_LIBRARY = tuple(
    str(pathlib.Path(__file__).resolve().parent.parent / name) + os.sep for name in ("gram_jax", "experiments")
)
# Errors of the disk that the user can mend.
_FULL_OR_READ_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_KEPT = "; what is finished is kept: once that is mended, the same command continues"


def setting(default: Any, help: str, *, choices: Sequence[str] | None = None, repeated: bool = False) -> Any:
    """A field of a config dataclass that becomes a flag.

    Args:
      default: the default value; its type is the field's annotation: bool, int, float, str, a tuple of one of these
        (``tuple[int, ...]``), or any of them ``| None``.
      help: what the setting means, with its unit.
      choices: the only values that a string may have.
      repeated: give a tuple of strings by repeating the flag (for values that hold commas) rather than as one
        comma-separated list.

    Returns:
      A dataclass field.

    Example:
      >>> @dataclasses.dataclass(frozen=True)
      ... class Config:
      ...     seeds: tuple[int, ...] = setting((0, 1, 2), "seeds of the few-shot draws")
      >>> Config().seeds
      (0, 1, 2)

    Reference:
      Our own choice.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "repeated": repeated})


def at_least(config: Any, least: int, *names: str) -> None:
    """Raises InputError for a setting below a bound; every value of a tuple counts, and None is no value."""
    for name, value in _values(config, names):
        if value < least:
            raise InputError(f"--{name}={value}: it must be at least {least}")


def positive(config: Any, *names: str) -> None:
    """Raises InputError for a setting that is no positive number; tuples and None as in :func:`at_least`."""
    for name, value in _values(config, names):
        if not 0 < value < float("inf"):
            raise InputError(f"--{name}={value}: it must be a positive number")


def _values(config: Any, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for name in names:
        found = getattr(config, name)
        for value in found if isinstance(found, tuple) else (found,):
            if value is not None:
                yield name, value


def json_object(name: str, text: str) -> dict[str, Any]:
    """The JSON object that a flag holds; InputError, naming the flag, for anything else."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"--{name}={text!r} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f'--{name}={text!r}: give a JSON object, such as {{"num_tokens": 4}}')
    return found


def launch(
    run: Callable[[Any, Any], Any],
    config_class: type,
    *,
    argv: Sequence[str] | None = None,
    distributed: str | None = None,
) -> None:
    """Parses flags into a config, runs the experiment, writes its results, and exits.

    One flag for each field, and ``--workdir``, which no other run may be at work in. The exit status is 0 on success
    (and after a preemption or SIGTERM), 2 when the user can mend it: an unknown flag, a bad value, a missing file, a
    full disk, a setting that the config's ``__post_init__`` or the library refuses. These end as a message without a
    traceback (which ``--verbosity=1`` shows). Anything else is a bug and keeps its traceback.

    Args:
      run: ``run(config, workdir) -> Results | None``; ``workdir`` is an absolute ``epath.Path`` that exists.
      config_class: a frozen dataclass whose fields all have defaults, see :func:`setting`.
      argv: the command line; ``sys.argv`` by default.
      distributed: how several processes share the experiment, if they can, see :data:`_processes.KINDS`;
        ``--distributed`` and its settings are flags then.

    Raises:
      SystemExit: always.

    Reference:
      Our own choice; the flags are absl's.
    """
    name = _experiment_name(run)
    flags.disclaim_key_flags()  # so that --help lists these flags as the experiment's own
    flags.DEFINE_string("workdir", f"runs/{name}", "Folder of checkpoints, metrics and results; local or gs://.")
    for field in dataclasses.fields(config_class):
        _define(field, typing.get_type_hints(config_class)[field.name])
    if distributed:
        _processes.define()

    def main(config: Any) -> int:
        from gram_jax import runtime  # here, so that --help and flag errors answer at once

        runtime.compile_quickly()  # before anything asks for devices
        try:
            with _processes.joined(distributed):
                _run(run, config, flags.FLAGS.workdir, name, distributed)
        except _AskedToStop:
            # At once: a thread of XLA that is still compiling would find the interpreter taken apart, and crash.
            logging.shutdown()
            sys.stdout.flush()
            os._exit(0)
        except Exception as error:
            if not _is_users(error, run):
                if (status := _processes.failed(error)) is None:
                    raise
                return _processes.leave(status)
            logger.debug("traceback of the error below", exc_info=True)
            kept = isinstance(error, OSError) and error.errno in _FULL_OR_READ_ONLY
            _complain(f"{error}{_KEPT if kept else ''}")
            return _processes.leave(2)
        except KeyboardInterrupt:
            _complain("interrupted; the same command continues from the last checkpoint, if it keeps any")
            return _processes.leave(130)
        return 0

    app.run(main, argv=list(sys.argv if argv is None else argv), flags_parser=lambda args: _parse(args, config_class))


def _experiment_name(run: Callable) -> str:
    module = run.__module__
    if module == "__main__":  # started with python -m: the real name is in the module's spec
        main = sys.modules["__main__"]
        module = main.__spec__.name if main.__spec__ else pathlib.Path(main.__file__ or "experiment").stem
    return module.removesuffix(".__main__").removesuffix(".run").rpartition(".")[2]


def _define(field: dataclasses.Field, kind: Any) -> None:
    """Defines the flag of one field."""
    name, default, help = field.name, field.default, field.metadata.get("help", "")
    if default is dataclasses.MISSING:
        raise TypeError(f"config field {name!r} needs a default")
    if typing.get_origin(kind) is types.UnionType:
        kind = next(member for member in typing.get_args(kind) if member is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if field.metadata.get("repeated"):
            flags.DEFINE_multi_string(name, None if default is None else list(default), help)
        else:
            text = None if default is None else [str(value) for value in default]
            flags.DEFINE(_ListParser(item), name, text, help, serializer=flags.CsvListSerializer(","))
    elif field.metadata.get("choices"):
        flags.DEFINE_enum(name, default, list(field.metadata["choices"]), help)
    else:
        define = {
            bool: flags.DEFINE_boolean,
            int: flags.DEFINE_integer,
            float: flags.DEFINE_float,
            str: flags.DEFINE_string,
        }
        define[kind](name, default, help)


class _ListParser(flags.ListParser):
    """Comma-separated values of one type; quotes protect commas, as in CSV."""

    def __init__(self, item: type):
        super().__init__()
        self._item = item

    def parse(self, argument: Any) -> list[Any]:
        values = super().parse(argument)
        try:
            return [self._item(value) for value in values]
        except ValueError as error:
            raise InputError(f"expected comma-separated {self._item.__name__} values: {error}") from error


def _parse(argv: Sequence[str], config_class: type) -> Any:
    """Flags to config; whatever is wrong with them ends the program with status 2."""
    try:
        rest = flags.FLAGS(list(argv))[1:]
        if rest:
            raise flags.Error(f"unexpected argument {rest[0]!r}: settings are given as --name=value")
        values = {field.name: getattr(flags.FLAGS, field.name) for field in dataclasses.fields(config_class)}
        return config_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except (flags.Error, ValueError) as error:
        _complain(f"{error}\nPass --help to see all settings.")
        raise SystemExit(2) from None


def _run(run: Callable[[Any, Any], Any], config: Any, workdir: str, name: str, distributed: str | None) -> None:
    # Imported here, so that --help and flag errors answer at once.
    from gram_jax import runtime

    with runtime.claim(workdir) as folder, _stopped_by_sigterm(distributed):
        _processes.agree(dataclasses.asdict(config) | {"workdir": os.fspath(folder)})
        _run_in(folder, run, config, name)


def _run_in(folder: Any, run: Callable[[Any, Any], Any], config: Any, name: str) -> None:
    """Runs in a folder that no other run is in."""
    import jax

    from gram_jax import evaluation, runtime

    # Orbax reports every file that it touches at the level of our own messages, and what goes wrong in its threads with
    # a traceback of each; the error itself reaches the run, which says it in one line.
    if not flags.FLAGS["verbosity"].present:
        for theirs in (absl_logging.get_absl_logger(), logging.getLogger("asyncio")):
            theirs.setLevel(logging.CRITICAL)
    runtime.enable_compilation_cache(folder)
    settings = dataclasses.asdict(config)
    first = jax.process_index() == 0
    if first:
        width = max(map(len, settings), default=0)
        print(f"{name} in {folder}", *(f"  {k:<{width}}  {v!r}" for k, v in settings.items()), sep="\n", flush=True)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is missing is as it should be
    found = evaluation.environment()
    versions = ", ".join(f"{package} {version}" for package, version in found["packages"].items())
    logger.info("%s on %d x %s", versions, found["device"]["count"], found["device"]["kind"])
    results = run(config, folder)
    if results is not None and first:
        evaluation.write_results(folder / "results.json", results)
        print(f"results in {folder / 'results.json'}", flush=True)


class _AskedToStop(SystemExit):
    """By SIGTERM."""


@contextlib.contextmanager
def _stopped_by_sigterm(distributed: str | None) -> Iterator[None]:
    """SIGTERM, which schedulers send before they kill, ends the program with status 0: what is finished is on disk.

    :class:`gram_jax.runtime.Checkpoints` takes the signal over, to save first. With several processes in step JAX's
    preemption service owns it.
    """
    import jax

    in_step = distributed == "steps" and jax.process_count() > 1
    if in_step or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one does not wait
        os.write(2, b"asked to stop; the same command continues\n")  # print is not allowed in a handler
        raise _AskedToStop(0)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_users(error: Exception, run: Callable) -> bool:
    """Whether an error reports bad input: a missing or forbidden file, or a check that raised on purpose."""
    if isinstance(error, (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)):
        return True
    if isinstance(error, OSError) and error.errno in _FULL_OR_READ_ONLY:
        return True
    if not isinstance(error, (ValueError, FloatingPointError)):
        return False
    # A ValueError may also come out of NumPy, JAX or int(): only a `raise` statement of the library or of the
    # experiment is a check.
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return False
    code = traceback.tb_frame.f_code
    raised_here = dis.opname[code.co_code[traceback.tb_lasti]] == "RAISE_VARARGS"
    ours = os.path.realpath(code.co_filename).startswith(_LIBRARY) or code.co_filename == run.__code__.co_filename
    return raised_here and ours


def _complain(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
