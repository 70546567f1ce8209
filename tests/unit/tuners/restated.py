"""Reference features under prompts in NumPy, one class and one image at a time; shapes of the published backbone."""

from __future__ import annotations

import jax
import numpy as np

from gram_jax.clip import Clip, ClipConfig, TextConfig, VisionConfig, init_params
from gram_jax.testing import tiny_tokenizer
from tests.unit.clip import reference


def class_features(clip, classes, contexts, position, deep=None):
    """Returns normalized features of all classes, with contexts `[n, width]` per class."""
    return reference.unit(raw_class_features(clip, classes, contexts, position, deep))


def raw_class_features(clip, classes, contexts, position, deep=None):
    """Returns features of all classes, one class at a time."""
    params, features = reference.to_numpy(clip.params["text"]), []
    for c, context in enumerate(contexts):
        tail = np.asarray(classes.tail_ids[c])[: int(classes.tail_eot[c]) + 1]
        name, rest = np.split(tail, [int(classes.name_length[c])])
        start = clip.tokenizer.bos_token_id
        features.append(
            reference.class_feature(params, clip.config.text, start, name, rest, np.float64(context), position, deep)
        )
    return np.stack(features)


def plain_features(clip, classes):
    """Returns features of classes under their template."""
    params = reference.to_numpy(clip.params["text"])
    texts = [reference.plain_text_feature(params, clip.config.text, row) for row in classes.token_ids]
    return reference.unit(np.stack(texts))


def image_features(clip, images, **prompt):
    params = reference.to_numpy(clip.params["vision"])
    rows = [reference.image_feature(params, clip.config.vision, np.float64(image), **prompt) for image in images]
    return reference.unit(np.stack(rows))


def words(clip, text):
    """Returns token embeddings of a text, `[tokens, width]`."""
    return np.float64(clip.params["text"]["token_embedding"])[clip.tokenizer.pieces([text])[0]]


def check(outputs, clip, images, texts):
    """Compares outputs with image features `[images, embed]` and text features `[(images,) classes, embed]`."""
    np.testing.assert_allclose(outputs.text_features, texts, atol=3e-6)
    np.testing.assert_allclose(outputs.image_features, images, atol=3e-6)
    shape = (len(images), *np.shape(texts)[-2:])
    scale = np.exp(np.float64(clip.params["logit_scale"]))
    cosines = np.stack([one @ rows.T for one, rows in zip(images, np.broadcast_to(texts, shape), strict=True)])
    np.testing.assert_allclose(outputs.logits, scale * cosines, atol=1e-4)


def full_size_clip():
    """Returns a ViT-B/16 of shapes without values, with a tokenizer of few words."""
    tokenizer = tiny_tokenizer(77)
    text = TextConfig(
        vocab_size=49408,
        width=512,
        layers=12,
        heads=8,
        mlp_width=2048,
        context_length=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = VisionConfig(width=768, layers=12, heads=12, mlp_width=3072, image_size=224, patch_size=16)
    config = ClipConfig(text=text, vision=vision, embed_dim=512)
    params = jax.eval_shape(lambda key: init_params(key, config), jax.random.key(0))
    return Clip(params, config, tokenizer)
