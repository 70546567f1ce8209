"""The Perception Encoder against a plain forward pass in PyTorch, written from its description and the file's names."""

from __future__ import annotations

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.clip import VisualPrompt, encode_image, encode_patches, encode_text, load_clip
from gram_jax.clip.formats.pe import PERCEPTION, TIMM_MODELS, timm_config
from gram_jax.clip.formats.tags import MODELS, facts_of_tag
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


def timm_names(tensors):
    """Returns the tensors under the names that timm's conversion gives them, in OpenCLIP's model with its own text."""
    names = {
        "conv1": "patch_embed.proj", "ln_pre": "norm_pre", "ln_post": "norm", "resblocks": "blocks", "ln_1": "norm1",
        "ln_2": "norm2", "out_proj": "proj", "c_fc": "fc1", "c_proj": "fc2", "layernorm": "norm",
    }  # fmt: skip
    out = {"visual.trunk.head.bias": torch.zeros(tensors["visual.proj"].shape[1])}
    for name, tensor in tensors.items():
        if not name.startswith("visual."):
            out[name if name == "logit_scale" else f"text.{name}"] = tensor
            continue
        words = name.removeprefix("visual.").replace("transformer.", "").replace("attn_pool.attn.", "attn_pool.")
        words = ".".join(names.get(word, word) for word in words.split("."))
        if words == "class_embedding":
            out["visual.trunk.cls_token"] = tensor[None, None]
        elif words == "positional_embedding":
            out["visual.trunk.pos_embed"] = tensor[None]
        elif words == "attn_pool.probe":
            out["visual.trunk.attn_pool.latent"] = tensor
        elif words == "proj":
            out["visual.trunk.head.weight"] = tensor.T.contiguous()
        elif words.startswith("attn_pool.in_proj_"):
            size, kind = len(tensor) // 3, words.removeprefix("attn_pool.in_proj_")
            out[f"visual.trunk.attn_pool.q.{kind}"] = tensor[:size].clone()
            out[f"visual.trunk.attn_pool.kv.{kind}"] = tensor[size:].clone()
        else:
            out[f"visual.trunk.{words.replace('in_proj_', 'qkv.')}"] = tensor
    return out


def test_a_folder_in_timms_layout_gives_the_same_features(tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    clip = tiny_clip(
        **{"text_width": 64, "text_heads": 1, "text_mlp_width": 256, "text_activation": "gelu"},
        **{"vision_activation": "gelu", "vision_width": 64, "vision_heads": 2, "vision_pool_mlp_width": 256},
        **PERCEPTION_SETTINGS,
    )
    write_weights(clip.params, clip.config, tmp_path / "own.safetensors")
    save_file(timm_names(load_file(tmp_path / "own.safetensors")), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "own.safetensors").unlink()
    monkeypatch.setitem(TIMM_MODELS, "vit_pe_core_test", (64, clip.config.vision.layers, 2, 64, 4))
    text = {"context_length": 24, "vocab_size": 632, "width": 64, "heads": 1, "layers": clip.config.text.layers}
    model = {"embed_dim": 16, "vision_cfg": {"image_size": 12, "timm_model_name": "vit_pe_core_test"}, "text_cfg": text}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    clip.tokenizer.save(tmp_path)
    loaded = load_clip(tmp_path)
    images = pixels(clip.config)
    chex.assert_trees_all_close(encode_image(loaded, images), encode_image(clip, images), atol=1e-6)
    texts = jnp.asarray(clip.tokenize(["a red cat", "dog"]))
    chex.assert_trees_all_close(encode_text(loaded, texts), encode_text(clip, texts), atol=1e-6)


@pytest.mark.parametrize("model", TIMM_MODELS)
def test_sizes_of_published_models_fit_their_tags(model):
    side = int(model.rpartition("_")[2])
    config = timm_config(model, side, "gelu")
    size = model.split("_")[3]
    name = next(name for name in MODELS if name.startswith(f"PE-Core-{SHORT[size]}-"))
    assert MODELS[name][:4] == (side, config.patch_size, config.layers, config.width)
    transform = facts_of_tag(name, "meta")[1].transform(side)
    assert (transform.size, transform.crop, transform.resample, transform.mean) == ((side, side), None, 2, 3 * (0.5,))


SHORT = {"tiny": "T", "small": "S", "base": "B", "large": "L", "gigantic": "bigG"}


def test_sizes_are_read_from_the_shapes(clip, tensors, tmp_path):
    config = PERCEPTION.sizes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, "gelu")
    assert config.vision == clip.config.vision.__class__(
        **{**vars(clip.config.vision), "pool_mlp_width": config.vision.pool_mlp_width}
    )
    jax.tree.map(
        np.testing.assert_array_equal, read_weights([tmp_path / "model.safetensors"], clip.config), clip.params
    )
