"""OpenCLIP's models and tags, against OpenCLIP's own tables."""

from __future__ import annotations

import pytest

from gram_jax.clip import ImageTransform, load_clip
from gram_jax.clip.formats import loading, tags, vit
from tests.openclip import PLAIN, build, open_clip, write_folder

CROPPED = ImageTransform(12, (12, 12))


def test_tags_are_those_of_open_clip():
    open_clip()
    from open_clip import pretrained

    checked = 0
    for model, own in tags.TAGS.items():
        theirs = pretrained._PRETRAINED[model]
        assert set(own) == set(theirs)
        for tag, facts in own.items():
            settings = theirs[tag]
            assert facts.repository == settings["hf_hub"].rstrip("/")
            assert facts.quick_gelu == settings.get("quick_gelu", False)
            for name in ("mean", "std", "interpolation", "resize_mode"):
                assert getattr(facts, name) == settings[name], (model, tag, name)
            checked += 1
    assert checked > 60


def test_models_and_head_widths_are_those_of_open_clip():
    reference = open_clip()
    from open_clip import factory

    configs = {name: factory.get_model_config(name) for name in reference.list_models()}
    for name, sizes in tags.MODELS.items():
        vision, text = configs[name]["vision_cfg"], configs[name]["text_cfg"]
        if "timm_model_name" in vision:  # its sizes are timm's; those of the text and of the output are stated
            assert sizes[4:] == (text["width"], text["layers"], configs[name]["embed_dim"])
            continue
        layers = vision["layers"] if isinstance(vision["layers"], int) else tuple(vision["layers"])
        assert sizes == (
            *(vision["image_size"], vision["patch_size"], layers, vision["width"]),
            *(text["width"], text["layers"], configs[name]["embed_dim"]),
        )
    plain = [name for name, each in configs.items() if isinstance(each["vision_cfg"].get("layers"), int)]
    for name in plain:
        vision, text = configs[name]["vision_cfg"], configs[name]["text_cfg"]
        width = vision["width"]
        assert vision.get("head_width", 64) == vit.HEAD_WIDTHS.get(width, vit.HEAD_WIDTH), name
        if "heads" in text and "hf_model_name" not in text:
            assert text["width"] // text["heads"] == vit.HEAD_WIDTH, name
    assert len(plain) > 30


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-16:dfn3b", r"tag of ViT-B-16='dfn3b' .*'dfn2b'"),
        ("ViT-B-17:openai", r"model='ViT-B-17' .*'ViT-B-16'"),
        ("ViT-B-16-quickgelu:laion2b_s34b_b88k", "was trained with GELU, .* ViT-B-16:laion2b_s34b_b88k"),
    ],
)
def test_unknown_tags(name, message):
    with pytest.raises(ValueError, match=message):
        load_clip(name)


@pytest.fixture(scope="module")
def model():
    return build(PLAIN)


@pytest.mark.parametrize(
    ("name", "repository", "activation", "transform"),
    [
        ("ViT-B-16:dfn2b", "apple/DFN2B-CLIP-ViT-B-16", "quick_gelu", CROPPED),
        ("ViT-B-16-quickgelu:dfn2b", "apple/DFN2B-CLIP-ViT-B-16", "quick_gelu", CROPPED),
        ("ViT-B/16", "timm/vit_base_patch16_clip_224.openai", "quick_gelu", CROPPED),
        ("ViT-L-14:metaclip-400m", "timm/vit_large_patch14_clip_224.metaclip_400m", "quick_gelu", CROPPED),
        ("ViT-H-14:dfn5b", "apple/DFN5B-CLIP-ViT-H-14", "quick_gelu", ImageTransform((12, 12), None)),
        (
            "ViT-L-14:laion2b_s32b_b82k",
            "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
            "gelu",
            ImageTransform(12, (12, 12), mean=(0.5,) * 3, std=(0.5,) * 3),
        ),
    ],
)
def test_tags_lead_to_the_hub(model, tmp_path, monkeypatch, name, repository, activation, transform):
    monkeypatch.setattr(tags, "MODELS", dict.fromkeys(tags.MODELS, tags.Sizes(12, 4, 3, 64, 64, 2, 16)))
    config = PLAIN | {"quick_gelu": activation == "quick_gelu"}
    folder = write_folder(tmp_path, config, model)
    asked = []
    monkeypatch.setattr(loading.hub, "fetch", lambda *args: asked.append(args) or (folder, []))
    clip = load_clip(name)
    assert asked == [(repository, None)]
    assert clip.config.text.activation == activation
    assert clip.transform == transform
    write_folder(tmp_path, PLAIN | {"quick_gelu": activation != "quick_gelu"}, model)
    with pytest.raises(ValueError, match=rf"the tag .* says {activation}.* pass activation="):
        load_clip(name)
    for decision in ("gelu", "quick_gelu"):
        decided = load_clip(name, activation=decision).config
        assert (decided.text.activation, decided.vision.activation) == (decision, decision)
