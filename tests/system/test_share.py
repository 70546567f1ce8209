"""`experiments.share` against a hub on this machine: what was sent comes back, with a card; errors are one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import yaml

import gram_jax as gram
from gram_jax import artifacts, evaluation, meta, regulators, tuners
from gram_jax.evaluation import Results, Row
from tests.system.hub import TOKEN, running
from tests.system.processes import ROOT, free_port


@pytest.fixture(scope="module")
def clip():
    return gram.load_clip("mini")


@pytest.fixture(scope="module")
def tuner():
    return tuners.coop(num_tokens=3)


@pytest.fixture
def prompt(tmp_path, clip, tuner):
    path = tmp_path / "tuned.safetensors"
    artifacts.save_prompt(path, tuner.init(jax.random.key(3), clip, None), tuner, clip)
    return path


def share(url: str, folder: Path, *flags: str, token: str | None = TOKEN) -> subprocess.CompletedProcess:
    """Types the command; settings of this machine's user are out of reach."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    clean |= {"HF_ENDPOINT": url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1", "JAX_PLATFORMS": "cpu"}
    if token:
        clean["HF_TOKEN"] = token
    command = [sys.executable, "-m", "experiments.share", f"--workdir={folder / 'work'}", *flags]
    return subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=300)


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_prompt_is_sent_and_fetched(prompt, clip, tuner, tmp_path):
    rows = [
        Row("coop", "few_shot", "glyphs:chess", "accuracy", 0.75 + seed / 100, shots=4, seed=seed) for seed in (0, 1)
    ]
    evaluation.write_results(tmp_path / "results.json", Results({}, evaluation.environment(), tuple(rows)))
    with running() as hub:
        sent = share(hub.url, tmp_path, "--push=me/birds", f"--file={prompt}", f"--results={tmp_path}/results.json")
        assert sent.returncode == 0, sent.stderr
        assert f"{hub.url}/me/birds/commit/" in sent.stdout
        assert set(hub.repos["me/birds"]) == {"prompt.safetensors", "README.md"}
        assert hub.repos["me/birds"]["prompt.safetensors"] == prompt.read_bytes()
        card = hub.repos["me/birds"]["README.md"].decode()
        fetched = share(hub.url, tmp_path / "other", "--pull=me/birds", token=None)
        assert fetched.returncode == 0, fetched.stderr
    digest = gram.weights_hash(clip.params)
    about = front_matter(card)
    assert {"gram_jax", "coop"} <= set(about["tags"])
    assert about["library_name"] == "gram_jax"
    assert digest in card
    assert "num_tokens=3" in card
    assert "`glyphs:chess`" in card
    assert "75.5" in card  # the mean of both seeds
    assert str(tmp_path) not in card
    path = tmp_path / "other" / "work" / "birds.safetensors"
    assert str(path) in fetched.stdout
    assert digest[:12] in fetched.stdout
    loaded = gram.load_prompt(path, clip)
    assert loaded.tuner.name == "coop"
    assert (loaded.prompt["context"] == gram.load_prompt(prompt, clip).prompt["context"]).all()


def test_a_meta_checkpoint_is_sent_again_and_another_file_is_kept(clip, tuner, tmp_path):
    regulator = regulators.affine()
    start = tuner.init(jax.random.key(0), clip, None)
    learned = meta.init_meta(start, regulator.init(jax.random.key(1), start), learning_rate=0.1)
    path = tmp_path / "meta.safetensors"
    artifacts.save_meta(path, learned, tuner, regulator, clip, notes={"steps": 7, "text": "a | b"})
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(b"precious")
    with running() as hub:
        for _ in range(2):
            sent = share(hub.url, tmp_path, "--push=me/meta", f"--file={path}")
            assert sent.returncode == 0, sent.stderr
        card = hub.repos["me/meta"]["README.md"].decode()
        fetched = share(hub.url, tmp_path, "--pull=me/meta", f"--output={mine}")
        hub.repos["me/meta"]["meta.safetensors"] = path.read_bytes()[:-9]
        damaged = share(hub.url, tmp_path, "--pull=me/meta")
    assert front_matter(card)["tags"] == ["gram_jax", "clip", "prompt-tuning", "coop", "affine"]
    assert "| steps | `7` |" in card
    assert fetched.returncode == 2
    assert str(mine) in fetched.stderr
    assert mine.read_bytes() == b"precious"
    assert damaged.returncode == 2
    assert "meta.safetensors of me/meta" in one_line(damaged)
    assert not (tmp_path / "work" / "meta.safetensors").exists()


def one_line(done: subprocess.CompletedProcess) -> str:
    """The message of a refused command, which has exit status 2 and no traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_errors_of_the_hub_are_one_line(prompt, tmp_path):
    with running() as hub:
        without = share(hub.url, tmp_path, "--push=me/x", f"--file={prompt}", token=None)
        assert "hf auth login" in one_line(without)
        other = share(hub.url, tmp_path, "--push=me/x", f"--file={prompt}", token="hf_other")
        assert "me/x refuses the token (status 403)" in one_line(other)
        absent = share(hub.url, tmp_path, "--pull=me/none")
        assert "me/none does not exist" in one_line(absent)
        hub.repos["me/empty"] = {"README.md": b""}
        empty = share(hub.url, tmp_path, "--pull=me/empty")
        assert "me/empty has 0 files prompt.safetensors or meta.safetensors" in one_line(empty)
        assert hub.repos == {"me/empty": {"README.md": b""}}
    gone = share(f"http://127.0.0.1:{free_port()}", tmp_path, "--pull=me/x")
    assert "me/x cannot be reached" in one_line(gone)


def test_a_file_of_another_clip_is_not_sent(tmp_path):
    from gram_jax.testing import tiny_clip

    other, tuner = tiny_clip(), tuners.coop()
    path = tmp_path / "tuned.safetensors"
    artifacts.save_prompt(path, tuner.init(jax.random.key(0), other, None), tuner, other)
    with running() as hub:
        assert "tuned.safetensors belongs to a clip with" in one_line(
            share(hub.url, tmp_path, "--push=me/x", f"--file={path}")
        )
        assert hub.repos == {}
