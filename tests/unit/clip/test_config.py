"""Configurations against transformers' own reading of the same files."""

from __future__ import annotations

import json

import pytest

from gram_jax.clip import ClipConfig, TextConfig, VisionConfig
from gram_jax.testing import tiny_config

TEXT = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
    "max_position_embeddings": "context_length",
    "hidden_act": "activation",
    "layer_norm_eps": "norm_eps",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
VISION = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "num_channels": "channels",
    "hidden_act": "activation",
    "layer_norm_eps": "norm_eps",
}

FILES = {
    "defaults": {},
    "large": {
        "projection_dim": 768,
        "text_config": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
        "vision_config": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14},
    },
    "legacy": {
        "logit_scale_init_value": 4.5,
        "text_config": {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "hidden_act": "gelu"},
        "vision_config": {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "image_size": 336},
    },
    "old_dictionaries": {
        "text_config": {"hidden_size": 512, "num_hidden_layers": 3, "eos_token_id": 2},
        "text_config_dict": {"hidden_size": 768, "num_attention_heads": 12},
        "vision_config": {"patch_size": 14, "num_hidden_layers": 5},
        "vision_config_dict": None,
    },
    "towers_left_out": {"text_config": None, "vision_config_dict": {"patch_size": 16}},
}


def assert_same(ours: ClipConfig, theirs) -> None:
    assert {name: getattr(theirs.text_config, name) for name in TEXT} == {
        name: getattr(ours.text, field) for name, field in TEXT.items()
    }
    assert {name: getattr(theirs.vision_config, name) for name in VISION} == {
        name: getattr(ours.vision, field) for name, field in VISION.items()
    }
    assert theirs.projection_dim == ours.embed_dim
    assert theirs.logit_scale_init_value == ours.logit_scale_init


@pytest.mark.parametrize("name", FILES)
def test_files_are_read_as_transformers_reads_them(name):
    from transformers import CLIPConfig

    assert_same(ClipConfig.from_hf({"model_type": "clip", **FILES[name]}), CLIPConfig(**FILES[name]))


@pytest.mark.parametrize("name", FILES)
def test_written_files_are_read_back_by_transformers(name):
    from transformers import CLIPConfig

    config = ClipConfig.from_hf({"model_type": "clip", **FILES[name]})
    written = json.loads(json.dumps(config.to_hf()))
    theirs = CLIPConfig.from_dict(written)
    assert_same(config, theirs)
    assert theirs.architectures == ["CLIPModel"]
    assert theirs.text_config.projection_dim == theirs.vision_config.projection_dim == config.embed_dim
    assert ClipConfig.from_hf(written) == ClipConfig.from_hf(json.loads(theirs.to_json_string())) == config


def test_end_of_text_rule():
    assert TextConfig(eos_token_id=2).eos_rule == "highest"
    assert TextConfig(eos_token_id=49407).eos_rule == "first"


def test_lists_of_equal_values_are_read():
    config = ClipConfig.from_hf(
        {"model_type": "clip", "text_config": {"eos_token_id": [7]}, "vision_config": {"image_size": [64, 64]}}
    )
    assert config.text.eos_token_id == 7
    assert config.vision.image_size == 64


def test_configurations_compare_and_hash_by_content():
    assert tiny_config() == tiny_config()
    assert hash(tiny_config()) == hash(tiny_config())
    assert tiny_config() != tiny_config(compute_dtype="bfloat16")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "model_type=None.*'clip'"),
        ({"model_type": "siglip2"}, "model_type='siglip2'.*'clip'"),
        ({"text_config": {"hidden_size": 510}}, "TextConfig.width=510.*heads=8"),
        ({"vision_config": {"num_hidden_layers": 0}}, "VisionConfig.layers=0: .* 1 "),
        ({"vision_config": {"hidden_act": "swish2"}}, "VisionConfig.activation='swish2'.*quick_gelu"),
        ({"vision_config": {"image_size": 16}}, "VisionConfig.patch_size=32: .* 16"),
        ({"vision_config": {"image_size": [32, 64]}}, r"image_size=\[32, 64\]"),
        ({"text_config": {"eos_token_id": [1, 2]}}, r"eos_token_id=\[1, 2\]"),
        ({"text_config": {"eos_token_id": "x"}}, "TextConfig.eos_token_id='x'"),
        ({"text_config": {"layer_norm_eps": 0}}, "TextConfig.norm_eps=0"),
        ({"text_config": {"max_position_embeddings": 7.5}}, "TextConfig.context_length=7.5"),
        ({"projection_dim": -1}, "ClipConfig.embed_dim=-1"),
    ],
)
def test_impossible_files_are_refused(config, message):
    config = config if not config or "model_type" in config else {"model_type": "clip", **config}
    with pytest.raises(ValueError, match=message):
        ClipConfig.from_hf(config)


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match=r"compute_dtype='float16'.*bfloat16"):
        ClipConfig(compute_dtype="float16")
    with pytest.raises(ValueError, match="'text_depth'"):
        tiny_config(text_depth=3)


def test_a_remainder_of_the_image_makes_no_patch():
    assert VisionConfig(image_size=225, patch_size=32).num_patches == 49
