"""Methods end to end on a clip with a ResNet: the published recipes, and what a ResNet refuses."""

import json

import numpy as np
import pytest
from etils import epath

from experiments.evaluate import run as evaluate
from gram_jax.clip import ResNetConfig
from gram_jax.clip.formats.weights import write_weights
from gram_jax.testing import tiny_clip

METHODS = {
    "coop": {"preset": "coop_fs_rn50"},
    "cocoop": {"tuner": "cocoop(num_tokens=4)", "protocol": ("few_shot",)},
    "kgcoop": {"preset": "kgcoop_b2n_vitb16"},
    "prograd": {"preset": "prograd_fs_rn50"},
    "tpt": {"preset": "tpt_rn50", "test_time_views": 4, "test_time_share": 0.5},
    "tip_adapter": {"preset": "tip_adapter_fs_rn50"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a clip in OpenCLIP's format."""
    folder = tmp_path_factory.mktemp("clip")
    vision = ResNetConfig(width=4, layers=(1, 1, 2, 1), heads=2, image_size=32)
    clip = tiny_clip(vision=vision, text_layers=1, text_width=16, text_mlp_width=64, text_context_length=32)
    write_weights(clip.params, clip.config, folder / "open_clip_model.safetensors")
    sizes = {"image_size": 32, "layers": [1, 1, 2, 1], "width": 4}
    text = {"context_length": 32, "vocab_size": clip.config.text.vocab_size, "width": 16, "heads": 2, "layers": 1}
    model = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": sizes, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    clip.tokenizer.save(folder)
    return str(folder)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_runs_on_a_resnet(method, folder, tmp_path):
    given = METHODS[method]
    if method != "tpt":
        given = {**given, "shots": (1,), "report_steps": ()}
        given |= {} if method == "tip_adapter" else {"epochs": (2,), "batch_size": 4}
    config = evaluate.Config(
        clip=folder, dataset=("glyphs:chess",), seeds=(1,), max_test_images=2, learning_rate=(0.01,), **given
    )
    results = evaluate.run(config, epath.Path(tmp_path))
    assert len(results.rows) > 1
    assert {row.method.split("+")[0].split("(")[0] for row in results.rows} >= {METHODS_SHOWN.get(method, "coop")}
    assert all(np.isfinite(row.value) and 0 <= row.value <= 1 for row in results.rows)


METHODS_SHOWN = {"cocoop": "cocoop", "tip_adapter": "tip_adapter"}


def test_visual_prompts_are_refused_with_the_reason(folder, tmp_path):
    config = evaluate.Config(clip=folder, dataset=("glyphs:chess",), tuner="vpt(depth=1)", seeds=(1,), shots=(1,))
    with pytest.raises(ValueError, match=r"vision transformer, .*image tower has none; .*coop"):
        evaluate.run(config, epath.Path(tmp_path))
