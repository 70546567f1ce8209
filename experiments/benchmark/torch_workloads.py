"""The workloads of `experiments.benchmark` as the public PyTorch code of the field does them.

A CLIP as in github.com/openai/CLIP, clip/model.py, and around it what the code of CoOp, CoCoOp, PromptSRC, TPT and
learn2learn does: prompts are embeddings put between those of [SOS] and of the class name, all texts have the whole
context length, images are encoded in every step, CoCoOp's images and all tasks are run one by one in Python, and exact
meta-gradients come from ``create_graph=True``. Everything in float32.

PyTorch is imported by the functions: it is an extra that nobody needs but to compare.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np

from gram_jax.clip import ClipConfig, TextConfig, VisionConfig

from .gauge import Side, Values, plain
from .workload_inputs import Problem, Setup
from .workloads import CONFIDENT, DECAY, INNER_RATE, RATE, TEST_TIME_RATE

Tree = Any


def missing() -> str | None:
    """Why there is nothing to compare with, or None."""
    if importlib.util.find_spec("torch") is None:
        return 'PyTorch is not installed: pip install -e ".[torch]" adds its columns'
    import torch

    if jax.default_backend() != "cpu" and not torch.cuda.is_available():
        return f"this PyTorch runs on the CPU and JAX on {jax.default_backend()}: there is nothing to compare"
    return None


def graph_bytes(name: str, setup: Setup, problem: Problem) -> float:
    """A rough estimate of the memory that PyTorch takes for a step: weights, and what is kept for the backward pass."""
    config, sizes = setup.clip.config, setup.sizes
    weights = sum(leaf.size for leaf in jax.tree.leaves(setup.clip.params))

    def kept(tower: TextConfig | VisionConfig, sequences: int, tokens: int) -> float:
        return sequences * tokens * tower.layers * (16.0 * tower.width + 2.0 * tower.heads * tokens)

    support = problem.batches["support"]
    classes, images = support["classes"].eot.shape[-1], support["images"].shape[-4]
    pixels = sum(batch["images"].size for batch in problem.batches.values())
    patches = 1 + config.vision.num_patches + sizes.visual
    texts = kept(config.text, classes, config.text.context_length)
    visual = kept(config.vision, images, patches) if problem.tuner.needs_pixels else 0.0
    passing = kept(config.vision, images, patches) / config.vision.layers
    if name == "evaluation":
        return 4.0 * (weights + pixels + texts / config.text.layers + passing)
    copies = 1.0 + (3.0 * problem.steps if problem.gradient == "exact" else 1.0 if problem.steps else 0.0)
    return 4.0 * (weights + pixels + copies * (texts + visual) + passing)


def side(name: str, setup: Setup, problem: Problem) -> Side:
    """Builds a workload.

    Args:
      name: its name in `_workloads.WORKLOADS`.
      setup, problem: as `_workloads` makes them.

    Returns:
      The side, which arrives at the same numbers as this library's.
    """
    import torch

    device = torch.device("cpu" if jax.default_backend() == "cpu" else "cuda")
    model = make_clip(setup.clip.config, setup.clip.params, device)
    batches = {key: _batch(model, batch, device) for key, batch in problem.batches.items()}
    start = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), device=device), problem.prompt)

    def fresh(tree: Tree) -> Tree:
        return jax.tree.map(lambda leaf: leaf.clone().requires_grad_(), tree)

    steps = {"test_time": _test_time, "evaluation": _classify}
    step: Callable[..., Values] = _meta if problem.steps else steps.get(name, _tune)
    timed = plain(lambda: step(model, problem, fresh(start), batches))
    return timed._replace(count=lambda: _count(timed.run))


def make_clip(config: ClipConfig, params: Mapping[str, Any], device: Any) -> Any:
    """OpenAI's CLIP with these weights, frozen.

    Args:
      config: the sizes.
      params: the tree of `gram_jax.clip`.
      device: a `torch.device`.

    Returns:
      A `torch.nn.Module` with `encode_image(images, prompt)` and `encode_text(embeddings, end, deep)`.
    """
    import torch
    from torch import nn
    from transformers.activations import ACT2FN

    class Block(nn.Module):
        def __init__(self, tower: TextConfig | VisionConfig, mask: Any):
            super().__init__()
            self.attn = nn.MultiheadAttention(tower.width, tower.heads)
            self.ln_1, self.ln_2 = (nn.LayerNorm(tower.width, tower.norm_eps) for _ in range(2))
            self.c_fc, self.c_proj = nn.Linear(tower.width, tower.mlp_width), nn.Linear(tower.mlp_width, tower.width)
            self.act, self.mask = ACT2FN[tower.activation], mask

        def forward(self, x: Any) -> Any:
            y = self.ln_1(x)
            x = x + self.attn(y, y, y, need_weights=False, attn_mask=self.mask)[0]
            return x + self.c_proj(self.act(self.c_fc(self.ln_2(x))))

    class Clip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            text, vision = config.text, config.vision
            self.length = text.context_length
            mask = torch.full((self.length, self.length), float("-inf"), device=device).triu_(1)
            self.token_embedding = nn.Embedding(text.vocab_size, text.width)
            self.text_positions = nn.Parameter(torch.empty(self.length, text.width))
            self.text_blocks = nn.ModuleList(Block(text, mask) for _ in range(text.layers))
            self.ln_final = nn.LayerNorm(text.width, text.norm_eps)
            self.text_projection = nn.Parameter(torch.empty(text.width, config.embed_dim))
            self.conv1 = nn.Conv2d(vision.channels, vision.width, vision.patch_size, vision.patch_size, bias=False)
            self.class_embedding = nn.Parameter(torch.empty(vision.width))
            self.image_positions = nn.Parameter(torch.empty(1 + vision.num_patches, vision.width))
            self.ln_pre, self.ln_post = (nn.LayerNorm(vision.width, vision.norm_eps) for _ in range(2))
            self.image_blocks = nn.ModuleList(Block(vision, None) for _ in range(vision.layers))
            self.proj = nn.Parameter(torch.empty(vision.width, config.embed_dim))
            self.logit_scale = nn.Parameter(torch.empty(()))

        def encode_image(self, images: Any, prompt: Mapping[str, Any] | None = None) -> Any:
            """Features `[images, embed_dim]` of `[images, channels, size, size]`, normalized."""
            x = self.conv1(images).flatten(2).transpose(1, 2)
            first = self.class_embedding.expand(len(x), 1, -1)
            x = torch.cat([first, x], dim=1) + self.image_positions
            count = 0
            if prompt is not None:
                count = len(prompt["tokens"])
                x = torch.cat([x, prompt["tokens"].expand(len(x), -1, -1)], dim=1)
            x = self.ln_pre(x).transpose(0, 1)
            for layer, block in enumerate(self.image_blocks):
                if count and 0 < layer <= len(prompt["deep"]):
                    tokens = prompt["deep"][layer - 1][:, None].expand(-1, x.shape[1], -1)
                    x = torch.cat([x[:-count], tokens], dim=0)
                x = block(x)
            x = self.ln_post(x[0]) @ self.proj
            return x / x.norm(dim=-1, keepdim=True)

        def encode_text(self, embeddings: Any, end: Any, deep: Any = ()) -> Any:
            """Features `[classes, embed_dim]` of embedded prompts `[classes, length, width]`, normalized."""
            x = (embeddings + self.text_positions).transpose(0, 1)
            for layer, block in enumerate(self.text_blocks):
                if 0 < layer <= len(deep):
                    tokens = deep[layer - 1][:, None].expand(-1, x.shape[1], -1)
                    x = torch.cat([x[:1], tokens, x[1 + len(tokens) :]], dim=0)
                x = block(x)
            x = self.ln_final(x.transpose(0, 1))
            x = x[torch.arange(len(x), device=x.device), end] @ self.text_projection
            return x / x.norm(dim=-1, keepdim=True)

    model = Clip().to(device).eval().requires_grad_(False)
    _load(model, params)
    return model


def _load(model: Any, params: Mapping[str, Any]) -> None:
    """Copies the weights; kernels are transposed, those of queries, keys and values are stacked."""
    import torch

    def copy(target: Any, value: Any) -> None:
        target.copy_(torch.tensor(np.asarray(value, np.float32)).reshape(target.shape))

    def norm(target: Any, own: Mapping[str, Any]) -> None:
        copy(target.weight, own["scale"])
        copy(target.bias, own["bias"])

    def dense(target: Any, own: Mapping[str, Any]) -> None:
        copy(target.weight, np.asarray(own["kernel"]).T)
        copy(target.bias, own["bias"])

    def block(target: Any, own: Mapping[str, Any]) -> None:
        attention = [own["attention"][name] for name in ("query", "key", "value")]
        copy(target.attn.in_proj_weight, np.concatenate([np.asarray(part["kernel"]).T for part in attention]))
        copy(target.attn.in_proj_bias, np.concatenate([np.asarray(part["bias"]) for part in attention]))
        dense(target.attn.out_proj, own["attention"]["out"])
        dense(target.c_fc, own["mlp"]["up"])
        dense(target.c_proj, own["mlp"]["down"])
        norm(target.ln_1, own["norm_1"])
        norm(target.ln_2, own["norm_2"])

    text, vision = params["text"], params["vision"]
    for blocks, own in ((model.text_blocks, text["layers"]), (model.image_blocks, vision["layers"])):
        for number, target in enumerate(blocks):
            block(target, jax.tree.map(lambda leaf, number=number: leaf[number], own))
    copy(model.token_embedding.weight, text["token_embedding"])
    copy(model.text_positions, text["position_embedding"])
    norm(model.ln_final, text["final_norm"])
    copy(model.text_projection, text["projection"])
    width, channels, side, _ = model.conv1.weight.shape
    kernel = np.asarray(vision["patch_embedding"]).reshape(side, side, channels, width)
    copy(model.conv1.weight, np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
    copy(model.class_embedding, vision["class_embedding"])
    copy(model.image_positions, vision["position_embedding"])
    norm(model.ln_pre, vision["pre_norm"])
    norm(model.ln_post, vision["post_norm"])
    copy(model.proj, vision["projection"])
    copy(model.logit_scale, params["logit_scale"])


def _batch(model: Any, batch: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """The batch in PyTorch's layout; prompts are kept as the embeddings in front of and behind the context."""
    import torch

    classes = jax.tree.map(np.asarray, batch["classes"])
    images = np.ascontiguousarray(np.moveaxis(np.asarray(batch["images"]), -1, -3))
    embed = model.token_embedding
    return {
        "prefix": embed(torch.tensor(classes.token_ids[..., :1], dtype=torch.long, device=device)),
        "suffix": embed(torch.tensor(classes.tail_ids, dtype=torch.long, device=device)),
        "end": torch.tensor(classes.tail_eot, dtype=torch.long, device=device),
        "images": torch.tensor(images, device=device),
        "labels": torch.tensor(np.asarray(batch["labels"]), dtype=torch.long, device=device),
    }


def _texts(model: Any, context: Any, batch: Mapping[str, Any], deep: Any = ()) -> Any:
    """Features of the classes under a context, filled up to the whole length."""
    import torch

    prefix, suffix = batch["prefix"], batch["suffix"]
    parts = [prefix, context.expand(len(prefix), -1, -1), suffix]
    parts.append(suffix[:, -1:].expand(-1, model.length - sum(part.shape[1] for part in parts), -1))
    return model.encode_text(torch.cat(parts, dim=1), 1 + len(context) + batch["end"], deep)


def _logits(model: Any, problem: Problem, prompt: Tree, batch: Mapping[str, Any]) -> Any:
    """Logits `[images, classes]` under a prompt of CoOp, CoCoOp or IVLP."""
    import torch

    scale, images = model.logit_scale.exp(), batch["images"]
    if problem.tuner.name == "ivlp":
        features = model.encode_image(images, {"deep": ()} | prompt["visual"])
        texts = _texts(model, prompt["text"]["context"], batch, prompt["text"].get("deep", ()))
        return scale * features @ texts.t()
    features = model.encode_image(images)
    if problem.tuner.name == "coop":
        return scale * features @ _texts(model, prompt["context"], batch).t()
    hidden, out = prompt["network"]["hidden"], prompt["network"]["out"]
    shift = torch.relu(features @ hidden["kernel"] + hidden["bias"]) @ out["kernel"] + out["bias"]
    scores = []
    for feature, own in zip(features, shift, strict=True):
        scores.append(scale * feature @ _texts(model, prompt["context"] + own, batch).t())
    return torch.stack(scores)


def _loss(model: Any, problem: Problem, prompt: Tree, batch: Mapping[str, Any]) -> Any:
    from torch.nn.functional import cross_entropy

    return cross_entropy(_logits(model, problem, prompt, batch), batch["labels"])


def _norm(tree: Tree) -> float:
    return float(sum((leaf.grad**2).sum() for leaf in jax.tree.leaves(tree)) ** 0.5)


def _tune(model: Any, problem: Problem, prompt: Tree, batches: Mapping[str, Any]) -> Values:
    """Loss, gradient and a step of SGD."""
    import torch

    optimizer = torch.optim.SGD(jax.tree.leaves(prompt), RATE)
    loss = _loss(model, problem, prompt, batches["support"])
    loss.backward()
    optimizer.step()
    return loss.item(), _norm(prompt)


def _classify(model: Any, problem: Problem, prompt: Tree, batches: Mapping[str, Any]) -> Values:
    import torch

    with torch.no_grad():
        return (float(_loss(model, problem, prompt, batches["support"])),)


def _test_time(model: Any, problem: Problem, prompt: Tree, batches: Mapping[str, Any]) -> Values:
    """TPT: entropy of the mean over confident views, a step of AdamW, the first view again."""
    import torch

    batch = batches["support"]
    optimizer = torch.optim.AdamW(jax.tree.leaves(prompt), TEST_TIME_RATE, weight_decay=DECAY)
    logs = _logits(model, problem, prompt, batch).log_softmax(dim=1)
    confident = torch.argsort(-(logs * logs.exp()).sum(1))[: max(1, int(CONFIDENT * len(logs)))]
    mean = logs[confident].logsumexp(dim=0) - np.log(len(confident))
    loss = -(mean.exp() * mean).sum()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        scores = _logits(model, problem, prompt, batch | {"images": batch["images"][:1]})
    return loss.item(), float(scores.softmax(dim=1).max())


def _meta(model: Any, problem: Problem, prompt: Tree, batches: Mapping[str, Any]) -> Values:
    """A meta step of MAML with the affine regulator, task by task."""
    import torch

    exact, losses = problem.gradient == "exact", []
    phi = jax.tree.map(lambda leaf: [leaf.new_zeros(leaf.shape[-1], requires_grad=True) for _ in range(2)], prompt)
    tasks = len(batches["support"]["labels"])
    with _twice_differentiable() if exact else nullcontext():
        for task in range(tasks):
            support, same, cross = ({k: v[task] for k, v in batches[name].items()} for name in batches)
            theta = prompt
            for _ in range(problem.steps):
                at = theta if exact else jax.tree.map(lambda leaf: leaf.detach().requires_grad_(), theta)
                loss = _loss(model, problem, at, support)
                grads = torch.autograd.grad(loss, jax.tree.leaves(at), create_graph=exact)
                grads = jax.tree.unflatten(jax.tree.structure(at), grads)
                grads = jax.tree.map(lambda grad, own: _regulate(own, grad), grads, phi)
                theta = jax.tree.map(lambda leaf, grad: leaf - INNER_RATE * grad, theta, grads)
            loss = _loss(model, problem, theta, same) + _loss(model, problem, theta, cross)
            (loss / tasks).backward()
            losses.append(loss.item())
    found = float(np.mean(losses)), _norm(prompt), _norm(phi)
    torch.optim.SGD(jax.tree.leaves((prompt, phi)), RATE).step()
    return found


def _regulate(phi: list[Any], grad: Any) -> Any:
    """(1 + s) g + rms(g) b, the root mean square over tokens and channels."""
    scale, shift = phi
    return (1 + scale) * grad + (grad**2).mean(dim=(-2, -1), keepdim=True).sqrt() * shift


def _twice_differentiable() -> AbstractContextManager:
    """PyTorch's fused attention has no second derivative."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)


def _count(run: Callable[[], Any]) -> float:
    """Operations of the matrix products of a run."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    # Its own table lacks the fused attention of CPUs.
    own = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
            lambda query, key, value, *_, **__: _attention(query, key, value, 1)
        ),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda _, query, key, value, *__, **___: _attention(query, key, value, 2.5)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        run()
    return float(counter.get_total_flops())


def _attention(query: Any, key: Any, value: Any, times: float) -> int:
    """Of the two products of an attention; its backward pass has five."""
    batch, heads, queries, width = query
    return int(times * 2 * batch * heads * queries * key[2] * (width + value[-1]))
