"""The commands of README and guides, pasted in order in a fresh folder; at toy size."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Later flags win. Everything else is as a reader pastes it.
SMALLER = {
    "quickstart": "--pairs=1500 --themes=4 --ways=3 --meta_steps=1 --long_meta_steps=1 --inner_steps=2 --steps=2"
    " --seeds=1,2 --shots=1 --domains=small --dataset=glyphs:chess --max_test_images=1",
    "build_tasks": "--pairs=1500 --themes=4",
    "meta_train": "--steps=2 --warmup_steps=2 --inner_steps=3 --ways=3 --shots=2 --cross_ways=2 --batch_size=2"
    " --eval_every=0",
    "evaluate": "--steps=1 --report_steps= --learning_rate=1 --gram_learning_rate=1 --max_test_images=1 --seeds=1",
    "build_glyphs": "--pairs=20 --data_dir=tfds",
    "classify": "--clip=mini --steps=2",
}
ELSEWHERE = ("openai/", "/data/", "USER/")  # a checkpoint, data or an account that no fresh clone has


def commands(page: str) -> list[list[str]]:
    """Returns the programs that a page starts, in order, as words."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = "".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    words = [shlex.split(part, comments=True) for line in lines for part in line.split(" && ")]
    return [each for each in words if each[:2] == ["python", "-m"] and not any(map(" ".join(each).count, ELSEWHERE))]


@pytest.mark.parametrize("page", ["README.md", "docs/getting-started.md", "docs/own-photos.md"])
def test_every_evaluation_of_a_page_has_a_folder_of_its_own(page):
    found = [(words[2], next((word for word in words if word.startswith("--workdir")), "")) for words in commands(page)]
    assert len(found) >= 4
    assert len(set(found)) == len(found)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/getting-started.md", "docs/own-photos.md"])
def test_pages_can_be_pasted_in_order(page, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    for _, _, module, *flags in commands(page):
        smaller = SMALLER.get(module.removeprefix("experiments."), "").split()
        done = subprocess.run(
            [sys.executable, "-m", module, *flags, *smaller],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, (module, flags, done.stderr[-2000:])
        assert "is kept as" not in done.stderr  # nothing replaces what an earlier command wrote
