"""Flags: home folders and ranges; standard output that nothing can end."""

from __future__ import annotations

import dataclasses
import io
import logging
import os
import pathlib

import pytest

from experiments import _launch, _terminal, build_tasks, meta_train, prepare_corpus, quickstart
from experiments.evaluate import identity
from experiments.evaluate import run as evaluate
from gram_jax.evaluation import Candidate, ZeroShot
from gram_jax.runtime import Progress


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("~/run", "HOME/run"),
        ("~/a/~/b", "HOME/a/~/b"),
        ("folder:~/photos", "folder:HOME/photos"),
        ("coop:~/data:dtd", "coop:HOME/data:dtd"),
        ("random=~/meta.safetensors", "random=HOME/meta.safetensors"),
        ("~/runs/*/results.json", "HOME/runs/*/results.json"),
        ("~nobody-of-this-name/x", "~nobody-of-this-name/x"),
        ("~", "~"),  # a class, or a character
        ("a photo of a ~ sign", "a photo of a ~ sign"),
        ("a~/b", "a~/b"),
        ("gs://bucket/~/x", "gs://bucket/~/x"),
        ("/tmp/~/x", "/tmp/~/x"),
        (3, 3),
        (None, None),
    ],
)
def test_the_home_folder(given, expected, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert _launch._home(given) == (expected.replace("HOME", "/home/me") if isinstance(expected, str) else expected)


CONFIGS = [evaluate.Config, meta_train.Config, build_tasks.Config, quickstart.Config, prepare_corpus.Config]


def values(config_class, **changes):
    return {field.name: field.default for field in dataclasses.fields(config_class)} | changes


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda each: each.__module__)
@pytest.mark.parametrize("seed", [-1, -(2**70), 2**32, 2**64])
def test_seeds_that_no_generator_takes_are_refused_by_every_program(config_class, seed):
    names = [
        field.name for field in dataclasses.fields(config_class) if field.name.rpartition("_")[2] in ("seed", "seeds")
    ]
    assert names
    for name in names:
        several = isinstance(values(config_class)[name], tuple) or name == "seeds"
        given = (1, seed) if several else seed
        with pytest.raises(ValueError, match=rf"^--{name}={seed}: it must be an integer from 0 to 4294967295"):
            _launch.require_ranges(config_class, values(config_class, **{name: given}))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", (5, 2**31), "--steps=2147483648: .* to 2147483647"),
        ("shots", (10**30,), "--shots=1000000000000000000000000000000"),
        ("batch_size", -(2**31), "--batch_size=-2147483648"),
        ("learning_rate", (0.1, float("nan")), "--learning_rate=nan: it must be a finite number"),
        ("learning_rate", (float("inf"),), "--learning_rate=inf"),
        ("momentum", float("-inf"), "--momentum=-inf"),
        ("tau", (float("nan"),), "--tau=nan"),
        ("max_test_images", 2**40, "--max_test_images=1099511627776"),
        ("select_seeds", (-5,), "--select_seeds=-5"),
        ("dataset_seed", -1, "--dataset_seed=-1"),
    ],
)
def test_numbers_out_of_range_are_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        _launch.require_ranges(evaluate.Config, values(evaluate.Config, **{name: value}))


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda each: each.__module__)
def test_defaults_and_the_largest_seed_are_in_range(config_class):
    _launch.require_ranges(config_class, values(config_class))
    _launch.require_ranges(
        config_class, values(config_class, **{"seed": 2**32 - 1} if "seed" in values(config_class) else {})
    )


def test_bytes_and_pixels_may_be_larger_numbers():
    _launch.require_ranges(prepare_corpus.Config, values(prepare_corpus.Config, max_bytes=2**40, max_pixels=2**40))


def stream(path, encoding="utf-8"):
    return open(path, "w", encoding=encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1251", "utf-8", "utf-16"])
@pytest.mark.parametrize("text", ["62.6 ±0.4", "кот", "日本", "a\ud800b", "🙂"])
def test_no_encoding_ends_a_line(encoding, text, tmp_path):
    with stream(tmp_path / "out", encoding) as plain:
        print(text, file=_terminal.Output(plain), flush=True)
    shown = (tmp_path / "out").read_text(encoding=encoding)
    assert shown == text.encode(encoding, "backslashreplace").decode(encoding) + "\n"


def test_a_closed_pipe_drops_later_lines_quietly(capfd):
    reader, writer = os.pipe()
    plain = os.fdopen(writer, "w")
    output = _terminal.Output(plain)
    print("first", file=output)
    os.close(reader)
    for number in range(100):
        print("x" * 10_000, number, file=output, flush=True)
    plain.close()  # flushes what is left
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
def test_a_full_disk_behind_standard_output_is_no_error():
    with stream("/dev/full") as plain:
        print("x" * 100_000, file=_terminal.Output(plain), flush=True)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("parts", [("81.2\n",), ("81", ".2\n"), ("81", ".", "2", "\n"), ("81.2", "\n")])
def test_lines_are_never_appended_to_a_bar(parts):
    terminal = Terminal()
    output = _terminal.Output(terminal)
    with Progress(2, "train", stream=terminal) as progress:
        progress.update()
        for part in parts:
            output.write(part)
            output.flush()
            progress._draw()  # at any moment, such as between the two writes of `print`
    before, found, after = terminal.getvalue().partition("81.2\n")
    assert found
    assert before.endswith("\r\x1b[K")
    assert "\r\x1b[K[" in after


def test_what_is_not_a_whole_line_is_shown_at_once_without_a_bar():
    terminal = Terminal()
    output = _terminal.Output(terminal)
    print("password: ", end="", file=output, flush=True)
    assert terminal.getvalue() == "password: "


def test_the_bar_writes_past_the_lines_to_the_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", _terminal.Output(terminal))
    with Progress(1, "train") as progress:
        progress.update()
    assert terminal.getvalue().count("1/1 steps") == 1


def test_log_lines_have_a_short_time_stamp():
    for level, text in ((logging.INFO, "plain"), (logging.WARNING, "warning: plain")):
        record = logging.LogRecord("x", level, __file__, 1, "plain", (), None)
        assert _terminal._Formatter().format(record)[8:] == f" {text}"


def test_every_program_parses_flags_in_one_place():
    programs = pathlib.Path(_launch.__file__).parent
    for path in programs.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "flags.DEFINE" not in text or path.name == "_launch.py", path


def test_every_flag_of_an_evaluation_is_part_of_its_identity_or_known_to_be_none():
    flags = {field.name for field in dataclasses.fields(evaluate.Config)}
    assert not set(identity.BESIDE) & set(identity.RESOLVED)
    assert {*identity.BESIDE, *identity.RESOLVED} <= flags
    own, of = flags - {*identity.BESIDE, *identity.RESOLVED} | {"template"}, (ZeroShot("zero_shot"), Candidate(), {})
    assert set(identity.method_settings(evaluate.Config(split="val").settings, *of)) == own
    told = identity.method_settings(evaluate.Config().settings, *of)
    assert set(told) == own - {"split"}  # not told for test images, as in earlier versions
    assert {"max_test_images", "compute_dtype", "image_reading"} <= set(told)
