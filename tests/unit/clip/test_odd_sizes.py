"""Vision transformers of unusual sizes, as OpenCLIP's configurations state them, against OpenCLIP itself."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.clip import encode_image, encode_text, load_clip, weights_hash
from gram_jax.testing import tiny_tokenizer
from tests.openclip import open_clip

TEXT = {"context_length": 24, "vocab_size": 632, "width": 32, "heads": 4, "layers": 2}
VISION = {"image_size": 28, "patch_size": 14, "layers": 2}
# The ratios and the numbers of heads of the published models, with narrow layers.
MODELS = {
    "g-14": {"embed_dim": 20, "vision_cfg": {**VISION, "width": 44, "head_width": 22, "mlp_ratio": 4.3637}},
    "bigG-14": {
        "embed_dim": 12,
        "quick_gelu": True,
        "vision_cfg": {**VISION, "width": 52, "head_width": 26, "mlp_ratio": 4.9231},
    },
    "without a first norm": {
        "embed_dim": 20,
        "vision_cfg": {**VISION, "width": 48, "head_width": 16, "no_ln_pre": True},
    },
    "TinyCLIP-8M": {"embed_dim": 16, "vision_cfg": {**VISION, "width": 64, "head_width": 16, "layers": 3}},
}


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_openclip(name, tmp_path):
    open_clip()
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    config = {**MODELS[name], "text_cfg": TEXT}
    torch.manual_seed(0)
    model = CLIP(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # away from norms and biases that are 1 and 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    tensors = {key: value.contiguous() for key, value in model.state_dict().items() if key != "attn_mask"}
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    tiny_tokenizer().save(tmp_path)
    clip = load_clip(tmp_path)
    images = np.random.default_rng(0).standard_normal((2, 28, 28, 3)).astype(np.float32)
    ids = clip.tokenize(["a photo of a large red dog.", "cat"])
    whole = np.zeros((2, 24), np.int64)
    whole[:, : ids.shape[1]] = ids
    with torch.no_grad():
        image = model.encode_image(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
        text = model.encode_text(torch.tensor(whole)).numpy()
    np.testing.assert_allclose(encode_image(clip, images, normalize=False), image, atol=1e-5)
    np.testing.assert_allclose(encode_text(clip, jnp.asarray(ids), normalize=False), text, atol=1e-5)
    assert len(weights_hash(clip.params)) == 64
