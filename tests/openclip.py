"""OpenCLIP and OpenAI's CLIP, the references of tests, also where the packages that they import are not installed."""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from gram_jax.testing import tiny_tokenizer

_TORCHVISION = (
    "torchvision",
    *(f"torchvision.{part}" for part in ("ops", "ops.misc", "transforms", "transforms.functional")),
)


# Two configurations of tiny models: the usual one, and one with unusual sizes in every place.
TEXT = {"context_length": 24, "vocab_size": 632, "width": 64, "heads": 1, "layers": 2}
VISION = {"image_size": 12, "patch_size": 4, "layers": 3, "width": 64}
PLAIN = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT}
ODD = {
    "embed_dim": 18,
    "vision_cfg": VISION | {"width": 48, "head_width": 16, "mlp_ratio": 4.3637, "image_size": [14, 14]},
    "text_cfg": TEXT | {"width": 30, "heads": 5, "mlp_ratio": 2.5},
    "custom_text": True,
}


@functools.cache
def open_clip() -> Any:
    """Returns OpenCLIP's package; skips the test if it is not installed.

    Its models need nothing of torchvision and ftfy; stand-ins satisfy the imports of what is not installed.
    """
    pytest.importorskip("torch", reason="OpenCLIP is written in it")
    from transformers import CLIPModel  # noqa: F401  # looks for torchvision once, which must be before the stand-ins

    absent = [*(_TORCHVISION if _is_absent("torchvision") else ()), *(["ftfy"] if _is_absent("ftfy") else ())]
    stand_ins = {name: mock.MagicMock(fix_text=lambda text: text) for name in absent}
    for name, module in stand_ins.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules.update(stand_ins)
    try:
        return pytest.importorskip("open_clip", reason="the reference of its own format")
    finally:
        for name in stand_ins:
            del sys.modules[name]


@functools.cache
def openai_clip() -> Any:
    """Returns the module with OpenAI's model, without the rest of its package; skips the test if it is absent."""
    pytest.importorskip("torch", reason="OpenAI's CLIP is written in it")
    package = importlib.util.find_spec("clip")
    if package is None or package.submodule_search_locations is None:
        pytest.skip("OpenAI's package clip is not installed")
    path = f"{package.submodule_search_locations[0]}/model.py"
    spec = importlib.util.spec_from_file_location("openai_clip_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _is_absent(name: str) -> bool:
    return importlib.util.find_spec(name) is None


def randomize(model: Any) -> Any:
    """Fills a model with random weights: the usual zero biases and unit norms would hide mistakes."""
    import torch

    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "ln_" in name and name.endswith("weight"):
                weight.copy_(1 + 0.2 * noise)
            elif weight.ndim < 2 or "embedding" in name:
                weight.copy_(0.3 * noise)
            else:
                fan_in = weight.shape[0] if name.endswith("proj") else weight[0].numel()
                weight.copy_(noise * fan_in**-0.5)
    return model.eval()


def build(config: dict[str, Any]) -> Any:
    """Returns OpenCLIP's model of a configuration, with random weights."""
    open_clip()
    from open_clip.model import CLIP, CustomTextCLIP

    settings = {key: value for key, value in config.items() if key != "custom_text"}
    return randomize((CustomTextCLIP if config.get("custom_text") else CLIP)(**settings))


def write_folder(
    folder: Path, config: dict[str, Any], model: Any, weights: str = "open_clip_model.safetensors", **preprocess: Any
) -> Path:
    """Writes what OpenCLIP pushes to the hub, with the tokenizer of tests."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / weights) if weights.endswith("safetensors") else torch.save(state, folder / weights)
    tiny_tokenizer().save(folder)
    return folder
