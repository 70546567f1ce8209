"""Prompts and meta checkpoints: loaded from the path alone, and refused for another clip or with other contents."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gram_jax as gram
from gram_jax import artifacts, regulators, tuners
from gram_jax.array_file import ArrayFileError, read_arrays, write_arrays
from gram_jax.clip import weights_hash
from gram_jax.errors import InputError
from gram_jax.meta import init_meta, with_structure
from gram_jax.registry import Registry
from gram_jax.testing import tiny_clip

KEY = jax.random.key(0)
COOP = tuners.coop(num_tokens=3)
TUNER = tuners.ivlp(num_text=2, num_visual=2, depth=1, init_text=None)
REGULATOR = regulators.gated_low_rank(rank=2, context_dim=3)
SIZES = {"text_layers": 1, "vision_layers": 1}


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(seed=3, **SIZES)


@pytest.fixture
def prompt_file(clip, tmp_path):
    path = tmp_path / "prompt.safetensors"
    gram.save_prompt(path, COOP.init(KEY, clip, None), COOP, clip)
    return path


def make(clip, regulator=REGULATOR, tuner=TUNER):
    prompt = tuner.init(KEY, clip, None)
    return init_meta(prompt, regulator.init(jax.random.key(1), prompt), learning_rate=0.1)


@pytest.fixture
def meta_file(clip, tmp_path):
    path = tmp_path / "meta.safetensors"
    gram.save_meta(path, make(clip), TUNER, REGULATOR, clip, notes={"steps": 5})
    return path


def assert_same(loaded, saved):
    assert jax.tree.structure(loaded) == jax.tree.structure(saved)
    jax.tree.map(np.testing.assert_array_equal, loaded, saved)


def change(path, **header):
    """Rewrites a file with other entries in its header, and the right digest."""
    tree, old = read_arrays(path)
    write_arrays(path, tree, old | header)


def test_a_prompt_is_loaded_with_its_tuner(prompt_file, clip):
    loaded = gram.load_prompt(prompt_file, clip)
    assert_same(loaded.prompt, COOP.init(KEY, clip, None))
    assert (loaded.tuner.name, loaded.tuner.settings) == ("coop", COOP.settings)
    header = read_arrays(prompt_file)[1]
    assert header["clip"]["weights_hash"] == weights_hash(clip.params)
    assert (header["kind"], header["tuner"], header["settings"]["num_tokens"]) == ("prompt", "coop", 3)
    assert header["class_specific"] is False
    assert prompt_file.stat().st_size < 3000
    # A clip with equal weights in other arrays is the same clip.
    same = clip.replace(params=jax.tree.map(jnp.copy, clip.params))
    assert_same(gram.load_prompt(prompt_file, same).prompt, loaded.prompt)


def test_a_class_specific_prompt_keeps_its_classes(clip, tmp_path):
    tuner = tuners.coop(class_specific=True)
    prompt = tuner.init(KEY, clip, clip.class_tokens(["cat", "dog", "bird"]))
    gram.save_prompt(tmp_path / "x", prompt, tuner, clip)
    assert_same(gram.load_prompt(tmp_path / "x", clip).prompt, prompt)
    assert read_arrays(tmp_path / "x")[1]["class_specific"] is True


def test_a_meta_checkpoint_is_loaded_with_its_tuner_regulator_and_notes(meta_file, clip):
    loaded = gram.load_meta(meta_file, clip)
    assert_same(loaded.meta, make(clip))
    assert (loaded.tuner.name, loaded.tuner.settings) == ("ivlp", TUNER.settings)
    assert (loaded.regulator.name, loaded.regulator.settings) == ("gated_low_rank", REGULATOR.settings)
    assert loaded.notes == {"steps": 5}
    assert meta_file.stat().st_size < 20_000


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("regulator", [regulators.identity(), regulators.structured(prototypes=3)])
def test_a_structured_initialization_is_restored(clip, tmp_path, regulator, offsets):
    plain = make(clip, regulator)
    rows = np.random.default_rng(0).normal(size=(4, 2 * clip.config.embed_dim))
    meta = with_structure(plain, rows[:3], 0.2, offsets=offsets)
    if offsets:
        meta = meta.replace(offsets=jax.tree.map(lambda leaf: leaf + 0.5, meta.offsets))
        cut = meta.replace(offsets=jax.tree.map(lambda leaf: leaf[:2], meta.offsets))
        with pytest.raises(ArrayFileError, match="offsets"):
            gram.save_meta(tmp_path / "wrong", cut, TUNER, regulator, clip)
    for name in ("one", "two"):
        gram.save_meta(tmp_path / name, meta, TUNER, regulator, clip)
    assert_same(gram.load_meta(tmp_path / "one", clip).meta, meta)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    if regulator.name == "structured":
        for wrong, message in ((plain, "no prototypes"), (with_structure(plain, rows), "4 prototypes.*prototypes=3")):
            with pytest.raises(ArrayFileError, match=message):
                gram.save_meta(tmp_path / "wrong", wrong, TUNER, regulator, clip)


def test_a_file_is_described_without_its_clip(prompt_file, meta_file):
    described = artifacts.describe(prompt_file)
    assert (described.kind, described.tuner.name, described.regulator, described.notes) == ("prompt", "coop", None, {})
    described = artifacts.describe(meta_file)
    assert (described.kind, described.tuner.name, described.notes) == ("meta", "ivlp", {"steps": 5})
    assert described.regulator.settings == REGULATOR.settings


def test_another_clip_is_refused(prompt_file, meta_file, clip):
    others = [
        (tiny_clip(text_width=36, text_heads=3, **SIZES), "text_width=24.*text_width=36"),
        (tiny_clip(vision_width=30, vision_heads=5, **SIZES), "vision_width=32.*vision_width=30"),
        (tiny_clip(embed_dim=8, **SIZES), "embed_dim=16.*embed_dim=8"),
        (tiny_clip(seed=4, **SIZES), weights_hash(clip.params)[:12]),
    ]
    for other, message in others:
        for load, path in ((gram.load_prompt, prompt_file), (gram.load_meta, meta_file)):
            with pytest.raises(ArrayFileError, match=message):
                load(path, other)


def test_another_kind_of_file_is_refused(prompt_file, meta_file, clip, tmp_path):
    with pytest.raises(ArrayFileError, match="holds 'prompt', not 'meta'"):
        gram.load_meta(prompt_file, clip)
    with pytest.raises(ArrayFileError, match="holds 'meta', not 'prompt'"):
        gram.load_prompt(meta_file, clip)
    write_arrays(tmp_path / "x", {}, {"kind": "hierarchy"})
    with pytest.raises(ArrayFileError, match="'hierarchy'"):
        artifacts.describe(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        gram.load_prompt(tmp_path / "nowhere", clip)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"tuner": "coopp"}, "coop"),
        ({"tuner": 3}, "tuner"),
        ({"tuner": "vpt"}, "num_tokens|position"),
        ({"settings": {"num_tokens": "3"}}, "num_tokens='3'"),
        ({"settings": {"num_tokens": 5, "init_text": None}}, r"float32\[5, 24\]"),
        ({"settings": {"num_tokens": 2**70}}, str(2**70)),
        ({"settings": None}, "settings"),
        ({"clip": {}}, "clip"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(prompt_file, clip, header, message):
    change(prompt_file, **header)
    with pytest.raises(ArrayFileError, match=message) as caught:
        gram.load_prompt(prompt_file, clip)
    assert "prompt.safetensors" in str(caught.value)


def test_parts_that_do_not_fit_are_not_saved(clip, tmp_path):
    path, meta, prompt = tmp_path / "x", make(clip), COOP.init(KEY, clip, None)
    for given, tuner, part in (
        (meta.replace(phi=make(clip, regulators.mask()).phi), TUNER, "phi"),
        (meta.replace(log_rates=meta.prompt), TUNER, "log_rates"),
        (meta, tuners.coop(), "prompt"),
        (meta, tuners.coop(class_specific=True), "class_specific=True"),
    ):
        with pytest.raises(InputError, match=part):
            gram.save_meta(path, given, tuner, REGULATOR, clip)
    for tuner, wrong in (
        (tuners.coop(num_tokens=5), prompt),
        (tuners.vpt(), prompt),
        (COOP, {"context": prompt["context"].astype(jnp.float16)}),
    ):
        with pytest.raises(ArrayFileError, match=r"the prompt .* need"):
            gram.save_prompt(path, wrong, tuner, clip)
    assert not path.exists()


def half_coop(num_tokens: int = 4) -> tuners.Tuner:
    """A tuner of a user's own: CoOp whose context counts half."""
    inner = tuners.coop(num_tokens=num_tokens)

    def apply(prompt, *arguments):
        return inner.apply({"context": prompt["context"] / 2}, *arguments)

    return inner._replace(name="half_coop", settings={"num_tokens": num_tokens}, apply=apply)


def test_a_registered_tuner_is_known_by_its_name(clip, tmp_path, monkeypatch):
    tuner, path = half_coop(2), tmp_path / "x"
    prompt = tuner.init(KEY, clip, None)
    with pytest.raises(InputError, match=r"'half_coop'.*tuners\.REGISTRY\.register"):
        gram.save_prompt(path, prompt, tuner, clip)
    registry = Registry("tuner", *(getattr(tuners, name) for name in tuners.NAMES))
    registry.register(half_coop)
    monkeypatch.setattr(tuners, "REGISTRY", registry)
    gram.save_prompt(path, prompt, tuner, clip)
    loaded = gram.load_prompt(path, clip)
    assert loaded.tuner.settings == {"num_tokens": 2}
    classes, images = clip.class_tokens(["cat", "dog"]), jnp.ones((1, clip.config.embed_dim)) / 4
    found = loaded.tuner.apply(loaded.prompt, clip, classes, images).logits
    halved = {"context": prompt["context"] / 2}
    np.testing.assert_array_equal(found, tuners.coop(num_tokens=2).apply(halved, clip, classes, images).logits)
    monkeypatch.undo()
    with pytest.raises(ArrayFileError, match="'half_coop'"):
        gram.load_prompt(path, clip)
