"""The workloads as public PyTorch code of the field computes them.

The model is a CLIP as in github.com/openai/CLIP, clip/model.py. The steps follow the code of CoOp, CoCoOp, PromptSRC,
TPT and learn2learn: prompts are embeddings between those of [SOS] and of the class name, all texts have the full
context length, images are encoded in every step, CoCoOp's images and all tasks run one by one in Python, and exact
meta-gradients come from `create_graph=True`. Everything is float32.

A second side is PyTorch with what a careful user would add without rewriting the model: image features of text-only
tuners are computed once, as ours are, and texts are cut to the longest one.

PyTorch is an optional package; only the functions import it.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np

from gram_jax.clip import ClipConfig, TextConfig, VisionConfig

from .inputs import CONFIDENT, DECAY, INNER_RATE, RATE, TEST_TIME_RATE, Problem, Setup
from .sides import Side, Values, plain_side

Tree = Any


def missing() -> str | None:
    """Returns the reason why there is no comparison, or None."""
    if importlib.util.find_spec("torch") is None:
        return 'PyTorch is not installed; pip install -e ".[torch]" adds its columns'
    import torch

    if jax.default_backend() != "cpu" and not torch.cuda.is_available():
        return f"this PyTorch runs on the CPU and JAX on {jax.default_backend()}; there is no comparison"
    return None


def graph_bytes(name: str, setup: Setup, problem: Problem, frugal: bool = False) -> float:
    """Returns a rough estimate of PyTorch's memory for a step: weights, and activations for the backward pass."""
    config, sizes = setup.clip.config, setup.sizes
    weights = sum(leaf.size for leaf in jax.tree.leaves(setup.clip.params))

    def kept(tower: TextConfig | VisionConfig, sequences: int, tokens: int) -> float:
        return sequences * tokens * tower.layers * (16.0 * tower.width + 2.0 * tower.heads * tokens)

    support = problem.batches["support"]
    classes, images = support["classes"].eot.shape[-1], support["images"].shape[-4]
    pixels = sum(batch["images"].size for batch in problem.batches.values())
    patches = 1 + config.vision.num_patches + sizes.visual
    tail = support["classes"].tail_ids.shape[-1]
    texts = kept(config.text, classes, 1 + sizes.context + tail if frugal else config.text.context_length)
    visual = kept(config.vision, images, patches) if problem.tuner.needs_pixels else 0.0
    passing = kept(config.vision, images, patches) / config.vision.layers
    if name == "evaluation":
        return 4.0 * (weights + pixels + texts / config.text.layers + passing)
    copies = 1.0 + (3.0 * problem.steps if problem.gradient == "exact" else 1.0 if problem.steps else 0.0)
    return 4.0 * (weights + pixels + copies * (texts + visual) + passing)


def side(name: str, setup: Setup, problem: Problem, frugal: bool = False) -> Side:
    """Builds PyTorch's side of a workload, which computes the same values as this library's.

    `frugal` cuts texts to the longest, and computes image features once if the tuner does not change them.
    """
    import torch

    device = torch.device("cpu" if jax.default_backend() == "cpu" else "cuda")
    model = TorchClip(setup.clip.config, setup.clip.params, device, frugal)
    batches = {key: model.batch(batch) for key, batch in problem.batches.items()}
    if frugal and not problem.tuner.needs_pixels and name not in ("test_time", "evaluation"):
        batches = {key: batch | {"images": model.frozen_features(batch["images"])} for key, batch in batches.items()}
    start = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), device=device), problem.prompt)

    fresh = functools.partial(jax.tree.map, lambda leaf: leaf.clone().requires_grad_())
    steps = {"test_time": _test_time, "evaluation": _classify}
    step: Callable[..., Values] = _meta if problem.steps else steps.get(name, _tune)
    timed = plain_side(lambda: step(model, problem, fresh(start), batches))
    return timed._replace(count=lambda: _count(timed.run))


class TorchClip:
    """OpenAI's CLIP with the weights of a tree of `gram_jax.clip`, frozen, and the logits of prompted classes."""

    def __init__(self, config: ClipConfig, params: Mapping[str, Any], device: Any, frugal: bool = False):
        import torch
        from torch.nn import functional
        from transformers.activations import ACT2FN

        def convert(tree: Mapping[str, Any]) -> dict[str, Any]:
            """Stacks the kernels of queries, keys and values, as PyTorch does."""
            if "query" in tree:
                parts = [tree[name] for name in ("query", "key", "value")]
                stacked = {name: np.concatenate([part[name] for part in parts], -1) for name in ("kernel", "bias")}
                tree = {"in": stacked, "out": tree["out"]}
            return {key: convert(value) if isinstance(value, Mapping) else value for key, value in tree.items()}

        def tensor(path: Any, leaf: Any) -> Any:
            """Transposes kernels, as PyTorch does."""
            leaf = np.swapaxes(leaf, -1, -2) if path[-1].key == "kernel" else leaf
            return torch.tensor(np.array(leaf, np.float32, order="C"), device=device)

        self.torch, self.functional, self.activations = torch, functional, ACT2FN
        self.config, self.device, self.frugal = config, device, frugal
        self.params = jax.tree_util.tree_map_with_path(tensor, convert(jax.tree.map(np.asarray, dict(params))))
        for name, tower in (("text", config.text), ("vision", config.vision)):
            stacked = self.params[name]["layers"]
            self.params[name]["layers"] = [jax.tree.map(lambda x, n=n: x[n], stacked) for n in range(tower.layers)]
        side, channels = config.vision.patch_size, config.vision.channels
        patches = self.params["vision"]["patch_embedding"].reshape(side, side, channels, config.vision.width)
        self.convolution = patches.permute(3, 2, 0, 1).contiguous()
        length = config.text.context_length
        self.mask = torch.full((length, length), float("-inf"), device=device).triu_(1)

    def encode_image(self, images: Any, prompt: Mapping[str, Any] | None = None) -> Any:
        """Returns normalized features `[images, embed_dim]` of `[images, channels, size, size]`."""
        cat, config, params = self.torch.cat, self.config.vision, self.params["vision"]
        x = self.functional.conv2d(images, self.convolution, stride=config.patch_size).flatten(2).transpose(1, 2)
        x = cat([params["class_embedding"].expand(len(x), 1, -1), x], dim=1) + params["position_embedding"]
        if prompt:
            x = cat([x, prompt["tokens"].expand(len(x), -1, -1)], dim=1)
        deep = prompt.get("deep", ()) if prompt else ()
        x = self._norm(x, params["pre_norm"], config).transpose(0, 1)
        x = self._layers(x, params["layers"], config, None, deep, lambda x, new: cat([x[: -len(new)], new]))
        return _unit(self._norm(x[0], params["post_norm"], config) @ params["projection"])

    def frozen_features(self, images: Any) -> Any:
        """Returns features `[..., embed_dim]` of `[..., channels, size, size]`, without a gradient."""
        with self.torch.no_grad():
            parts = [self.encode_image(part) for part in images.flatten(0, -4).split(32)]
        return self.torch.cat(parts).unflatten(0, images.shape[:-3])

    def encode_text(self, embeddings: Any, end: Any, deep: Any = ()) -> Any:
        """Returns normalized features `[classes, embed_dim]` of embedded prompts `[classes, length, width]`."""
        cat, config, params = self.torch.cat, self.config.text, self.params["text"]
        length = embeddings.shape[1]
        x = (embeddings + params["position_embedding"][:length]).transpose(0, 1)
        replace = lambda x, new: cat([x[:1], new, x[1 + len(new) :]])  # noqa: E731
        x = self._layers(x, params["layers"], config, self.mask[:length, :length], deep, replace)
        x = self._norm(x.transpose(0, 1), params["final_norm"], config)
        return _unit(x[self.torch.arange(len(x), device=x.device), end] @ params["projection"])

    def _layers(
        self, x: Any, layers: Any, config: TextConfig | VisionConfig, mask: Any, deep: Any, replace: Callable[..., Any]
    ) -> Any:
        """Runs the layers on `[tokens, batch, width]`; deep prompt i replaces prompt tokens before layer 1 + i."""
        for number, layer in enumerate(layers):
            if 0 < number <= len(deep):
                x = replace(x, deep[number - 1][:, None].expand(-1, x.shape[1], -1))
            into, out, mlp = layer["attention"]["in"], layer["attention"]["out"], layer["mlp"]
            y = self._norm(x, layer["norm_1"], config)
            arguments = (y, y, y, config.width, config.heads, into["kernel"], into["bias"], None, None, False, 0.0)
            settings = {"training": False, "need_weights": False, "attn_mask": mask}
            attend = self.functional.multi_head_attention_forward
            x = x + attend(*arguments, out["kernel"], out["bias"], **settings)[0]
            hidden = self._dense(self._norm(x, layer["norm_2"], config), mlp["up"])
            x = x + self._dense(self.activations[config.activation](hidden), mlp["down"])
        return x

    def _dense(self, x: Any, params: Mapping[str, Any]) -> Any:
        return self.functional.linear(x, params["kernel"], params["bias"])

    def _norm(self, x: Any, params: Mapping[str, Any], config: TextConfig | VisionConfig) -> Any:
        return self.functional.layer_norm(x, x.shape[-1:], params["scale"], params["bias"], config.norm_eps)

    def batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a batch in PyTorch's layout; texts are stored as the embeddings before and after the context."""
        classes, embedding = batch["classes"], self.params["text"]["token_embedding"]
        images = np.ascontiguousarray(np.moveaxis(np.asarray(batch["images"]), -1, -3))

        def integers(values: Any) -> Any:
            return self.torch.tensor(np.asarray(values), dtype=self.torch.long, device=self.device)

        return {
            "prefix": embedding[integers(classes.token_ids[..., :1])],
            "suffix": embedding[integers(classes.tail_ids)],
            "end": integers(classes.tail_eot),
            "images": self.torch.tensor(images, device=self.device),
            "labels": integers(batch["labels"]),
        }

    def _texts(self, context: Any, batch: Mapping[str, Any], deep: Any = ()) -> Any:
        """Returns the features of classes under a context; texts are padded to the full length, unless frugal."""
        prefix, suffix = batch["prefix"], batch["suffix"]
        full = 0 if self.frugal else self.config.text.context_length
        rest = max(0, full - prefix.shape[1] - len(context) - suffix.shape[1])
        parts = [prefix, context.expand(len(prefix), -1, -1), suffix, suffix[:, -1:].expand(-1, rest, -1)]
        return self.encode_text(self.torch.cat(parts, dim=1), 1 + len(context) + batch["end"], deep)

    def logits(self, tuner: str, prompt: Tree, batch: Mapping[str, Any]) -> Any:
        """Returns logits `[images, classes]` under a prompt of CoOp, CoCoOp or IVLP."""
        scale, images = self.params["logit_scale"].exp(), batch["images"]
        if tuner == "ivlp":
            texts = self._texts(prompt["text"]["context"], batch, prompt["text"].get("deep", ()))
            return scale * self.encode_image(images, prompt["visual"]) @ texts.t()
        features = images if images.ndim == 2 else self.encode_image(images)
        if tuner == "coop":
            return scale * features @ self._texts(prompt["context"], batch).t()
        hidden, out = prompt["network"]["hidden"], prompt["network"]["out"]
        shifts = (features @ hidden["kernel"] + hidden["bias"]).relu() @ out["kernel"] + out["bias"]
        texts = (self._texts(prompt["context"] + shift, batch) for shift in shifts)
        return self.torch.stack([scale * one @ text.t() for one, text in zip(features, texts, strict=True)])

    def loss(self, tuner: str, prompt: Tree, batch: Mapping[str, Any]) -> Any:
        """Returns the cross-entropy of a batch."""
        return self.functional.cross_entropy(self.logits(tuner, prompt, batch), batch["labels"])


def _unit(x: Any) -> Any:
    return x / x.norm(dim=-1, keepdim=True)


def _gradient_norm(tree: Tree) -> float:
    return float(sum((leaf.grad**2).sum() for leaf in jax.tree.leaves(tree)) ** 0.5)


def _tune(model: TorchClip, problem: Problem, prompt: Tree, batches: Mapping[str, Any]) -> Values:
    """Computes loss, gradient and a step of SGD."""
    optimizer = model.torch.optim.SGD(jax.tree.leaves(prompt), RATE)
    loss = model.loss(problem.tuner.name, prompt, batches["support"])
    loss.backward()
    optimizer.step()
    return loss.item(), _gradient_norm(prompt)


def _classify(model: TorchClip, problem: Problem, prompt: Tree, batches: Mapping[str, Any]) -> Values:
    with model.torch.no_grad():
        return (float(model.loss(problem.tuner.name, prompt, batches["support"])),)


def _test_time(model: TorchClip, problem: Problem, prompt: Tree, batches: Mapping[str, Any]) -> Values:
    """Computes TPT: the entropy of the mean over confident views, a step of AdamW, the first view again."""
    torch, batch, tuner = model.torch, batches["support"], problem.tuner.name
    optimizer = torch.optim.AdamW(jax.tree.leaves(prompt), TEST_TIME_RATE, weight_decay=DECAY)
    if model.frugal:  # the views are encoded once instead of twice
        batch = batch | {"images": model.frozen_features(batch["images"])}
    logs = model.logits(tuner, prompt, batch).log_softmax(dim=1)
    confident = torch.argsort(-(logs * logs.exp()).sum(1))[: max(1, int(CONFIDENT * len(logs)))]
    mean = logs[confident].logsumexp(dim=0) - np.log(len(confident))
    loss = -(mean.exp() * mean).sum()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        scores = model.logits(tuner, prompt, batch | {"images": batch["images"][:1]})
    return loss.item(), float(scores.softmax(dim=1).max())


def _meta(model: TorchClip, problem: Problem, prompt: Tree, batches: Mapping[str, Any]) -> Values:
    """Computes a meta step of MAML with the affine regulator, task by task."""
    torch, tuner = model.torch, problem.tuner.name
    exact, losses, tasks = problem.gradient == "exact", [], len(batches["support"]["labels"])
    phi = jax.tree.map(lambda leaf: [leaf.new_zeros(leaf.shape[-1], requires_grad=True) for _ in range(2)], prompt)
    # PyTorch's fused attention has no second derivative.
    attention = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH) if exact else nullcontext()
    with attention:
        for task in range(tasks):
            support, same, cross = ({k: v[task] for k, v in batches[name].items()} for name in batches)
            theta = prompt
            for _ in range(problem.steps):
                at = theta if exact else jax.tree.map(lambda leaf: leaf.detach().requires_grad_(), theta)
                loss = model.loss(tuner, at, support)
                grads = torch.autograd.grad(loss, jax.tree.leaves(at), create_graph=exact)
                grads = jax.tree.map(_regulate, jax.tree.unflatten(jax.tree.structure(at), grads), phi)
                theta = jax.tree.map(lambda leaf, grad: leaf - INNER_RATE * grad, theta, grads)
            loss = model.loss(tuner, theta, same) + model.loss(tuner, theta, cross)
            (loss / tasks).backward()
            losses.append(loss.item())
    values = float(np.mean(losses)), _gradient_norm(prompt), _gradient_norm(phi)
    torch.optim.SGD(jax.tree.leaves((prompt, phi)), RATE).step()
    return values


def _regulate(grad: Any, phi: list[Any]) -> Any:
    """Returns (1 + s) g + rms(g) b, with the root mean square over tokens and channels."""
    scale, shift = phi
    return (1 + scale) * grad + (grad**2).mean(dim=(-2, -1), keepdim=True).sqrt() * shift


def _count(run: Callable[[], Any]) -> float:
    """Counts the operations of the matrix products of a run."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    # PyTorch's own table lacks the fused attention of CPUs: two products forward, five backward.
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    own = {
        attention: lambda *shapes, **_: _attention_flops(*shapes[:3], 1),
        backward: lambda *shapes, **_: _attention_flops(*shapes[1:4], 2.5),
    }
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        run()
    return float(counter.get_total_flops())


def _attention_flops(query: Any, key: Any, value: Any, times: float) -> int:
    batch, heads, queries, width = query
    return int(times * 2 * batch * heads * queries * key[2] * (width + value[-1]))
