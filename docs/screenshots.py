"""Makes the screenshots of the documentation with Chromium: `python docs/screenshots.py`, 4 minutes on two cores.

Runs the programs on the glyph benchmark and on drawn photos, with a few things wrong, in a temporary folder.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.browser import Browser  # noqa: E402  # it is no part of the package

FIGURES = ROOT / "docs" / "figures"
EVALUATE = "evaluate --dataset=glyphs:arabic,glyphs:shapes --protocol=base_to_new,few_shot --shots=1,4 --steps=50"
PROGRAMS = (
    f"{EVALUATE} --learning_rate=0.3 --workdir=runs/coop",
    f"{EVALUATE} --learning_rate=0.3 --workdir=runs/kgcoop --regularizers=kgcoop:8 --methods=tuner",
    "report --results=runs/coop,runs/kgcoop --workdir=runs/report",
    "build_glyphs --pairs=0 --dataset=glyphs:chess --photos=my_photos",
    "check_data --dataset=folder:my_photos --workdir=runs/check",
    "build_tasks --pairs=8000 --themes=20 --workdir=runs/tasks",
)
# name: page, section, scroll to the heading, width, height, dark
SHOTS = {
    "report": ("report/report.html", "glyphs:arabic", "Predictions", 1280, 1100, False),
    "report_overview": ("report/report.html", "Overview", "", 1280, 760, True),
    "check": ("check/check.html", "", "", 1280, 1000, False),
    "hierarchy_page": ("tasks/hierarchy.html", "", "", 1280, 900, False),
}


def spoil(photos: Path) -> None:
    """Adds what a check finds: a photo in two classes, one of one color, one that is broken, and another file."""
    first, second = sorted(each for each in photos.iterdir() if each.is_dir())[:2]
    shutil.copy(min(first.iterdir()), second / "copy.jpg")
    Image.new("RGB", (64, 64), "black").save(second / "black.jpg")
    (second / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    (photos / "notes.txt").write_text("taken in May\n")


def take(browser: Browser, page: Path, section: str, heading: str, width: int, height: int, dark: bool) -> Image.Image:
    """Returns a screenshot of a section of a page, below a heading if one is named."""
    browser.open(page, width, height, dark)
    if section:
        browser.run(f"[...document.querySelectorAll('nav a')].find((e) => e.textContent === {section!r}).click()")
    if heading:
        found = f"[...document.querySelectorAll('section.shown h3')].find((e) => e.textContent === {heading!r})"
        browser.run(f"scrollTo(0, {found}.getBoundingClientRect().top + scrollY - 20)")
    browser.run("new Promise((done) => setTimeout(done, 300))")
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        browser.screenshot(file.name)
        return Image.open(io.BytesIO(Path(file.name).read_bytes())).convert("RGB")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Browser() as browser:
        for text in PROGRAMS:
            if "check_data" in text:
                spoil(Path(folder) / "my_photos")
            done = subprocess.run([sys.executable, "-m", *f"experiments.{text}".split()], cwd=folder)
            assert done.returncode == 0 or "check_data" in text, text
        for name, (page, *shot) in SHOTS.items():
            picture = take(browser, Path(folder) / "runs" / page, *shot)
            picture.save(FIGURES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
