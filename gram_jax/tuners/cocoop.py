"""CoCoOp: a context that every image shifts."""

from __future__ import annotations

import functools

import jax
from flax.core import FrozenDict

from gram_jax.clip import Classes, Clip, TextPrompt, encode_classes
from gram_jax.errors import require_int
from gram_jax.tuners.base import (
    TEXT,
    Outputs,
    Prompt,
    Tuner,
    check_names,
    check_room,
    context_vectors,
    frozen_image_features,
    make_outputs,
    words_setting,
)
from gram_jax.tuners.networks import dense, dense_init


def cocoop(
    num_tokens: int | None = None, init_text: str | None = "a photo of a", hidden: int | None = None, chunk: int = 4
) -> Tuner:
    """Returns the tuner of conditional context optimization: a network of the image feature shifts the whole context.

    With context v_1, ..., v_n, E the frozen token embedding and f_b the normalized feature of image b,

        h(f)   = W_2 relu(W_1 f + a_1) + a_2
        t_bc   = text([SOS] v_1 + h(f_b) ... v_n + h(f_b) E(name_c) . [EOS]),
        logits[b, c] = exp(logit_scale) * <f_b, t_bc>.

    The text transformer runs for every image, `chunk` images at a time, and once more in the backward pass, so that
    memory grows with the chunk and not with the number of images. The image side is frozen: `images` may be image
    features. The prompt is `{"context": [n, width], "network": {"hidden": {"kernel", "bias"}, "out": {"kernel",
    "bias"}}}`; the network is initialized like PyTorch's dense layers.

    Args:
      num_tokens: n. None: the number of tokens of `init_text`, or 4 without it.
      init_text: words whose token embeddings initialize the context. None: N(0, 0.02^2).
      hidden: hidden units of the network; None: a sixteenth of the clip's `embed_dim`.
      chunk: images whose texts run together; fewer need less memory, more are faster.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(), cocoop(hidden=8)
      >>> classes = clip.class_tokens(["cat", "dog", "bird"])
      >>> prompt = tuner.init(jax.random.key(0), clip, classes)
      >>> tuner.apply(prompt, clip, classes, jax.numpy.ones((2, 16)) / 4).text_features.shape
      (2, 3, 16)

    Reference:
      "Conditional Prompt Learning for Vision-Language Models", section 3.2.
    """
    words = words_setting("num_tokens", num_tokens, init_text)
    if hidden is not None:
        require_int("hidden", hidden)
    require_int("chunk", chunk)
    settings = {"num_tokens": words.count, "init_text": init_text, "hidden": hidden, "chunk": chunk}

    def init(key: jax.Array, clip: Clip, classes: Classes | None) -> Prompt:
        context_key, hidden_key, out_key = jax.random.split(key, 3)
        context = context_vectors(words, context_key, clip)
        check_room(clip, context, classes)
        embed_dim = clip.config.embed_dim
        units = max(1, embed_dim // 16) if hidden is None else hidden
        out = dense_init(out_key, units, clip.config.text.width)
        return {"context": context, "network": {"hidden": dense_init(hidden_key, embed_dim, units), "out": out}}

    def apply(prompt: Prompt, clip: Clip, classes: Classes, images: jax.Array) -> Outputs:
        check_names(classes)
        features, network = frozen_image_features(clip, images), prompt["network"]
        shift = dense(network["out"], jax.nn.relu(dense(network["hidden"], features)))  # [images, width]
        contexts = prompt["context"] + shift[:, None]  # [images, n, width]
        return make_outputs(clip, features, _text_features(clip, classes, contexts, chunk=chunk))

    return Tuner("cocoop", FrozenDict(settings), init, apply, needs_pixels=False, needs_names=True, changes=TEXT)


@functools.partial(jax.jit, static_argnames="chunk")
def _text_features(clip: Clip, classes: Classes, contexts: jax.Array, *, chunk: int) -> jax.Array:
    """Returns features `[images, classes, embed_dim]` under contexts `[images, n, width]`, chunk by chunk."""

    def one(context: jax.Array) -> jax.Array:
        return encode_classes(clip, classes, TextPrompt(context))

    count = contexts.shape[0]
    if not isinstance(count, int) or count <= chunk:  # an exported program has an open number of images
        return jax.vmap(one)(contexts)
    # Recomputed in the backward pass. Inside a scan XLA cannot merge the two, so prevent_cse is not needed.
    return jax.lax.map(jax.checkpoint(one, prevent_cse=False), contexts, batch_size=chunk)
