"""Each tuner against NumPy, against the hand-crafted prompt, and against its published size; bad settings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax import tuners
from gram_jax.testing import tiny_clip
from tests.unit.clip import reference
from tests.unit.tuners.restated import check, class_features, full_size_clip, image_features, plain_features

KEY = jax.random.key(0)


@pytest.mark.parametrize(("n", "position", "class_specific"), [(4, "end", False), (3, "middle", True)])
def test_coop_equals_numpy(clip, classes, images, n, position, class_specific):
    tuner = tuners.coop(num_tokens=n, position=position, class_specific=class_specific)
    prompt = jax.tree.map(lambda leaf: 20 * leaf, tuner.init(KEY, clip, classes))
    contexts = np.broadcast_to(prompt["context"], (len(classes.tail_ids), n, clip.config.text.width))
    texts = class_features(clip, classes, contexts, position)
    check(tuner.apply(prompt, clip, classes, images), clip, image_features(clip, images), texts)


@pytest.mark.parametrize(
    ("n", "depth", "placement"), [(8, 1, "before_norm"), (2, 3, "after_class"), (3, 2, "after_norm")]
)
def test_vpt_equals_numpy(clip, classes, images, n, depth, placement):
    tuner = tuners.vpt(num_tokens=n, depth=depth, placement=placement)
    prompt = jax.tree.map(lambda leaf: 20 * leaf, tuner.init(KEY, clip, classes))
    assert sorted(prompt) == (["tokens"] if depth == 1 else ["deep", "tokens"])
    drawn = reference.to_numpy(prompt)
    deep = dict(enumerate(drawn.get("deep", []), start=1))
    found = image_features(clip, images, tokens=drawn["tokens"], placement=placement, deep=deep)
    check(tuner.apply(prompt, clip, classes, images), clip, found, plain_features(clip, classes))


def test_ivlp_equals_numpy(clip, classes, images):
    tuner = tuners.ivlp(3, num_visual=2, depth=3, init_text=None, position="middle", placement="after_norm")
    prompt = jax.tree.map(lambda leaf: 20 * leaf, tuner.init(KEY, clip, classes))
    drawn = reference.to_numpy(prompt)
    text, visual = drawn["text"], drawn["visual"]
    assert len(text["deep"]) == len(visual["deep"]) == 2
    texts = class_features(clip, classes, [text["context"]] * 4, "middle", dict(enumerate(text["deep"], start=1)))
    deep = dict(enumerate(visual["deep"], start=1))
    found = image_features(clip, images, tokens=visual["tokens"], placement="after_norm", deep=deep)
    check(tuner.apply(prompt, clip, classes, images), clip, found, texts)


def test_a_start_of_words_is_the_hand_crafted_prompt(clip, classes, images):
    frozen = tuners.frozen_outputs(clip, classes, images)  # the template is "a photo of a {}."
    for tuner in (tuners.coop(num_tokens=4, init_text="a photo of a"), tuners.ivlp(num_visual=8, depth=1)):
        given = images if tuner.needs_pixels else frozen.image_features
        outputs = tuner.apply(tuner.init(KEY, clip, classes), clip, classes, given)
        np.testing.assert_allclose(outputs.text_features, frozen.text_features, atol=1e-6)
    shared, each = (tuners.coop(init_text="a  photo of a", class_specific=own) for own in (False, True))
    contexts = each.init(KEY, clip, classes)["context"]
    np.testing.assert_array_equal(contexts, np.stack([shared.init(KEY, clip, None)["context"]] * 4))
    words = np.asarray(clip.params["text"]["token_embedding"])[clip.tokenizer.pieces(["a photo of a"])[0]]
    np.testing.assert_array_equal(contexts[0], words)


def test_a_random_start_has_the_published_spread(clip):
    context = tuners.coop(num_tokens=16).init(KEY, clip, None)["context"]
    visual = tuners.vpt(num_tokens=50, depth=2).init(KEY, clip, None)
    for leaf in (context, visual["tokens"], visual["deep"]):
        count = leaf.size
        assert abs(float(leaf.mean())) < 4 * 0.02 / count**0.5
        assert float(leaf.std()) == pytest.approx(0.02, rel=4 / (2 * count) ** 0.5)


@pytest.mark.parametrize(
    ("tuner", "count"),
    [
        (tuners.ivlp(num_text=4, num_visual=4, depth=9), 46_080),
        (tuners.ivlp(), 46_080),  # the defaults are PromptSRC's
        (tuners.ivlp(num_text=2, num_visual=2, depth=12), 2 * (512 + 768) * 12),  # MaPLe's
        (tuners.maple(), 9 * (2 * 512 + 512 * 768 + 768)),  # 3.555 M
        (tuners.maple(depth=3), 3 * (2 * 512 + 512 * 768 + 768)),  # across datasets and domains
        (tuners.upt(), 566_400),
        (tuners.adaptive(), 4 * 512 * 512),
        # Context, eleven layers of tokens, and one class-aware layer: projection, queries, keys, values, tokens, norm.
        (tuners.dpt(), 8_192 + 84_480 + 393_984 + 2 * 24_576 + 589_824 + 7_680 + 1_536),
        (tuners.dpt(class_layers=0), 8_192 + 12 * 10 * 768),  # VLP
        (tuners.coop(num_tokens=16), 8_192),
        (tuners.vpt(num_tokens=8, depth=12), 8 * 768 * 12),
        (tuners.text_deep(), 12 * 4 * 512),  # the defaults are MaPLe's "deep language prompting"
        (tuners.cocoop(), 33_312 + 4 * 512),
    ],
)
def test_sizes_on_the_published_backbone(tuner, count):
    clip = full_size_clip()
    prompt = jax.eval_shape(lambda key, params: tuner.init(key, clip.replace(params=params), None), KEY, clip.params)
    assert tuners.num_parameters(prompt) == count
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(prompt))


def test_a_half_precision_clip_still_has_float32_prompts():
    clip = tiny_clip(compute_dtype="bfloat16")
    clip = clip.replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), clip.params))
    prompt = tuners.ivlp(depth=2).init(KEY, clip, None)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(prompt))


def test_words_are_counted_in_the_clips_own_tokens(clip):
    tokens = len(clip.tokenizer.pieces(["zebra"])[0])
    assert tokens > 1  # a word that the tokenizer does not know as a whole
    assert tuners.coop(init_text="zebra").init(KEY, clip, None)["context"].shape[0] == tokens
    assert tuners.ivlp(init_text="zebra", depth=2).init(KEY, clip, None)["text"]["deep"].shape[1] == tokens
    for tuner, name in ((tuners.coop(1, init_text="zebra"), "num_tokens"), (tuners.ivlp(9, 1, 1, "zebra"), "num_text")):
        with pytest.raises(ValueError, match=f"'zebra' .*{tokens} tokens.*{name}=[19]; .*{name}=None"):
            tuner.init(KEY, clip, None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tuners.coop(num_tokens=0), "num_tokens=0"),
        (lambda: tuners.coop(num_tokens=2.0), "num_tokens=2.0"),
        (lambda: tuners.coop(init_text=" "), "init_text=' '"),
        (lambda: tuners.coop(position="back"), "position='back'"),
        (lambda: tuners.coop(class_specific=1), "class_specific=1"),
        (lambda: tuners.vpt(depth=True), "depth=True"),
        (lambda: tuners.vpt(num_tokens=None), "num_tokens=None"),
        (lambda: tuners.vpt(placement="end"), "placement='end'.*before_norm"),
        (lambda: tuners.ivlp(num_visual=-1), "num_visual=-1"),
        (lambda: tuners.ivlp(num_text="4"), "num_text='4'"),
        (lambda: tuners.make("cop"), "'cop'.*'coop'.* adaptive, cocoop, "),
        (lambda: tuners.make("zzz"), "'zzz'; "),
        (lambda: tuners.make("vpt", dept=2), "'vpt'.*'dept'.*'depth'"),
    ],
)
def test_impossible_settings_are_refused_by_the_factory(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("tuner", "message"),
    [
        (tuners.coop(num_tokens=5, init_text="a photo of a"), "'a photo of a' .*4 tokens.*num_tokens=5"),
        (tuners.coop(num_tokens=21), "21 context tokens.* 24"),
        (tuners.ivlp(num_text=21, init_text=None, depth=1), "21 context tokens"),
        (tuners.vpt(depth=5), "depth=5.*4 vision.*depth=4"),
        (tuners.ivlp(), "depth=9.*4 text layers and 4 vision layers.*depth=4"),
    ],
)
def test_what_does_not_fit_the_clip_is_refused_by_init(clip, classes, tuner, message):
    with pytest.raises(ValueError, match=message):
        tuner.init(KEY, clip, classes)


def test_other_misfits_are_refused(clip, classes, images):
    with pytest.raises(ValueError, match="NoneType"):
        tuners.coop(class_specific=True).init(KEY, clip, None)
    with pytest.raises(ValueError, match="no tokenizer"):
        tuners.coop(init_text="cat").init(KEY, clip.replace(tokenizer=None), None)
    coop, vpt = tuners.coop(class_specific=True), tuners.vpt()
    prompt = coop.init(KEY, clip, classes)
    with pytest.raises(ValueError, match="context is for 4 classes, but there are 1"):
        coop.apply(prompt, clip, clip.class_tokens(["cat"]), images)
    with pytest.raises(ValueError, match=r"image features .*16\].*\[2, 5\]"):
        coop.apply(prompt, clip, classes, jnp.zeros((2, 5)))
    with pytest.raises(ValueError, match=r"text features .*16\].*\[3, 5\]"):
        vpt.apply(vpt.init(KEY, clip, None), clip, jnp.zeros((3, 5)), images)


def test_a_tuner_may_be_a_static_argument(clip):
    tuner = tuners.coop()
    assert hash(tuner) == hash(tuner)
    with pytest.raises((TypeError, ValueError)):
        tuner.settings["num_tokens"] = 5
