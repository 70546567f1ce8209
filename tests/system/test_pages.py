"""Pages in a real browser: they open, sort, filter and fit, without a complaint and without a network."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from PIL import Image

from experiments import build_tasks, check_data, predict, report
from experiments.evaluate import run as evaluate
from tests.browser import PROGRAM, Browser

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed")

VISIBLE = "[...document.querySelectorAll('%s')].filter((e) => e.offsetHeight)"
SIZES = ((400, 800), (1600, 1000))


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of 8 photos, one of them twice; and a file that is no image."""
    folder, rng = tmp_path_factory.mktemp("data") / "my <photos>", np.random.default_rng(0)
    for name in ("red & white", "<b>dog", "a-name-without-any-space-that-is-long"):
        (folder / name).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(rng.integers(0, 256, (90, 120, 3), np.uint8)).save(folder / name / f"{i}.jpg")
    first = folder / "red & white" / "0.jpg"
    (folder / "red & white" / "again.jpg").write_bytes(first.read_bytes())
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def pages(photos, tmp_path_factory):
    """All pages, made by the programs that write them."""
    folder = epath.Path(tmp_path_factory.mktemp("runs"))
    for name in ("evaluate", "report", "check", "predict", "tasks"):
        (folder / name).mkdir()
    config = evaluate.Config(
        dataset=("glyphs:shapes", f"folder:{photos}"), protocol=("few_shot",), shots=(1,), seeds=(1, 2), steps=(2,),
        learning_rate=(0.5,), report_steps=(0, 1), feature_store="",
        max_test_images=4,
    )  # fmt: skip
    evaluate.run(config, folder / "evaluate")
    report.run(report.Config(results=(str(folder / "evaluate"),)), folder / "report")
    check_data.run(check_data.Config(dataset=(f"folder:{photos}", "glyphs:chess"), images=0), folder / "check")
    given = predict.Config(images=str(photos), classes=("cat", "<b>dog"), report=True, batch_size=8)
    predict.run(given, folder / "predict")
    build_tasks.run(build_tasks.Config(pairs=400, themes=3, min_members=3), folder / "tasks")
    found = [folder / "evaluate/report.html", folder / "report/report.html", folder / "check/check.html",
             folder / "predict/predictions.html", folder / "tasks/hierarchy.html"]  # fmt: skip
    return {path.parent.name: Path(path) for path in found}


NAMES = ("evaluate", "report", "check", "predict", "tasks")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_opens_in_two_widths_and_two_schemes(browser, pages, name):
    browser.open(pages[name])
    sections = browser.run("document.querySelectorAll('main > section').length")
    colors = set()
    for width, height in SIZES:
        for dark in (False, True):
            for number in range(sections):
                browser.open(f"{pages[name]}#s{number}", width, height, dark)
                assert browser.run("document.documentElement.scrollWidth") == width
                assert browser.run(f"{VISIBLE % 'main > section'}.length") == 1
            colors.add(browser.run("getComputedStyle(document.documentElement).backgroundColor"))
    assert len(colors) == 2
    assert browser.complaints == []
    assert pages[name].stat().st_size < 5 * 10**6


def test_the_theme_can_be_changed(browser, pages):
    browser.open(pages["report"], dark=True)
    color = "getComputedStyle(document.documentElement).backgroundColor"
    before = browser.run(color)
    browser.run("document.getElementById('theme').click()")
    assert browser.run(color) == "rgb(255, 255, 255)" != before
    assert browser.run("document.getElementById('theme').textContent") == "Dark"


def column(browser, number):
    """The visible cells of a column of the last table of the section that is shown."""
    script = "[...[...document.querySelectorAll('section.shown table')].at(-1).tBodies[0].rows]"
    return browser.run(f"{script}.filter((e) => !e.hidden).map((row) => row.cells[{number}].textContent)")


def sort(browser, number):
    browser.run(f"[...document.querySelectorAll('section.shown table')].at(-1).tHead.rows[0].cells[{number}].click()")


def test_a_table_sorts_by_number_and_by_name(browser, pages):
    browser.open(f"{pages['tasks']}#s1")
    sizes = [int(text.replace(",", "")) for text in column(browser, 2)]
    assert len(sizes) > 8
    sort(browser, 2)
    assert [int(text) for text in column(browser, 2)] == sorted(sizes, reverse=True)
    sort(browser, 2)
    assert [int(text) for text in column(browser, 2)] == sorted(sizes)
    sort(browser, 0)
    names = column(browser, 0)
    assert names == sorted(names)
    assert browser.run("document.querySelector('section.shown th[aria-sort]').getAttribute('aria-sort')") == "ascending"


def test_fields_filter_tables_images_and_classes(browser, pages):
    browser.open(f"{pages['tasks']}#s1")
    every = column(browser, 0)
    browser.type("section.shown input", every[0][:2].upper())
    kept = column(browser, 0)
    assert every[0] in kept
    assert browser.run("document.querySelector('section.shown output').textContent") == f"{len(kept)} of {len(every)}"

    browser.open(pages["predict"])
    browser.type("section.shown input", "again.jpg")
    (shown,) = browser.run(f"{VISIBLE % 'section.shown .card'}.map((e) => e.textContent)")
    assert "red & white/again.jpg" in shown

    browser.open(pages["tasks"])
    browser.type("section.shown input", "no class has this name")
    assert browser.run(f"{VISIBLE % 'section.shown .entry'}.length") == 0


def test_numbers_of_the_report_are_those_of_the_files(browser, pages):
    """The first table against table.csv; the shares of the predictions against the rows of results.json."""
    table = csv.DictReader(io.StringIO((pages["report"].parent / "table.csv").read_text()))
    first = [line for line in table if line["table"].startswith("Accuracy: few-shot")]
    browser.open(pages["report"])
    shown = browser.run("[...document.querySelectorAll('section.shown table')][0].innerText")
    assert all(f"{float(line['percent']):.1f}" in shown for line in first if line["percent"])

    rows = json.loads((pages["evaluate"].parent / "results.json").read_text())["rows"]
    own = [row for row in rows if row["dataset"] == "glyphs:shapes" and row["seed"] in (None, 1)]
    expected = {}
    for row in own:
        if row["metric"] == "accuracy" and (row["step"] in (None, 2)):
            expected[row["method"]] = f"{100 * row['value']:.1f} %"
    section = browser.run("[...document.querySelectorAll('nav a')].findIndex((e) => e.textContent === 'glyphs:shapes')")
    browser.open(f"{pages['report']}#s{section}")
    found = []
    for number in range(len(expected)):
        choose = f"const s = document.querySelector('section.shown select'); s.value = {number};"
        browser.run(f"(() => {{ {choose} s.dispatchEvent(new Event('change')); }})()")
        found.append(browser.run("document.querySelector('section.shown .view:not([hidden]) .stats b').textContent"))
    assert sorted(found) == sorted(expected.values())


def test_the_check_shows_equal_images_and_what_was_left_out(browser, pages):
    browser.open(f"{pages['check']}#s1")
    text = browser.run("document.querySelector('section.shown').innerText")
    for told in ("Equal images", "red & white/again.jpg", "<b>dog", "notes.txt"):
        assert told in text
