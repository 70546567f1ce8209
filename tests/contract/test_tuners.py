"""The contract of every tuner: a new one enters by adding a row."""

from __future__ import annotations

import inspect
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax import artifacts, tuners
from gram_jax.clip.classes import Layout, pack_classes
from gram_jax.objectives import cross_entropy
from gram_jax.testing import tiny_clip

# id: (name, settings). Each tuner with its defaults, if the clip allows, and with settings that change its prompt tree.
ROWS = {
    "coop": ("coop", {}),
    "coop-per-class": ("coop", {"init_text": "a drawing of", "position": "middle", "class_specific": True}),
    "vpt": ("vpt", {}),
    "vpt-deep": ("vpt", {"num_tokens": 2, "depth": 2, "placement": "after_class"}),
    "vpt-kv": ("vpt_kv", {}),
    "vpt-kv-last": ("vpt_kv", {"num_tokens": 2, "depth": 1, "first": 1}),
    "ivlp": ("ivlp", {"depth": 2}),
    "text-deep": ("text_deep", {"num_tokens": 3, "depth": 2}),
    "maple": ("maple", {"depth": 2}),
    "upt": ("upt", {"num_text": 2, "num_visual": 1, "depth": 2, "width": 8}),
    "dpt": ("dpt", {"num_text": 2, "num_visual": 2, "num_classes": 3}),
    "adaptive": ("adaptive", {"width": 8}),
    "cocoop": ("cocoop", {"hidden": 8, "chunk": 1}),
}
PER_CLASS = {"coop-per-class"}
# A bias of keys adds the same number to all scores of a query, so its gradient is 0.
FLAT = {"block/attention/key/bias"}
# Parts whose gradient is not the slope, because the published method stops it on one path.
HELD = {"dpt": {"visual"}}
LABELS = jnp.array([2, 0])


def wave(tree):
    """Returns a direction that a layer norm does not remove, unlike a constant."""
    return jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape), tree)


class Case:
    """A row with its prompts and compiled functions; compilation takes most of the tests' time."""

    def __init__(self, row, clip, classes):
        self.per_class = row in PER_CLASS
        self.name, self.settings = ROWS[row]
        self.tuner = tuners.make(self.name, **self.settings)
        self.prompt = self.tuner.init(jax.random.key(0), clip, classes)
        self.traces = 0
        # Away from the initialization, which may be a special case.
        self.other = jax.tree.map(lambda leaf, step: leaf + 0.1 * step, self.prompt, wave(self.prompt))

        @jax.jit
        def apply(prompt, clip, classes, images):
            self.traces += 1
            return self.tuner.apply(prompt, clip, classes, images)

        def loss(prompt, clip, classes, images):
            return cross_entropy(self.tuner.apply(prompt, clip, classes, images), LABELS)

        @jax.jit
        def derivatives(prompt, clip, classes, images):
            def gradient(prompt):
                return jax.grad(loss)(prompt, clip, classes, images)

            return jax.jvp(gradient, (prompt,), (wave(prompt),))

        self.apply, self.derivatives = apply, derivatives


@pytest.fixture(scope="module")
def clip():
    """Returns a clip as shallow as a deep prompt allows."""
    return tiny_clip(text_layers=2, text_heads=3, vision_layers=2, vision_width=30, vision_heads=5)


@pytest.fixture(scope="module", params=ROWS)
def case(request, clip, classes):
    return Case(request.param, clip, classes)


def test_a_prompt_is_float32_and_shapes_are_right(case, clip, classes, images):
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(case.prompt))
    assert tuners.num_parameters(case.prompt) > 0
    outputs = case.apply(case.prompt, clip, classes, images)
    embed = clip.config.embed_dim
    assert (outputs.logits.shape, outputs.logits.dtype) == ((2, 4), jnp.float32)
    assert outputs.image_features.shape == (2, embed)
    assert outputs.text_features.shape in {(4, embed), (2, 4, embed)}
    for features in outputs[1:]:
        np.testing.assert_allclose(np.linalg.norm(features, axis=-1), 1.0, atol=1e-5)


def test_logits_are_cosines_times_the_frozen_scale(case, clip, classes, images):
    outputs = case.apply(case.prompt, clip, classes, images)
    scale = np.exp(np.float64(clip.params["logit_scale"]))
    texts = np.broadcast_to(outputs.text_features, (2, 4, clip.config.embed_dim))
    for b in range(2):
        for c in range(4):
            cosine = np.dot(np.float64(outputs.image_features[b]), np.float64(texts[b, c]))
            assert float(outputs.logits[b, c]) == pytest.approx(scale * cosine, abs=1e-4)


def test_jit_equals_eager(case, clip, classes, images):
    compiled = case.apply(case.other, clip, classes, images)
    chex.assert_trees_all_close(compiled, case.tuner.apply(case.other, clip, classes, images), atol=2e-5)
    start = jax.jit(case.tuner.init)(jax.random.key(0), clip, classes)
    chex.assert_trees_all_close(start, case.prompt, atol=1e-7)


def test_vmap_over_prompts_equals_a_loop(case, clip, classes, images):
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), case.prompt, case.other)
    mapped = jax.jit(jax.vmap(case.tuner.apply, in_axes=(0, None, None, None)))(both, clip, classes, images)
    for index, prompt in enumerate((case.prompt, case.other)):
        one = jax.tree.map(lambda leaf, index=index: leaf[index], mapped)
        chex.assert_trees_all_close(one, case.apply(prompt, clip, classes, images), atol=2e-5)
    assert jnp.abs(mapped.logits[0] - mapped.logits[1]).max() > 1e-2


def test_every_vector_has_a_gradient_and_it_is_the_slope(case, clip, classes, images):
    frozen = tuners.frozen_outputs(clip, classes, images)
    given_classes = classes if case.tuner.needs_names else frozen.text_features
    given_images = images if case.tuner.needs_pixels else frozen.image_features
    gradient, curvature = case.derivatives(case.other, clip, given_classes, given_images)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, case.other)
    chex.assert_tree_all_finite((gradient, curvature))
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    for (path, leaf), bent in zip(leaves, jax.tree.leaves(curvature), strict=True):
        if "/".join(key.key for key in path) in FLAT:
            assert jnp.abs(leaf).max() < 1e-5
            continue
        # A hidden unit of a network may be inactive.
        vectors = leaf.reshape(1, -1) if path[-1].key == "kernel" else leaf
        assert jnp.linalg.norm(vectors, axis=-1).min() > 1e-6, path
        assert jnp.abs(bent).max() > 1e-6, path
    # Against differences of the loss along the gradient, read off float32 logits in float64.
    held = HELD.get(case.name, ())
    way = {part: jax.tree.map(lambda leaf, part=part: leaf * (part not in held), gradient[part]) for part in gradient}
    norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(way)))
    step = 1e-2

    def at(sign):
        prompt = jax.tree.map(lambda leaf, slope: leaf + sign * step * slope / norm, case.other, way)
        logits = np.float64(case.apply(prompt, clip, classes, images).logits)
        return np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(2), LABELS])

    assert (at(1) - at(-1)) / (2 * step) == pytest.approx(norm, rel=0.03)


def test_other_names_of_the_same_shapes_do_not_retrace(case, clip, classes, images):
    others = clip.class_tokens(["dog", "red_horse", "small blue bird", "the large white house"])
    chex.assert_trees_all_equal_shapes(others, classes)
    first = case.apply(case.prompt, clip, classes, images)
    second = case.apply(case.other, clip, others, images)
    assert case.traces == 1
    assert jnp.abs(first.logits - second.logits).max() > 1e-3


def test_rows_of_names_change_nothing(case, clip, images):
    """Names that begin alike, in one row with shared tokens, and split over rows with nothing shared."""
    if not case.tuner.needs_names or case.tuner.needs_pairs:
        pytest.skip("the tuner reads no class names, or its own kind of class list")
    found = clip.class_tokens(["small dog", "small dog house", "cat", "small red fish"])
    fields = [np.asarray(field) for field in jax.tree.leaves(found)[:5]]
    layouts = Layout(length=16, beside=4), Layout(length=8)
    one, many = (jax.tree.map(jnp.asarray, pack_classes(*fields, layout)) for layout in layouts)
    assert [len(each.tree.ids) for each in (one, many)] == [1, 3]
    assert [len(each.apart.ids) for each in (one, many)] == [1, 4]
    together, split = (case.apply(case.other, clip, classes, images) for classes in (one, many))
    chex.assert_trees_all_close(together, split, atol=2e-5)


def test_only_a_class_specific_prompt_depends_on_the_classes(case, clip):
    two, one = clip.class_tokens(["cat", "a small red fish"]), clip.class_tokens(["frog"])
    prompts = [case.tuner.init(jax.random.key(0), clip, names) for names in (two, one)]
    if case.per_class:
        assert [prompt["context"].shape[0] for prompt in prompts] == [2, 1]
    else:
        for prompt in (*prompts, case.tuner.init(jax.random.key(0), clip, None)):
            chex.assert_trees_all_equal(prompt, case.prompt)


def test_init_depends_on_the_key_alone(case, clip, classes):
    again, another = (case.tuner.init(jax.random.key(seed), clip, classes) for seed in (0, 1))
    chex.assert_trees_all_equal(again, case.prompt)
    worded = bool(case.tuner.settings.get("init_text"))
    paths = jax.tree_util.tree_leaves_with_path(case.prompt)
    for (path, old), new in zip(paths, jax.tree.leaves(another), strict=True):
        if worded and path[-1].key == "context":
            np.testing.assert_array_equal(old, new)
        else:  # drawn, or a constant, as norms and some biases are
            assert jnp.abs(old - new).max() > 1e-3 or jnp.ptp(old) == 0, path


def test_frozen_features_replace_a_side_without_a_prompt(case, clip, classes, images):
    frozen = tuners.frozen_outputs(clip, classes, images)
    full = case.apply(case.other, clip, classes, images)
    assert case.tuner.needs_pixels or case.tuner.needs_names
    if not case.tuner.needs_pixels:
        given = case.tuner.apply(case.other, clip, classes, frozen.image_features)
        chex.assert_trees_all_close(given, full, atol=2e-5)
    else:
        with pytest.raises(ValueError, match=r"images .*\[2, 16\]"):
            case.tuner.apply(case.other, clip, classes, frozen.image_features)
    if not case.tuner.needs_names:
        given = case.tuner.apply(case.other, clip, frozen.text_features, images)
        chex.assert_trees_all_close(given, full, atol=2e-5)
    else:
        with pytest.raises(ValueError, match=r"clip\.class_tokens"):
            case.tuner.apply(case.other, clip, frozen.text_features, images)


def test_only_the_sides_that_a_tuner_changes_differ_from_the_frozen_ones(case, clip, classes, images):
    frozen = tuners.frozen_outputs(clip, classes, images)
    full = case.apply(case.other, clip, classes, images)
    for side, found, plain in (
        ("image", full.image_features, frozen.image_features),
        ("text", full.text_features, frozen.text_features),
    ):
        difference = jnp.abs(found - plain).max()
        assert difference > 1e-2 if side in case.tuner.changes else difference < 1e-6


def test_settings_make_the_tuner_again_and_name_every_default(case, clip, classes):
    settings = json.loads(json.dumps(dict(case.tuner.settings)))
    assert list(settings) == list(inspect.signature(getattr(tuners, case.name)).parameters)
    again = tuners.make(case.tuner.name, **settings)
    assert (again.name, again.settings) == (case.name, case.tuner.settings)
    chex.assert_trees_all_equal(again.init(jax.random.key(0), clip, classes), case.prompt)


def test_saving_and_loading_is_exact(case, clip, tmp_path):
    path = tmp_path / "new" / "prompt.safetensors"
    artifacts.save_prompt(path, case.other, case.tuner, clip)
    loaded = artifacts.load_prompt(path, clip)
    chex.assert_trees_all_equal(loaded.prompt, case.other)
    chex.assert_trees_all_equal_shapes_and_dtypes(loaded.prompt, case.other)
    assert (loaded.tuner.name, loaded.tuner.settings) == (case.name, case.tuner.settings)


def test_every_tuner_has_a_row():
    assert {name for name, _ in ROWS.values()} == set(tuners.NAMES)
