"""The Perception Encoder against a plain forward pass in PyTorch, written from its description and the file's names."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.clip import VisualPrompt, encode_image, encode_patches
from gram_jax.clip.formats.pe import PERCEPTION
from gram_jax.clip.formats.weights import read_weights, write_weights
from gram_jax.testing import tiny_clip

torch = pytest.importorskip("torch", reason="the reference is written in it")

SIZES = {
    "class token": {"vision_width": 64, "vision_heads": 1, "vision_image_size": 12},
    "no class token, other sizes of the pool": {
        **{"vision_width": 128, "vision_heads": 2, "vision_image_size": 20, "vision_layers": 2},
        **{"vision_class_token": False, "vision_pool_mlp_width": 40},
    },
}
PERCEPTION_SETTINGS = {"vision_pooling": "attention", "vision_rotary": True, "vision_pool_heads": 8}


@pytest.fixture(params=SIZES)
def clip(request):
    own = {"text_width": 64, "text_heads": 1, "text_activation": "gelu", "vision_activation": "gelu"}
    return tiny_clip(**own, **PERCEPTION_SETTINGS, **SIZES[request.param])


@pytest.fixture
def tensors(clip, tmp_path):
    from safetensors.torch import load_file

    write_weights(clip.params, clip.config, tmp_path / "model.safetensors")
    return load_file(tmp_path / "model.safetensors")


def pixels(config):
    side = config.vision.image_size
    return np.random.default_rng(1).standard_normal((2, side, side, 3)).astype(np.float32)


def norm(tensors, name, x):
    return torch.nn.functional.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def linear(tensors, name, x):
    return torch.nn.functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def perceptron(tensors, name, x):
    return linear(tensors, f"{name}.c_proj", torch.nn.functional.gelu(linear(tensors, f"{name}.c_fc", x)))


def turned(x, grid, first):
    """Rotates the patches of queries or keys `[images, heads, tokens, size]` as complex numbers, one by one."""
    size, out = x.shape[-1], x.clone()
    for token in range(first, x.shape[2]):
        row, column = divmod(token - first, grid)
        for half, position in ((0, column + first), (1, row + first)):
            for i in range(size // 4):
                at = half * size // 2 + 2 * i
                number = torch.complex(x[:, :, token, at], x[:, :, token, at + 1])
                angle = torch.tensor(position * 10000.0 ** (-2 * i / (size / 2)))
                number = number * torch.polar(torch.ones(()), angle)
                out[:, :, token, at], out[:, :, token, at + 1] = number.real, number.imag
    return out


def attend(tensors, name, queries, tokens, heads, turn):
    weight, bias = tensors[f"{name}.in_proj_weight"].chunk(3), tensors[f"{name}.in_proj_bias"].chunk(3)
    parts = [
        torch.nn.functional.linear(x, weight[i], bias[i]).unflatten(-1, (heads, -1)).transpose(1, 2)
        for i, x in enumerate((queries, tokens, tokens))
    ]
    query, key, value = turn(parts[0]), turn(parts[1]), parts[2]
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    return linear(tensors, f"{name}.out_proj", mixed.transpose(1, 2).flatten(2))


def pool(tensors, tokens):
    probe = tensors["visual.attn_pool.probe"].expand(len(tokens), 1, -1)
    x = attend(tensors, "visual.attn_pool.attn", probe, tokens, 8, lambda x: x)
    x = x + perceptron(tensors, "visual.attn_pool.mlp", norm(tensors, "visual.attn_pool.layernorm", x))
    return (x @ tensors["visual.proj"])[:, 0]


def towers(tensors, config, images):
    """Returns the tokens after the last norm."""
    first, grid = int("visual.class_embedding" in tensors), config.image_size // config.patch_size
    x = torch.nn.functional.conv2d(
        torch.tensor(images).permute(0, 3, 1, 2), tensors["visual.conv1.weight"], stride=config.patch_size
    )
    x = x.flatten(2).transpose(1, 2)
    if first:
        x = torch.cat([tensors["visual.class_embedding"].expand(len(x), 1, -1), x], 1)
    x = norm(tensors, "visual.ln_pre", x + tensors["visual.positional_embedding"])
    for layer in range(config.layers):
        name = f"visual.transformer.resblocks.{layer}"
        normed = norm(tensors, f"{name}.ln_1", x)
        x = x + attend(tensors, f"{name}.attn", normed, normed, config.heads, lambda x: turned(x, grid, first))
        x = x + perceptron(tensors, f"{name}.mlp", norm(tensors, f"{name}.ln_2", x))
    return norm(tensors, "visual.ln_post", x)


def test_features_are_those_of_the_description(clip, tensors):
    images = pixels(clip.config)
    tokens = towers(tensors, clip.config.vision, images)
    expected = pool(tensors, tokens).numpy()
    np.testing.assert_allclose(encode_image(clip, images, normalize=False), expected, atol=1e-5)
    patches = encode_patches(clip, images)[1]
    first = int(clip.config.vision.class_token)
    for patch in (0, 3):
        alone = pool(tensors, tokens[:, first + patch : first + patch + 1]).numpy()
        np.testing.assert_allclose(patches[:, patch], alone, atol=1e-5)


@pytest.mark.parametrize("placement", ["before_norm", "after_norm", "after_class"])
def test_prompts_are_neither_rotated_nor_pooled(clip, placement):
    """A prompt of two halves equals, in any place, the prompt in the other order: it has no position."""
    images, width = pixels(clip.config), clip.config.vision.width
    tokens = jax.random.normal(jax.random.key(0), (2, width))
    deep = jax.random.normal(jax.random.key(1), (1, 2, width))
    given = encode_image(clip, images, VisualPrompt(tokens, deep, placement))
    other = encode_image(clip, images, VisualPrompt(tokens[::-1], deep[:, ::-1], placement))
    np.testing.assert_allclose(given, other, atol=1e-5)
    assert jnp.abs(given - encode_image(clip, images)).max() > 1e-3


def test_sizes_are_read_from_the_shapes(clip, tensors, tmp_path):
    config = PERCEPTION.sizes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, "gelu")
    assert config.vision == clip.config.vision.__class__(
        **{**vars(clip.config.vision), "pool_mlp_width": config.vision.pool_mlp_width}
    )
    jax.tree.map(
        np.testing.assert_array_equal, read_weights([tmp_path / "model.safetensors"], clip.config), clip.params
    )
