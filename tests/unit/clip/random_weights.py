"""Random weights for the models of transformers, the references of the backbones."""

from __future__ import annotations

from typing import Any


def randomize(model: Any, seed: int = 3) -> Any:
    """Gives a model random weights only: the usual zero biases and unit norms would hide mistakes."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name == "logit_scale":
                weight.copy_(2 + 0.1 * noise)
            elif "norm" in name and name.endswith("weight"):
                weight.copy_(1 + 0.2 * noise)
            elif ("embedding" in name and "patch" not in name) or "probe" in name:
                weight.copy_(0.5 * noise)
            else:  # kernels preserve the scale of activations; biases are of the same order
                weight.copy_(noise * (weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.3))
    return model.eval()
