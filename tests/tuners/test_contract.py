"""One contract over every tuner: a new one enters by adding a row."""

from __future__ import annotations

import inspect
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax import tuners
from gram_jax.objectives import cross_entropy

# id: (name, settings); of each tuner the defaults, where the clip allows, and what makes its prompt another tree.
ROWS = {
    "coop": ("coop", {}),
    "coop-per-class": ("coop", {"init_text": "a drawing of", "position": "middle", "class_specific": True}),
    "vpt": ("vpt", {}),
    "vpt-deep": ("vpt", {"num_tokens": 2, "depth": 3, "placement": "after_class"}),
    "ivlp": ("ivlp", {"depth": 2}),
}
PER_CLASS = {"coop-per-class"}
LABELS = jnp.array([2, 0])


def wave(tree):
    """A direction that no layer norm takes away, as it would a constant."""
    return jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape), tree)


class Case:
    """A row, its prompts, and its compiled functions: they are what the tests spend their time on."""

    def __init__(self, row, clip, classes):
        self.per_class = row in PER_CLASS
        self.name, self.settings = ROWS[row]
        self.tuner = tuners.make(self.name, **self.settings)
        self.prompt = self.tuner.init(jax.random.key(0), clip, classes)
        self.traces = 0
        # Not where it starts, so that no test leans on that place.
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
    for leaf in jax.tree.leaves(gradient):
        assert jnp.linalg.norm(leaf, axis=-1).min() > 1e-6
    assert all(jnp.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(curvature))
    # Against differences of the loss along the gradient, read off float32 logits in float64.
    norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(gradient)))
    step = 1e-2

    def at(sign):
        prompt = jax.tree.map(lambda leaf, slope: leaf + sign * step * slope / norm, case.other, gradient)
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


def test_only_a_class_specific_prompt_depends_on_the_classes(case, clip):
    two, one = clip.class_tokens(["cat", "a small red fish"]), clip.class_tokens(["frog"])
    prompts = [case.tuner.init(jax.random.key(0), clip, names) for names in (two, one)]
    if case.per_class:
        assert [prompt["context"].shape[0] for prompt in prompts] == [2, 1]
    else:
        for prompt in (*prompts, case.tuner.init(jax.random.key(0), clip, None)):
            chex.assert_trees_all_equal(prompt, case.prompt)


def test_the_key_decides_and_only_the_key(case, clip, classes):
    again, another = (case.tuner.init(jax.random.key(seed), clip, classes) for seed in (0, 1))
    chex.assert_trees_all_equal(again, case.prompt)
    differs = jax.tree.map(lambda old, new: bool(jnp.abs(old - new).max() > 1e-3), case.prompt, another)
    paths = jax.tree_util.tree_leaves_with_path(differs)
    worded = {"context"} if case.tuner.settings.get("init_text") else set()
    assert {path[-1].key for path, differ in paths if not differ} == worded


def test_frozen_features_stand_for_what_the_prompt_does_not_touch(case, clip, classes, images):
    frozen = tuners.frozen_outputs(clip, classes, images)
    full = case.apply(case.other, clip, classes, images)
    assert case.tuner.needs_pixels or case.tuner.needs_names
    if not case.tuner.needs_pixels:
        np.testing.assert_allclose(full.image_features, frozen.image_features, atol=1e-6)
        given = case.tuner.apply(case.other, clip, classes, frozen.image_features)
        chex.assert_trees_all_close(given, full, atol=2e-5)
    else:
        assert jnp.abs(full.image_features - frozen.image_features).max() > 1e-2
        with pytest.raises(ValueError, match=r"images must have shape .* found \[2, 16\]"):
            case.tuner.apply(case.other, clip, classes, frozen.image_features)
    if not case.tuner.needs_names:
        np.testing.assert_allclose(full.text_features, frozen.text_features, atol=1e-6)
        given = case.tuner.apply(case.other, clip, frozen.text_features, images)
        chex.assert_trees_all_close(given, full, atol=2e-5)
    else:
        assert jnp.abs(full.text_features - frozen.text_features).max() > 1e-2
        with pytest.raises(ValueError, match="stands around class names"):
            case.tuner.apply(case.other, clip, frozen.text_features, images)


def test_settings_make_the_tuner_again_and_name_every_default(case, clip, classes):
    settings = json.loads(json.dumps(dict(case.tuner.settings)))
    assert list(settings) == list(inspect.signature(getattr(tuners, case.name)).parameters)
    again = tuners.make(case.tuner.name, **settings)
    assert (again.name, again.settings) == (case.name, case.tuner.settings)
    chex.assert_trees_all_equal(again.init(jax.random.key(0), clip, classes), case.prompt)


def test_saving_and_loading_is_exact(case, clip, tmp_path):
    path = tmp_path / "new" / "prompt.safetensors"
    tuners.save_prompt(path, case.other, case.tuner, clip)
    loaded = tuners.load_prompt(path, case.tuner, clip)
    chex.assert_trees_all_equal(loaded, case.other)
    chex.assert_trees_all_equal_shapes_and_dtypes(loaded, case.other)
    header = tuners.read_arrays(path)[1]
    assert header["class_specific"] is case.per_class
    again = tuners.make(header["tuner"], **header["settings"])
    chex.assert_trees_all_equal(tuners.load_prompt(path, again, clip), case.other)
