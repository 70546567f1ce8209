"""The launcher at the command line: a toy experiment in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jaxlib
import pytest

ROOT = Path(__file__).parents[2]

TOY = '''
"""A toy experiment."""
from __future__ import annotations

import dataclasses
from experiments._launch import launch, setting
from gram_jax.errors import InputError

@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = setting(0, "seed of the draw")
    learning_rate: float = setting(0.1, "step size")
    seeds: tuple[int, ...] = setting((0, 1), "seeds")
    templates: tuple[str, ...] = setting(("a photo of a {}.",), "templates", repeated=True)
    names: tuple[str, ...] = setting((), "names")
    tuner: str = setting("coop", "the tuner", choices=("coop", "vpt"))
    steps: int | None = setting(None, "steps")
    cache: bool = setting(True, "keep features")
    trouble: str = setting("", "what goes wrong")

    def __post_init__(self):
        if self.learning_rate <= 0:
            raise InputError(f"learning_rate={self.learning_rate} must be positive")

def run(config, workdir):
    import jax
    from gram_jax import evaluation
    @jax.jit
    def traced(x):
        raise InputError("images must be square, found (3, 4): crop them")
    match config.trouble:
        case "library": evaluation.summarize([])
        case "own": raise InputError("dataset 'toys': the datasets are a, b")
        case "traced": traced(1.0)
        case "file": open(workdir / "missing.json")
        case "bug": int("three")
        case "numpy": __import__("numpy").zeros(3) + __import__("numpy").zeros(4)
        case "type": None + 1
        case "exit": raise SystemExit(0)
        case "interrupt": raise KeyboardInterrupt
        case "full": raise OSError(28, "No space left on device")
        case "value": raise ValueError("of another library")
        case "term":
            try:
                __import__("os").kill(__import__("os").getpid(), 15)
                __import__("time").sleep(60)
            finally:
                (workdir / "tidied").write_text("")
        case "none": return None
    row = evaluation.Row("toy", "toy", "toy", "accuracy", 0.5, seed=config.seed)
    return evaluation.Results(dataclasses.asdict(config), evaluation.environment(), (row,))

if __name__ == "__main__":
    import os, sys
    if "--trouble=none" in sys.argv:  # whoever asks for devices first tells the flags that they were made with
        import jax
        count = jax.process_count
        jax.process_count = lambda: (print("devices with", os.environ.get("XLA_FLAGS"), flush=True), count())[1]
    launch(run, Config)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.py").write_text(TOY)
    return folder


def start(folder, *arguments: str, module: str = "toy", **environment: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"} | environment
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=90, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_runs_prints_its_settings_and_writes_results(folder):
    done = start(
        folder, "--seed=3", "--seeds=4,5", "--templates=a {}, small", "--templates={}", '--names=a,"b,c"', "--nocache",
        "--tuner=vpt", "--steps=7",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    workdir = folder / "runs" / "toy"
    document = json.loads((workdir / "results.json").read_text())
    assert document["config"] == {
        "seed": 3, "learning_rate": 0.1, "seeds": [4, 5], "templates": ["a {}, small", "{}"], "names": ["a", "b,c"],
        "tuner": "vpt", "steps": 7, "cache": False, "trouble": "",
    }  # fmt: skip
    assert document["rows"][0]["seed"] == 3
    assert f"toy in {workdir}" in done.stdout
    assert "  steps      7\n" in done.stdout
    assert "learning_rate" not in done.stdout  # it is the default
    assert f"results in {workdir / 'results.json'}" in done.stdout
    assert "jax " in done.stderr  # versions are logged
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not jaxlib.__version__.startswith("0.10."), reason="the flags are of jaxlib 0.10")
def test_flags_of_the_compiler_are_set_before_devices_are_asked_for(folder, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    told = [line for line in start(folder, "--trouble=none").stdout.splitlines() if line.startswith("devices with")]
    assert told[0] == "devices with --xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"


def test_workdir(folder, tmp_path):
    done = start(folder, f"--workdir={tmp_path / 'here'}", "--trouble=none")
    assert done.returncode == 0, done.stderr
    assert "results in" not in done.stdout
    assert (tmp_path / "here").is_dir()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--sede=3", "Unknown command line flag 'sede'. Did you mean: seed"),
        ("--seed=three", "flag --seed=three"),
        ("--seeds=1,x", "flag --seeds=1,x: 'x'"),
        ("--tuner=maple", "flag --tuner=maple: value should be one of <coop|vpt>"),
        ("--learning_rate=-1", "learning_rate=-1.0 must be positive"),
        ("--learning_rate=nan", "--learning_rate=nan: it must be a finite number"),
        ("--seed=-1", "--seed=-1: it must be an integer from 0 to 4294967295"),
        ("--seeds=1,18446744073709551616", "--seeds=18446744073709551616: it must be an integer from 0 to 4294967295"),
        ("--steps=99999999999", "--steps=99999999999: it must be an integer"),
        ("seed=3", "unexpected argument 'seed=3'"),
    ],
)
def test_usage_errors(folder, argument, message):
    done = start(folder, argument)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Pass --help" in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("library", ""),
        ("own", "dataset 'toys': the datasets are a, b"),
        ("traced", "images must be square, found (3, 4): crop them"),
        ("file", "missing.json"),
        ("full", "No space left on device"),
    ],
)
def test_errors_that_the_user_can_fix(folder, trouble, message):
    done = start(folder, f"--trouble={trouble}")
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("trouble", ["bug", "numpy", "type", "value"])
def test_bugs_keep_their_traceback(folder, trouble):
    done = start(folder, f"--trouble={trouble}")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "toy.py" in done.stderr


def test_traceback_on_request(folder):
    done = start(folder, "--trouble=own", "--verbosity=1")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(("trouble", "status"), [("exit", 0), ("interrupt", 130), ("term", 0)])
def test_exit_codes(folder, trouble, status):
    done = start(folder, f"--trouble={trouble}")
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert ("asked to stop" in done.stderr) == (trouble == "term")
    assert (folder / "runs" / "toy" / "tidied").exists() or trouble != "term"
    assert not (folder / "runs" / "toy" / "running.lock").exists()


def test_a_work_directory_that_cannot_be_one_is_named(folder):
    done = start(folder, f"--workdir={folder / 'toy.py' / 'below'}")
    assert done.returncode == 2, done.stderr
    below = folder / "toy.py" / "below"
    assert f"error: the work directory {below} is not writable (Not a directory)" in done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / "toy.py").read_text() == TOY


def test_a_package_inside_another_one_is_called_by_its_own_name(folder):
    """The layout of the installed wheel: gram_jax.experiments.NAME, where NAME is a module or a package."""
    inner = folder / "outer" / "programs" / "packaged"
    inner.mkdir(parents=True)
    (inner / "program.py").write_text(TOY)
    (inner / "__main__.py").write_text(
        "from experiments._launch import launch\nfrom .program import Config, __doc__, run\nlaunch(run, Config)\n"
    )
    done = start(folder, "--trouble=none", module="outer.programs.packaged")
    assert done.returncode == 0, done.stderr
    assert f"packaged in {folder / 'runs' / 'packaged'}" in done.stdout
    assert "A toy experiment." in start(folder, "--help", module="outer.programs.packaged").stdout


@pytest.mark.parametrize("asked", ["cuda", "foo"])
def test_a_device_that_is_not_there_is_one_line(folder, asked):
    done = start(folder, JAX_PLATFORMS=asked)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"JAX_PLATFORMS={asked}: no such device" in line
    assert "found here: cpu" in line
    assert "unset JAX_PLATFORMS" in line


def test_the_search_for_devices_is_silent(folder):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    environment |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    command = [sys.executable, "-m", "toy", "--trouble=own"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=90)
    assert done.stdout.startswith("toy in ")
    first, second = done.stderr.splitlines()
    assert " on 1 x " in first
    assert second.startswith("error: ")


@pytest.mark.parametrize("flags", [("--help",), ("--trouble=none",), ()])
def test_a_closed_pipe_ends_nothing_and_says_nothing(folder, flags, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    command = [sys.executable, "-m", "toy", f"--workdir={tmp_path}", *flags]
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=90
    )
    os.close(writer)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert (tmp_path / "results.json").exists() == (flags == ())


def test_an_encoding_that_lacks_a_letter_ends_nothing(folder, tmp_path):
    done = start(folder, f"--workdir={tmp_path}", "--names=кот", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert r"\u043a\u043e\u0442" in done.stdout
    assert json.loads((tmp_path / "results.json").read_text())["config"]["names"] == ["кот"]


def test_older_results_are_kept_unless_they_are_part_of_the_new_ones(folder, tmp_path):
    for seed in ("3", "3", "4"):
        done = start(folder, f"--workdir={tmp_path}", f"--seed={seed}")
        assert done.returncode == 0, done.stderr
    assert "has other results and is kept as results-1.json" in done.stderr
    seeds = [json.loads((tmp_path / f"results{n}.json").read_text())["rows"][0]["seed"] for n in ("", "-1")]
    assert seeds == [4, 3]
    assert not (tmp_path / "results-2.json").exists()


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_the_settings(folder, flag):
    done = start(folder, flag)
    assert done.returncode == 0
    assert "A toy experiment." in done.stdout
    assert "seed of the draw" in done.stdout
    assert "--workdir" in done.stdout
    assert "coop|vpt" in done.stdout
