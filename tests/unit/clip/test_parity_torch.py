"""Features against transformers' own CLIPModel, in PyTorch, with the same random weights."""

from __future__ import annotations

import numpy as np
import pytest

from gram_jax.clip import ClipConfig, encode_classes, encode_image, encode_text, load_clip, save_clip
from gram_jax.clip.formats.weights import read_weights
from gram_jax.testing import tiny_clip, tiny_config
from tests.unit.clip.random_weights import randomize

torch = pytest.importorskip("torch", reason="the reference is transformers' CLIPModel, which is written in it")
transformers = pytest.importorskip("transformers")

TEXTS = ["a cat", "a photo of a large red dog.", "the small green frog on the flower"]
# Both end-of-text rules (id 2 is the legacy one), all activations, odd head counts and sizes, remainders of patches.
CONFIGS = {
    "legacy end of text": {"text_eos_token_id": 2},
    "first end of text": {"text_layers": 1, "vision_layers": 5, "vision_width": 48},
    "gelu, patch 14": {
        "text_activation": "gelu",
        "vision_activation": "gelu",
        "vision_image_size": 70,
        "vision_patch_size": 14,
    },
    "odd heads, patch 16": {
        "text_heads": 3,
        "text_width": 33,
        "vision_width": 70,
        "vision_heads": 7,
        "vision_image_size": 48,
        "vision_patch_size": 16,
        "text_eos_token_id": 2,
    },
    "patch 32 with a remainder": {"vision_image_size": 77, "vision_patch_size": 32, "text_activation": "gelu_new"},
    "one head, odd sizes": {
        "text_heads": 1,
        "text_width": 17,
        "text_mlp_width": 13,
        "vision_heads": 1,
        "vision_width": 15,
        "vision_mlp_width": 21,
        "embed_dim": 5,
    },
    "tanh gelu, other epsilon, long context": {
        "vision_activation": "gelu_pytorch_tanh",
        "text_norm_eps": 1e-3,
        "vision_norm_eps": 1e-2,
        "text_context_length": 77,
        "text_eos_token_id": 2,
    },
    "a single patch": {"vision_patch_size": 12, "text_layers": 6},
}


def random_model(config, seed):
    """Returns a CLIPModel with random weights."""
    hf = transformers.CLIPConfig(**config.to_hf(), attn_implementation="eager")
    return randomize(transformers.CLIPModel(hf), seed)


def torch_features(model, pixels, token_ids):
    with torch.no_grad():
        outputs = model(
            input_ids=torch.tensor(np.asarray(token_ids)).long(),
            pixel_values=torch.tensor(np.asarray(pixels).transpose(0, 3, 1, 2).copy()),
        )
    return [part.numpy() for part in (outputs.image_embeds, outputs.text_embeds, outputs.logits_per_image)]


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS.keys())
def pair(request, tmp_path_factory):
    """Returns a model in PyTorch, and the clip loaded from its files."""
    folder = tmp_path_factory.mktemp("clip")
    config = tiny_config(**request.param)
    model = random_model(config, seed=3)
    save_clip(tiny_clip(**request.param), folder)  # for the tokenizer and the transform
    model.save_pretrained(folder)
    clip = load_clip(folder)
    assert clip.config == config
    return model, clip


def inputs(clip, images=3):
    side = clip.config.vision.image_size
    pixels = np.random.default_rng(5).normal(size=(images, side, side, 3)).astype(np.float32)
    return pixels, clip.tokenizer.encode(TEXTS)


def test_features(pair):
    model, clip = pair
    pixels, token_ids = inputs(clip)
    image, text, similarity = torch_features(model, pixels, token_ids)
    ours = encode_image(clip, pixels), encode_text(clip, token_ids)
    np.testing.assert_allclose(ours[0], image, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours[1], text, rtol=0, atol=1e-5)
    # The features differ between inputs, so the agreement is meaningful.
    assert np.abs(image[0] - image[1]).max() > 1e-2
    assert np.abs(text[0] - text[1]).max() > 1e-2
    scale = np.exp(np.asarray(clip.params["logit_scale"]))
    np.testing.assert_allclose(scale * ours[0] @ ours[1].T, similarity, rtol=0, atol=1e-5 * scale)


def test_cut_texts_equal_padded_ones(pair):
    """Compares transformers on texts padded to the full context with ours on texts cut to the longest."""
    model, clip = pair
    pixels, cut = inputs(clip, images=1)
    whole = clip.tokenizer.encode(TEXTS, length=clip.config.text.context_length)
    assert cut.shape[1] < whole.shape[1]
    _, text, _ = torch_features(model, pixels, whole)
    np.testing.assert_allclose(encode_text(clip, cut), text, rtol=0, atol=1e-5)
    np.testing.assert_allclose(encode_text(clip, cut), encode_text(clip, whole), rtol=0, atol=1e-6)


def test_classes(pair):
    model, clip = pair
    names, template = ["cat", "small_dog", "large green frog"], "a photo of the {}."
    texts = [template.format(name.replace("_", " ")) for name in names]
    token_ids = clip.tokenizer.hf(texts, padding="max_length", max_length=clip.config.text.context_length)["input_ids"]
    _, text, _ = torch_features(model, inputs(clip, images=1)[0], token_ids)
    classes = clip.class_tokens(names, template)
    np.testing.assert_allclose(encode_classes(clip, classes), text, rtol=0, atol=1e-5)


FULL_SIZE = {
    "ViT-B/16": {"vision_config": {"patch_size": 16}, "text_config": {"eos_token_id": 2}},
    "ViT-L/14": {
        "projection_dim": 768,
        "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
        },
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("hf", FULL_SIZE.values(), ids=FULL_SIZE.keys())
def test_features_at_full_size(hf, tmp_path):
    config = ClipConfig.from_hf({"model_type": "clip", **hf})
    model = random_model(config, seed=4)
    model.save_pretrained(tmp_path)
    rng = np.random.default_rng(6)
    pixels = rng.normal(size=(2, 224, 224, 3)).astype(np.float32)
    token_ids = rng.integers(3, 49_406, (2, 77)).astype(np.int32)
    token_ids[:, 0] = 49_406
    token_ids[0, 20:], token_ids[1, 76:] = 49_407, 49_407
    image, text, _ = torch_features(model, pixels, token_ids)
    del model
    clip = tiny_clip().replace(params=read_weights([tmp_path / "model.safetensors"], config), config=config)
    np.testing.assert_allclose(encode_image(clip, pixels), image, rtol=0, atol=1e-5)
    np.testing.assert_allclose(encode_text(clip, token_ids), text, rtol=0, atol=1e-5)
    np.testing.assert_allclose(encode_text(clip, token_ids[:1, :21]), text[:1], rtol=0, atol=1e-5)
