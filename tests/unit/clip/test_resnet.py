"""The modified ResNet against OpenCLIP's and OpenAI's own, in PyTorch, with the same random weights."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.clip import ClipConfig, ResNetConfig, encode_image, encode_patches, encode_text, load_clip, weights_hash
from gram_jax.clip.formats.resnet import RESNET
from gram_jax.clip.formats.weights import read_weights, write_weights
from gram_jax.testing import tiny_clip, tiny_config
from tests.openclip import open_clip, openai_clip

SIZES = {
    "one block in most stages": ResNetConfig(width=4, layers=(1, 2, 1, 1), heads=2, image_size=64),
    "odd numbers": ResNetConfig(width=6, layers=(3, 1, 2, 2), heads=3, image_size=96),
}


@pytest.fixture(params=SIZES)
def clip(request):
    return tiny_clip(
        vision=SIZES[request.param], text_heads=1, text_width=64, text_mlp_width=256, text_activation="gelu"
    )


def pixels(config, images=2):
    side = config.vision.image_size
    return np.random.default_rng(0).standard_normal((images, side, side, 3)).astype(np.float32)


def written(clip, folder):
    """Returns the tensors of a written file, by OpenCLIP's names, as PyTorch's."""
    from safetensors.torch import load_file

    write_weights(clip.params, clip.config, folder / "model.safetensors")
    return load_file(folder / "model.safetensors")


def theirs(model, images):
    import torch

    with torch.no_grad():
        return model(torch.tensor(images).permute(0, 3, 1, 2)).numpy()


def model_config(config: ClipConfig):
    vision = config.vision
    head_width = 32 * vision.width // vision.heads
    own = {"image_size": vision.image_size, "layers": list(vision.layers), "width": vision.width}
    text = {name: getattr(config.text, name) for name in ("context_length", "vocab_size", "width", "heads", "layers")}
    text["mlp_ratio"] = config.text.mlp_width / config.text.width
    return {"embed_dim": config.embed_dim, "vision_cfg": {**own, "head_width": head_width}, "text_cfg": text}


def test_features_are_those_of_openclip(clip, tmp_path):
    open_clip()
    from open_clip.model import CLIP

    model = CLIP(**model_config(clip.config)).eval()
    found = model.load_state_dict(written(clip, tmp_path), strict=False)
    assert not found.unexpected_keys
    assert all(key.endswith("num_batches_tracked") or key == "attn_mask" for key in found.missing_keys)
    images = pixels(clip.config)
    features = encode_image(clip, images, normalize=False)
    np.testing.assert_allclose(features, theirs(model.encode_image, images), atol=1e-5)
    assert features.std() > 0.1
    ids = clip.tokenize(["a photo of a large red dog.", "cat"])
    whole = np.zeros((2, clip.config.text.context_length), np.int64)
    whole[:, : ids.shape[1]] = ids
    import torch

    with torch.no_grad():
        expected = model.encode_text(torch.tensor(whole)).numpy()
    np.testing.assert_allclose(encode_text(clip, jnp.asarray(ids), normalize=False), expected, atol=1e-5)


def test_every_position_is_a_query_of_the_pool(clip, tmp_path):
    open_clip()
    import torch
    from open_clip.modified_resnet import ModifiedResNet

    vision = clip.config.vision
    model = ModifiedResNet(vision.layers, clip.config.embed_dim, vision.heads, vision.image_size, vision.width).eval()
    tensors = {name.removeprefix("visual."): tensor for name, tensor in written(clip, tmp_path).items()}
    model.load_state_dict(tensors, strict=False)
    kept = {}
    model.attnpool.register_forward_hook(lambda module, inputs, output: kept.update(map=inputs[0]))
    images = pixels(clip.config)
    image = theirs(model, images)
    pool = model.attnpool
    with torch.no_grad():
        tokens = kept["map"].flatten(2).permute(0, 2, 1)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + pool.positional_embedding
        query, key, value = (layer(tokens) for layer in (pool.q_proj, pool.k_proj, pool.v_proj))
        split = [part.unflatten(-1, (vision.heads, -1)).transpose(1, 2) for part in (query, key, value)]
        mixed = torch.nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        expected = pool.c_proj(mixed).numpy()
    features, patches = encode_patches(clip, images)
    np.testing.assert_allclose(patches, expected[:, 1:], atol=1e-5)
    np.testing.assert_allclose(features, image / np.linalg.norm(image, axis=1, keepdims=True), atol=1e-5)


def test_openai_builds_the_same_sizes_from_the_same_file(clip, tmp_path):
    reference = openai_clip()
    tensors = written(clip, tmp_path)
    built = RESNET.sizes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, "gelu")
    assert built.vision == clip.config.vision
    model = reference.build_model(tensors)  # it reads the sizes from the shapes, too
    assert model.visual.attnpool.num_heads == built.vision.heads
    assert model.visual.input_resolution == built.vision.image_size
    assert model.transformer.layers == built.text.layers
    assert (model.transformer.width, model.context_length) == (built.text.width, built.text.context_length)


def test_a_file_is_read_exactly_and_has_the_same_hash(clip, tmp_path):
    write_weights(clip.params, clip.config, tmp_path / "model.safetensors")
    read = read_weights([tmp_path / "model.safetensors"], clip.config)
    jax.tree.map(np.testing.assert_array_equal, read, clip.params)
    assert weights_hash(read) == weights_hash(clip.params)


def test_a_folder_of_openclip_is_loaded(clip, tmp_path):
    write_weights(clip.params, clip.config, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_config(clip.config)}))
    clip.tokenizer.save(tmp_path)
    loaded = load_clip(tmp_path)
    assert loaded.config.vision == clip.config.vision
    images = pixels(clip.config)
    np.testing.assert_array_equal(encode_image(loaded, images), encode_image(clip, images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 5, "heads": 1}, r"width=5: .*even"),
        ({"width": 4, "heads": 3}, r"width=4: .*multiple of heads"),
        ({"image_size": 100}, r"image_size=100: .*multiple of 32"),
        ({"layers": (1, 2, 3)}, r"layers=\(1, 2, 3\)"),
        ({"layers": (1, 2, 0, 1)}, r"layers=0"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ResNetConfig(**change)


def test_a_hugging_face_configuration_cannot_hold_it():
    with pytest.raises(ValueError, match=r"ResNetConfig.*own format"):
        tiny_config(vision=SIZES["odd numbers"]).to_hf()


@pytest.mark.slow
def test_rn50_of_real_size(tmp_path):
    open_clip()
    from open_clip.modified_resnet import ModifiedResNet

    clip = tiny_clip(vision=ResNetConfig(), embed_dim=1024)
    model = ModifiedResNet([3, 4, 6, 3], 1024, 32, 224, 64).eval()
    tensors = {name.removeprefix("visual."): tensor for name, tensor in written(clip, tmp_path).items()}
    assert not model.load_state_dict(tensors, strict=False).missing_keys
    images = pixels(clip.config)
    expected = theirs(model, images)
    found = encode_image(clip, images, normalize=False)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
