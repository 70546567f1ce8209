"""Meta checkpoints in files: what comes back, and what is refused."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from gram_jax import regulators, tuners
from gram_jax.meta import init_meta, load_meta, save_meta
from gram_jax.testing import tiny_clip

TUNER = tuners.ivlp(num_text=2, num_visual=2, depth=1, init_text=None)
REGULATOR = regulators.gated_low_rank(rank=2, context_dim=3)


def make(clip, regulator=REGULATOR, tuner=TUNER):
    prompt = tuner.init(jax.random.key(0), clip, None)
    return init_meta(prompt, regulator.init(jax.random.key(1), prompt), learning_rate=0.1)


@pytest.fixture(scope="module")
def saved(small_clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("meta") / "meta.safetensors"
    meta = make(small_clip)
    save_meta(path, meta, TUNER, REGULATOR, small_clip, notes={"steps": 5})
    return path, meta


def test_comes_back_to_the_last_bit_and_says_what_it_is(saved, small_clip):
    path, meta = saved
    loaded = load_meta(path, TUNER, REGULATOR, small_clip)
    assert jax.tree.structure(loaded) == jax.tree.structure(meta)
    jax.tree.map(np.testing.assert_array_equal, loaded, meta)
    header = tuners.read_arrays(path)[1]
    assert tuners.make(header["tuner"], **header["settings"]).settings == TUNER.settings
    assert regulators.make(header["regulator"], **header["regulator_settings"]).settings == REGULATOR.settings
    assert header["notes"] == {"steps": 5}
    assert path.stat().st_size < 20_000


def test_a_regulator_without_parameters_comes_back(small_clip, tmp_path):
    meta = make(small_clip, regulators.identity())
    for name in ("one", "two"):
        save_meta(tmp_path / name, meta, TUNER, regulators.identity(), small_clip)
    loaded = load_meta(tmp_path / "one", TUNER, regulators.identity(), small_clip)
    assert jax.tree.structure(loaded) == jax.tree.structure(meta)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_another_clip_tuner_or_regulator_is_refused(saved, small_clip):
    path, _ = saved
    wider = tiny_clip(text_width=36, text_heads=3, text_layers=1, vision_layers=1)
    other_weights = tiny_clip(seed=4, text_layers=1, vision_layers=1)
    shorter = tuners.ivlp(num_text=2, num_visual=3, depth=1, init_text=None)
    refused = [
        ((TUNER, REGULATOR, wider), "text width is 24; this clip's is 36"),
        ((TUNER, REGULATOR, other_weights), "other weights"),
        ((tuners.coop(), REGULATOR, small_clip), "'ivlp', not by 'coop'"),
        ((shorter, REGULATOR, small_clip), "num_visual is 2 there and 3 here"),
        ((TUNER, regulators.mask(), small_clip), "'gated_low_rank', not with 'mask'"),
        ((TUNER, regulators.gated_low_rank(rank=3, context_dim=3), small_clip), "'rank': 2.*'rank': 3"),
    ]
    for arguments, message in refused:
        with pytest.raises(tuners.ArrayFileError, match=message):
            load_meta(path, *arguments)


def test_a_prompt_is_no_meta_checkpoint(saved, small_clip, tmp_path):
    tuners.save_prompt(tmp_path / "prompt", saved[1].prompt, TUNER, small_clip)
    with pytest.raises(tuners.ArrayFileError, match="'prompt', not 'meta'"):
        load_meta(tmp_path / "prompt", TUNER, REGULATOR, small_clip)


def test_what_does_not_belong_together_is_not_saved(saved, small_clip, tmp_path):
    _, meta = saved
    path = tmp_path / "meta"
    refused = [
        (meta.replace(phi=make(small_clip, regulators.mask()).phi), TUNER, "phi of"),
        (meta.replace(log_rates=meta.prompt), TUNER, "log_rates of"),
        (meta, tuners.coop(), "the prompt of"),
        (meta, tuners.coop(class_specific=True), "class-specific"),
    ]
    for given, tuner, message in refused:
        with pytest.raises(ValueError, match=message):
            save_meta(path, given, tuner, REGULATOR, small_clip)
    assert not path.exists()
