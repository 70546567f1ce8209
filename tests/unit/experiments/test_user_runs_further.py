"""Users' runs: further inputs for the principles 7 to 11, found by thinking about the kind."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from experiments import _launch, check_data, classify, predict, report, zero_shot
from experiments._launch import require_ranges
from experiments.evaluate import identity
from experiments.evaluate import run as evaluate
from experiments.evaluate.methods import RANDOM_START, choose_tuner
from gram_jax import evaluation, reporting, runtime
from gram_jax.errors import InputError, nearest
from gram_jax.evaluation import Candidate, prompt_method
from gram_jax.io import read_json
from gram_jax.reporting import plots

ROOT = Path(__file__).parents[3]

# 7. A run is known by what it depends on: work directories.


@pytest.mark.parametrize("name", ["", "  "])
def test_7_an_empty_work_directory_is_refused(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is empty; give a folder"), runtime.claim(name):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a file", "a file/below"])
def test_7_a_file_is_no_work_directory(name, tmp_path):
    (tmp_path / "a file").write_text("x")
    with pytest.raises(InputError, match=r"a file.* is not writable"), runtime.claim(tmp_path / name):
        pass
    assert (tmp_path / "a file").read_text() == "x"


@pytest.mark.parametrize("name", ["é ☃", "with space", "%41", "a'b", "x" * 200, "-dash"])
def test_7_odd_names_of_work_directories(name, tmp_path):
    with runtime.claim(tmp_path / name) as folder:
        assert folder.is_dir()


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"tuner": "coop"}, {"tuner": "coop()"}, True), ({"tuner": "coop"}, {"tuner": " coop( ) "}, True),
        ({"tuner": "coop(num_tokens=4)"}, {"tuner": "coop"}, True),
        ({"tuner": "coop(num_tokens=4)"}, {"tuner": "coop(num_tokens=5)"}, False),
        ({}, {"image_batch": 3, "class_chunk": 2}, True), ({}, {"feature_store": "elsewhere"}, True),
        ({}, {"seeds": (7, 8), "shots": (2,)}, True), ({}, {"save_prompts": True, "save_confusion": True}, True),
        ({}, {"clip": "./mini"}, True), ({}, {"momentum": 0.5}, False), ({}, {"compute_dtype": "bfloat16"}, False),
        ({"regularizers": "kgcoop:8"}, {"regularizers": "kgcoop:8.0"}, True),
        ({"regularizers": "kgcoop:8"}, {"regularizers": "kgcoop:4"}, False), ({}, {"weight_decay": 0.1}, False),
    ],
)  # fmt: skip
def test_7_spellings_and_memory_are_no_other_run(first, second, same):
    def told(changes):
        settings = evaluate.Config(**({"init_text": ("",)} | changes)).settings
        method = prompt_method(choose_tuner(settings), settings.plan)
        return identity.method_settings(settings, method, Candidate({"start": RANDOM_START}), {"meta": None})

    assert (told(first) == told(second)) is same


LINES = 3


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda content: content[:-9], LINES - 1), (lambda content: content[:-1], LINES - 1),
        (lambda content: content + b'{"unit"', LINES), (lambda content: b"", 0),
        (lambda content: content.replace(b"\n", b"\r\n"), LINES), (lambda content: content + content, LINES),
        (lambda content: b"\n".join(reversed(content.splitlines())) + b"\n", LINES),
    ],
)  # fmt: skip
def test_7_interrupted_and_joined_copies_continue(tmp_path, change, left):
    path = epath.Path(tmp_path) / "rows.jsonl"
    units = runtime.Units(path, {"code": "a"})
    for number in range(LINES):
        units.add(("coop", number), {"steps": 5}, [number])
    path.write_bytes(change(path.read_bytes()))
    again = runtime.Units(path)
    assert len(again) == left
    for number in range(LINES):  # what is missing is measured, what is there is kept
        if again.find(("coop", number), {"steps": 5}) is None:
            again.add(("coop", number), {"steps": 5}, [number])
    assert [runtime.Units(path).find(("coop", number), {"steps": 5}) for number in range(LINES)] == [[0], [1], [2]]


# 9. Reports: what results may look like.


def results(folder, value=0.5, method="coop", dataset="glyphs:chess"):
    rows = tuple(
        evaluation.Row(method, "few_shot", dataset, "accuracy", value + seed / 100, shots=4, seed=seed, step=50)
        for seed in (1, 2, 3)
    )
    environment = {"python": "3", "packages": {}, "device": {"kind": "cpu"}, "git": None, "code": "x", "weights": "w"}
    folder.mkdir(parents=True)
    evaluation.save_results(epath.Path(folder), evaluation.Results({"steps": 50}, environment, rows))
    return folder


def rewritten(folder, change):
    path = folder / "results.json"
    path.write_bytes(change(path.read_bytes()))
    return folder


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (lambda r: str(r), ["a", "b"]), (lambda r: f"{r}/", ["a", "b"]), (lambda r: f"{r}/*", ["a", "b"]),
        (lambda r: f"{r}/a", ["a"]), (lambda r: f"{r}/a/results.json", ["a"]), (lambda r: f"{r}/link", ["link"]),
        (lambda r: f"{r}/[ab]/results.json", ["a", "b"]), (lambda r: f"{r}/**/results.json", ["a", "b"]),
        (lambda r: os.path.relpath(r / "b"), ["b"]), (lambda r: f"{r}/a/../b", ["b"]),
    ],
)  # fmt: skip
def test_9_results_are_found_where_people_point(tmp_path, given, found):
    root = tmp_path / "runs"
    results(root / "a"), results(root / "b", 0.6)
    (root / "empty").mkdir()
    (root / "notes.json").write_text("[]")
    text = given(root)
    if "link" in text:
        os.symlink(root / "a", root / "link")
    if text.endswith("/*"):
        (root / "notes.json").unlink()
    assert [file.parent.name for file in report.files_of((text, text))] == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: b"", "is not valid JSON"), (lambda content: content[:300], "is not valid JSON"),
        (lambda content: b"[]", "should be an object"),
        (lambda content: content.replace(b'"schema": 1', b'"schema": 7'), "reads 1, found 7"),
        (lambda content: content.replace(b"0.51", b"NaN"), "found nan"),
        (lambda content: content.replace(b'"schema": 1', b'"schema": 1, "later": 2'), "later"),
        (lambda content: content.decode().encode("utf-16"), "is not valid JSON"),
    ],
)  # fmt: skip
def test_9_other_results_are_refused_by_name(tmp_path, change, message):
    folder = rewritten(results(tmp_path / "a"), change)
    with pytest.raises(InputError, match=f"(?s)a/results.json.*{message}"):
        report.run(report.Config(results=(str(folder),)), epath.Path(tmp_path))


@pytest.mark.parametrize(
    "change", [lambda content: b"\xef\xbb\xbf" + content, lambda content: content.replace(b"\n", b"\r\n")]
)
def test_9_editors_do_not_harm_results(tmp_path, change):
    before = read_json(results(tmp_path / "a") / "results.json")
    assert read_json(rewritten(tmp_path / "a", change) / "results.json") == before


def test_9_an_empty_folder_of_runs_is_named(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path.name}: no results.json in it yet"):
        report.files_of((str(tmp_path),))


NAMES = ["a|b", "50%_of #1 & {x}", "~^\\$", "<b>é", "my\nphotos", "run-3", "-", "coop:8", "x" * 90, '"quoted"']


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_9_names_of_any_letters_in_every_table(tmp_path, name):
    found = evaluation.read_results(results(tmp_path / "a", dataset=f"folder:{name}") / "results.json")
    rows = [line for line in reporting.write_report([found], tmp_path).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {3}  # the bars of two columns
    (line,) = [line for line in (tmp_path / "table.tex").read_text().splitlines() if line.startswith("folder:")]
    assert line.endswith(r" \\")
    plain = re.sub(r"\\(text\w+\{\}|pm|[&%$#_{}])", "", line.removesuffix(r" \\").replace(" & ", " ", 1))
    assert not re.search(r"[~^\\<>|#%_&]", plain)  # whatever LaTeX reads in another way is escaped
    assert plain.count("$") == 2  # those around the sign of the interval: a hyphen is no minus
    reporting.html_report([found], tmp_path / "report.html")
    assert "<b>é" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("datasets", [1, 2])
def test_9_no_mean_over_one_dataset(tmp_path, datasets):
    names = ["glyphs:chess", "glyphs:digits"][:datasets]
    rows = tuple(evaluation.Row("coop", "few_shot", name, "accuracy", 0.5, shots=4, seed=1, step=5) for name in names)
    text = reporting.write_report([evaluation.Results({}, {}, rows)], tmp_path)
    assert text.count("| mean ") == datasets - 1


def test_9_the_screen_holds_the_main_tables_only(tmp_path):
    rows = tuple(
        evaluation.Row("coop", "few_shot", "glyphs:chess", "accuracy", 0.5, shots=4, seed=1, step=step)
        for step in (0, 5)
    )
    shown: list[str] = []
    reporting.write_report([evaluation.Results({}, {}, rows)], tmp_path, show=shown.append)
    assert "Accuracy: few-shot" in shown[0]
    assert "Along adaptation" not in shown[0]
    assert "2 more tables" in shown[0]


@pytest.mark.parametrize(("seeds", "told"), [(3, "means; bars: 95 % intervals over seeds"), (1, "")])
def test_9_a_plot_says_what_its_bars_are(seeds, told):
    summaries = [evaluation.summarize([0.5 + 0.1 * seed + step for seed in range(seeds)]) for step in (0.0, 0.1)]
    with plots.drawing(2.0, 1, 1) as (figure, axes):
        plots.intervals(axes[0, 0], np.arange(2), summaries, "coop", label="CoOp")
        plots.legend(figure, axes)
    assert figure.legends[0].get_title().get_text() == told


# 10. Good manners.


@pytest.mark.parametrize("flag", ["--seeds=1-10", "--seeds=1..3", "--shots=all", "--steps=1e3", "--seeds=1 2"])
def test_10_what_is_no_list_of_integers_is_named(flag, capsys):
    name, _, value = flag.removeprefix("--").partition("=")
    with pytest.raises(InputError, match=rf"'{re.escape(value)}' is no integer; .* such as 1,2,3"):
        _launch._ListParser(int).parse(value)
    assert name


@pytest.mark.parametrize(("text", "values"), [("007,8", [7, 8]), (" 1, 2", [1, 2]), ("1_000", [1000]), ("", [])])
def test_10_lists_of_integers_as_people_write_them(text, values):
    assert _launch._ListParser(int).parse(text) == values


@pytest.mark.parametrize("seeds", [(), (1, 1), (-1,), (2**32,), (1.5,), (True,)])
def test_10_seeds_are_checked_before_any_work(seeds):
    with pytest.raises(InputError, match="seeds"):
        evaluation.evaluate(None, None, "nowhere", seeds=seeds)


@pytest.mark.parametrize(("columns", "bar"), [(80, False), (200, True)])
def test_10_a_narrow_terminal_shows_the_time_left(columns, bar, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

        def fileno(self):
            return 1

    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((columns, 24)))
    stream, now = Terminal(), iter(range(1000))
    with runtime.Progress(9, "reading folder:my_photos_of_birds", stream=stream, clock=lambda: next(now)) as progress:
        progress.update(4)
        progress.update()
        line = stream.getvalue().rpartition("\r")[2]
    assert "left" in line
    assert ("[#" in line) is bar


@pytest.mark.parametrize("protocol", ["few_shot", "base_to_new", "imbalanced:0.25"])
def test_10_protocols_and_classes_are_short_in_a_notebook(protocol, clip):
    assert len(repr(evaluation.protocols.parse(protocol))) < 60
    assert len(repr(clip.class_tokens([f"class {number}" for number in range(50)]))) < 400


@pytest.mark.parametrize(
    ("program", "setting", "message"),
    [
        (evaluate, {"momentum": 1.0}, "--momentum=1.0"), (evaluate, {"weight_decay": -0.1}, "--weight_decay=-0.1"),
        (evaluate, {"gray_range": 0.0}, "--gray_range=0.0"), (zero_shot, {"gray_range": -1.0}, "--gray_range=-1.0"),
        (check_data, {"gray_range": 0.0}, "--gray_range"), (predict, {"gray_range": float("nan")}, "--gray_range=nan"),
        (classify, {"learning_rate": (0.0,)}, "--learning_rate=0.0"), (classify, {"seed": 2**32}, "--seed=4294967296"),
        (classify, {"learning_rate": ()}, "--learning_rate is empty"), (classify, {"images": ""}, "--images is empty"),
        (evaluate, {"tuner": "CoOp"}, "did you mean 'coop'"), (evaluate, {"protocol": ("Few_Shot",)}, "'few_shot'"),
    ],
)  # fmt: skip
def test_10_values_out_of_range_are_refused_before_any_work(program, setting, message):
    needed = {predict: {"images": "x", "classes": ("a", "b")}, classify: {"images": "x"}}.get(program, {})
    with pytest.raises(InputError, match=message):
        require_ranges(program.Config, vars(program.Config(**(needed | setting))))


def test_10_the_nearest_word_is_found_in_any_case():
    assert nearest("KGCOOP", ["kgcoop", "npt"]) == " (did you mean 'kgcoop'?)"
    assert nearest("FOLDER", ["folder", "csv"]) == " (did you mean 'folder'?)"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-", "> /dev/full"])
def test_10_closed_streams_do_not_end_a_program(closed, tmp_path):
    (tmp_path / "program.py").write_text(
        "import sys\nfrom experiments import _terminal\n_terminal.prepare()\nprint('x' * 9999)\n"
        "print(1, file=sys.stderr)\nsys.stdout.flush()\nopen('done', 'w').close()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = f"{sys.executable} program.py {closed}"
    assert subprocess.run(command, shell=True, env=environment, cwd=tmp_path, timeout=60).returncode == 0
    assert (tmp_path / "done").exists()


def test_10_configs_are_pickled_and_compared():
    config = classify.Config(images="photos")
    assert pickle.loads(pickle.dumps(config)) == config == dataclasses.replace(config)


# 11. README and docs can be pasted in order.

PAGES = sorted(path for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if "```bash" in path.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_11_commands_are_for_any_shell_and_any_home(page):
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    for block in blocks:
        commands = block.replace("\\\n", " ").splitlines()
        for line in commands:
            assert not re.search(r"[“”‘’–—\u00a0]", line), line  # letters that a word processor makes of " and --
            assert not re.match(r"\s*(\$|>>>|>|%) ", line), line  # no prompt that would be pasted, too
            words = shlex.split(line, comments=True)  # quotes are closed
            assert not [word for word in words if re.fullmatch(r"--\w+", word) and word.endswith("_")], line
    assert not [line for block in blocks for line in block.splitlines() if line.endswith("\\ ")]  # nothing behind \\
