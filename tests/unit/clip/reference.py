"""CLIP and its prompts restated in plain NumPy, one sequence, one head and one query at a time, in float64.

Written from the description of the models, not from the library: no batching, no scan, no mask, no shared prefix.
"""

from __future__ import annotations

import math

import jax
import numpy as np


def to_numpy(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def unit(x):
    return x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True))


def activation(name, x):
    if name == "quick_gelu":
        return x / (1.0 + np.exp(-1.702 * x))
    if name == "gelu":
        return x * 0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))
    if name in ("gelu_new", "gelu_pytorch_tanh"):
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    raise AssertionError(name)


def norm(x, params, eps):
    centered = x - x.mean(axis=-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + eps) * params["scale"] + params["bias"]


def dense(x, params):
    return x @ params["kernel"] + params["bias"]


def attention(x, params, heads, causal):
    """Returns the self-attention of one sequence `[tokens, width]`."""
    query, key, value = (dense(x, params[name]) for name in ("query", "key", "value"))
    size = x.shape[1] // heads
    mixed = np.zeros_like(x)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(x)):
            seen = i + 1 if causal else len(x)
            scores = key[:seen, part] @ query[i, part] / math.sqrt(size)
            weights = np.exp(scores - scores.max())
            mixed[i, part] = weights @ value[:seen, part] / weights.sum()
    return dense(mixed, params["out"])


def layer(x, params, config, causal):
    x = x + attention(norm(x, params["norm_1"], config.norm_eps), params["attention"], config.heads, causal)
    hidden = activation(config.activation, dense(norm(x, params["norm_2"], config.norm_eps), params["mlp"]["up"]))
    return x + dense(hidden, params["mlp"]["down"])


def layer_params(params, index):
    return jax.tree.map(lambda leaf: leaf[index], params["layers"])


def text_feature(params, config, rows, end, replace=None):
    """Returns the feature of one text from its token embeddings; `replace` maps a layer to {position: vector}."""
    x = np.stack(rows) + params["position_embedding"][: len(rows)]
    for index in range(config.layers):
        for position, vector in (replace or {}).get(index, {}).items():
            x[position] = vector
        x = layer(x, layer_params(params, index), config, causal=True)
    return norm(x[end], params["final_norm"], config.norm_eps) @ params["projection"]


def plain_text_feature(params, config, token_ids):
    """Returns the feature of one row of token ids, read by the end-of-text rule."""
    token_ids = [int(token) for token in token_ids]
    end = token_ids.index(max(token_ids)) if config.eos_token_id == 2 else token_ids.index(config.eos_token_id)
    return text_feature(params, config, [params["token_embedding"][token] for token in token_ids], end)


def class_feature(params, config, start, name, rest, context, class_position, deep=None):
    """Returns the feature of one class from token ids of [SOS], the name and the rest, and its context `[n, width]`.

    `deep` maps a layer to the vectors `[m, width]` that replace the first m context tokens.
    """
    embedding = params["token_embedding"]
    name, rest = [embedding[token] for token in name], [embedding[token] for token in rest]
    n = len(context)
    before = {"end": n, "middle": n // 2, "front": 0}[class_position]
    rows = [embedding[start], *context[:before], *name, *context[before:], *rest]
    slots = [1 + i if i < before else 1 + i + len(name) for i in range(n)]
    replace = {index: dict(zip(slots, vectors, strict=False)) for index, vectors in (deep or {}).items()}
    return text_feature(params, config, rows, len(rows) - 1, replace)


def image_feature(params, config, image, tokens=None, placement="before_norm", deep=None, made=None):
    """Returns the feature of one image `[size, size, channels]` under prompt tokens `[n, width]`.

    `deep` maps a layer to its prompt tokens; `made` maps a layer to a function that makes them from the other tokens.
    """
    side = config.patch_size
    body = [params["class_embedding"]]
    for row in range(image.shape[0] // side):
        for column in range(image.shape[1] // side):
            patch = image[row * side : (row + 1) * side, column * side : (column + 1) * side]
            body.append(patch.reshape(-1) @ params["patch_embedding"])
    body = np.stack(body) + params["position_embedding"]
    body = norm(body, params["pre_norm"], config.norm_eps)
    prompt = np.zeros((0, config.width)) if tokens is None else tokens
    if tokens is not None and placement == "before_norm":
        prompt = norm(prompt, params["pre_norm"], config.norm_eps)
    for index in range(config.layers):
        if made and index in made:
            prompt = made[index](body)
        elif deep and index in deep:
            prompt = deep[index]
        count = len(prompt)
        parts = [body[:1], prompt, body[1:]] if placement == "after_class" else [body, prompt]
        x = layer(np.concatenate(parts), layer_params(params, index), config, causal=False)
        if placement == "after_class":
            body, prompt = np.concatenate([x[:1], x[1 + count :]]), x[1 : 1 + count]
        else:
            body, prompt = x[: len(x) - count], x[len(x) - count :]
    return norm(body[0], params["post_norm"], config.norm_eps) @ params["projection"]
