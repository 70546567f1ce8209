"""Tuners of pairs: the contract for class lists of pairs, texts against whole sequences, branches against loops."""

import dataclasses
import inspect
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax import artifacts, tuners
from gram_jax.clip import TextPrompt, class_tokens, encode_classes, encode_patches
from gram_jax.errors import InputError
from gram_jax.objectives import pair_branches, pair_loss
from gram_jax.testing import tiny_clip, tiny_siglip
from gram_jax.tuners.attention import block, block_init
from gram_jax.tuners.pairs import marginal, mean_over

ATTRIBUTES, OBJECTS = ["red", "small blue"], ["cat", "large green frog", "dog"]
PAIRS = [[0, 0], [0, 1], [1, 1], [1, 2]]
LABELS = jnp.array([3, 0])
ROWS = {
    "csp": {},
    "csp-context": {"learn_context": True},
    "dfsp": {"heads": 2},
    "troika": {"heads": 2, "layers": 1, "adapter": 2},
}


def make(row):
    return tuners.make(row.partition("-")[0], **ROWS[row])


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(text_layers=1, vision_layers=1)


@pytest.fixture(scope="module")
def classes(clip):
    return tuners.pair_classes(clip, ATTRIBUTES, OBJECTS, PAIRS)


class Case:
    def __init__(self, row, clip, classes):
        self.row, self.tuner, key = row, make(row), jax.random.key(0)
        self.prompt = self.tuner.init(key, clip, classes)
        self.other = jax.tree.map(
            lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape), self.prompt
        )
        loss = pair_loss(self.tuner)

        def value(prompt, clip, classes, images):
            return loss(prompt, clip, {"classes": classes, "images": images, "labels": LABELS})

        @jax.jit
        def derivatives(prompt, clip, classes, images, direction):
            def gradient(prompt):
                return jax.grad(value)(prompt, clip, classes, images)

            return (value(prompt, clip, classes, images), *jax.jvp(gradient, (prompt,), (direction,)))

        self.apply, self.value, self.derivatives = jax.jit(self.tuner.apply), jax.jit(value), derivatives


@pytest.fixture(scope="module", params=ROWS)
def case(request, clip, classes):
    return Case(request.param, clip, classes)


def test_every_tuner_of_pairs_has_a_row():
    assert {row.partition("-")[0] for row in ROWS} == set(tuners.PAIR_NAMES)


def test_shapes_dtypes_and_vmap(case, clip, classes, images):
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(case.prompt))
    outputs = case.apply(case.other, clip, classes, images)
    assert (outputs.logits.shape, outputs.logits.dtype) == ((2, 4), jnp.float32)
    for features in outputs[1:]:
        np.testing.assert_allclose(np.linalg.norm(features, axis=-1), 1.0, atol=1e-5)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), case.prompt, case.other)
    mapped = jax.jit(jax.vmap(case.tuner.apply, in_axes=(0, None, None, None)))(both, clip, classes, images)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[1], mapped), outputs, atol=2e-5)
    assert jnp.abs(mapped.logits[0] - mapped.logits[1]).max() > 1e-3


def test_the_gradient_is_the_slope_and_has_a_finite_derivative(case, clip, classes, images):
    direction = jax.tree.map(jnp.ones_like, case.other)
    _, gradient, curvature = case.derivatives(case.other, clip, classes, images, direction)
    chex.assert_tree_all_finite((gradient, curvature))
    assert all(jnp.abs(leaf).max() > 1e-7 for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
               if "key" not in [part.key for part in path] or path[-1].key != "bias")  # fmt: skip
    norm = float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))))
    step = 3e-3

    def at(sign):
        moved = jax.tree.map(lambda leaf, slope: leaf + sign * step * slope / norm, case.other, gradient)
        return float(case.value(moved, clip, classes, images))

    assert (at(1) - at(-1)) / (2 * step) == pytest.approx(norm, rel=0.05)


def test_settings_and_files_bring_the_tuner_back(case, clip, classes, tmp_path):
    settings = json.loads(json.dumps(dict(case.tuner.settings)))
    assert list(settings) == list(inspect.signature(getattr(tuners, case.tuner.name)).parameters)
    again = tuners.make(case.tuner.name, **settings)
    chex.assert_trees_all_equal(again.init(jax.random.key(0), clip, classes), case.prompt)
    artifacts.save_prompt(tmp_path / "prompt.safetensors", case.other, case.tuner, clip)
    loaded = artifacts.load_prompt(tmp_path / "prompt.safetensors", clip)
    chex.assert_trees_all_equal(loaded.prompt, case.other)
    assert (loaded.tuner.name, loaded.tuner.settings) == (case.tuner.name, case.tuner.settings)


def test_dropout_depends_on_the_key_and_is_off_without_one(case, clip, classes, images):
    plain = case.apply(case.other, clip, classes, images).logits
    first, again, other = (
        case.apply(case.other, clip, classes, images, jax.random.key(seed)).logits for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - other).max() > 1e-3 < jnp.abs(first - plain).max()


def test_ordinary_class_names_are_refused(case, clip):
    with pytest.raises(InputError, match=r"pair_classes.*Classes"):
        case.tuner.init(jax.random.key(0), clip, clip.class_tokens(["cat", "dog"]))


def test_csp_reads_the_words_and_two_learned_tokens(clip):
    objects = ["cat", "frog", "dog"]  # one token each, so that ordinary classes end with it
    classes, tuner = tuners.pair_classes(clip, ATTRIBUTES, objects, PAIRS), tuners.csp()
    prompt = tuner.init(jax.random.key(0), clip, classes)
    prompt["attributes"] += 0.1
    words = clip.params["text"]["token_embedding"][clip.tokenize(["a photo of"])[0, 1:-1]]
    context = jnp.stack([jnp.concatenate([words, prompt["attributes"][a][None]]) for a, _ in PAIRS])
    plain = class_tokens(clip.tokenizer, [objects[o] for _, o in PAIRS], suffix="", allow_duplicates=True)
    expected = encode_classes(clip, plain, TextPrompt(context))  # whole sequences: the context differs between classes
    found = tuner.apply(prompt, clip, classes, jnp.ones((1, 16)) / 4).text_features
    np.testing.assert_allclose(found, expected, atol=2e-5)
    chunked = clip.replace(config=dataclasses.replace(clip.config, class_chunk=3))
    again = tuner.apply(prompt, chunked, classes, jnp.ones((1, 16)) / 4).text_features
    np.testing.assert_allclose(again, found, atol=2e-6)
    swapped = prompt | {"objects": prompt["objects"][jnp.array([1, 0, 2])]}
    moved = tuner.apply(swapped, clip, classes, jnp.ones((1, 16)) / 4).text_features
    assert (jnp.abs(moved - found).max(axis=1) > 1e-3).tolist() == [True, True, True, False]


def test_a_table_begins_as_the_mean_of_the_tokens_of_each_name(clip, classes):
    prompt = tuners.csp().init(jax.random.key(0), clip, classes)
    for side, names in (("attributes", ATTRIBUTES), ("objects", OBJECTS)):
        for row, name in zip(prompt[side], names, strict=True):
            tokens = clip.tokenize([name])[0, 1:-1]
            np.testing.assert_allclose(row, clip.params["text"]["token_embedding"][tokens].mean(0), atol=1e-6)


def test_words_of_one_token_make_csp_the_template_itself():
    for clip in (tiny_clip(text_layers=1), tiny_siglip(text_layers=1)):
        classes = tuners.pair_classes(clip, ["red", "small"], ["cat", "dog"], [[0, 0], [0, 1], [1, 1]])
        tuner, images = tuners.csp(), jnp.ones((2, 16)) / 4
        found = tuner.apply(tuner.init(jax.random.key(0), clip, classes), clip, classes, images)
        frozen = tuners.frozen_outputs(clip, classes.names, images)
        np.testing.assert_allclose(found.text_features, frozen.text_features, atol=2e-5)


def test_sums_and_means_over_pairs_equal_loops():
    logits = np.random.default_rng(0).normal(size=(3, 5)) * 30
    parts = np.array([2, 0, 2, 0, 0])
    summed, averaged = marginal(jnp.asarray(logits), parts, 4), mean_over(jnp.asarray(logits), parts, 4)
    for part in (0, 2):
        own = logits[:, parts == part]
        top = own.max(1)
        np.testing.assert_allclose(summed[:, part], top + np.log(np.exp(own - top[:, None]).sum(1)), rtol=1e-5)
        np.testing.assert_allclose(averaged[:, part], own.mean(1), rtol=1e-5)
    assert np.all(np.stack([summed, averaged])[..., [1, 3]] == -1e9)


def test_the_block_equals_torch():
    torch = pytest.importorskip("torch", reason="the reference of attention")
    width, heads = 8, 2
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * jnp.sin(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape),
        block_init(jax.random.key(0), width),
    )
    rng = np.random.default_rng(0)
    tokens, memory = (rng.normal(size=(2, n, width)).astype(np.float32) for n in (3, 5))
    keep = np.array([True, True, False, True, True])

    def tensor(x):
        return torch.from_numpy(np.array(x, np.float32))

    def linear(name, x):
        return torch.nn.functional.linear(x, tensor(params[name]["kernel"]).T, tensor(params[name]["bias"]))

    def norm(name, x):
        return torch.nn.functional.layer_norm(x, (width,), tensor(params[name]["scale"]), tensor(params[name]["bias"]))

    seen, x = norm("norm_memory", tensor(memory)), tensor(tokens)
    q, k, v = linear("query", norm("norm_tokens", x)), linear("key", seen), linear("value", seen)
    split = [each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k, v)]
    mixed = torch.nn.functional.scaled_dot_product_attention(*split, attn_mask=torch.from_numpy(keep).expand(3, 5))
    x = x + linear("out", mixed.transpose(1, 2).flatten(-2))
    hidden = linear("up", norm("norm_mlp", x))
    expected = x + linear("down", hidden * torch.sigmoid(1.702 * hidden))
    np.testing.assert_allclose(block(params, heads, tokens, memory, keep), expected.numpy(), atol=2e-5)


def test_troika_scores_pairs_by_three_branches(clip, classes, images):
    case = Case("troika", clip, classes)
    scores = pair_branches(case.tuner, case.other, clip, classes, images)
    powers = [np.exp(scores[side]) for side in ("attribute", "object")]
    attribute, object_ = (power / power.sum(1, keepdims=True) for power in powers)
    expected = np.stack([scores["pair"][:, p] + attribute[:, a] * object_[:, o] for p, (a, o) in enumerate(PAIRS)], 1)
    np.testing.assert_allclose(case.apply(case.other, clip, classes, images).logits, expected, atol=1e-4)


def test_adapters_of_troika_begin_as_nothing(clip, classes, images):
    with_them, without = (tuners.troika(heads=2, layers=1, adapter=units) for units in (4, 0))
    prompt = with_them.init(jax.random.key(0), clip, classes)
    plain = {name: part for name, part in prompt.items() if name != "adapters"}
    expected = without.apply(plain, clip, classes, images)
    chex.assert_trees_all_close(with_them.apply(prompt, clip, classes, images), expected, atol=1e-5)
    up = prompt["adapters"]["mlp"]["up"]
    up = up + jnp.cos(jnp.arange(up.size)).reshape(up.shape)  # a constant is removed by the last norm
    moved = prompt | {"adapters": prompt["adapters"] | {"mlp": prompt["adapters"]["mlp"] | {"up": up}}}
    features = with_them.apply(moved, clip, classes, images).image_features
    assert jnp.abs(features - expected.image_features).max() > 1e-3


def test_dfsp_without_mixing_is_csp(clip, classes, images):
    fused = tuners.dfsp(heads=2, mix=0.0)
    prompt = fused.init(jax.random.key(0), clip, classes)
    plain = {name: prompt[name] for name in ("attributes", "objects", "context")}
    expected = tuners.csp(learn_context=True).apply(plain, clip, classes, images)
    np.testing.assert_allclose(fused.apply(prompt, clip, classes, images).logits, expected.logits, atol=1e-4)
    mixed = tuners.dfsp(heads=2, mix=1.0)
    features, _ = encode_patches(clip, images)  # both blocks begin as the identity
    np.testing.assert_allclose(mixed.apply(prompt, clip, classes, images).image_features, features, atol=1e-5)


def test_the_loss_is_the_weighted_sum_of_its_terms(clip, classes, images):
    tuner = tuners.dfsp(heads=2)
    prompt = tuner.init(jax.random.key(0), clip, classes)
    weights = np.array([2.0, 1.0, 0.5, 1.0], np.float32)
    batch = {"classes": classes, "images": images, "labels": LABELS, "class_weights": weights}
    branches = pair_branches(tuner, prompt, clip, classes, images)

    def loss(name, labels):
        logits = np.float64(branches[name])
        own = np.log(np.exp(logits).sum(1)) - logits[np.arange(2), labels]
        return (weights[LABELS] * own).sum() / weights[LABELS].sum()

    pair = np.array(PAIRS)[LABELS]
    terms = {"pair": LABELS, "unfused": LABELS, "attribute": pair[:, 0], "object": pair[:, 1]}
    values = {name: loss(name, np.array(labels)) for name, labels in terms.items()}
    expected = values["pair"] + 0.1 * values["unfused"] + 0.01 * (values["attribute"] + values["object"])
    assert float(pair_loss(tuner)(prompt, clip, batch)) == pytest.approx(expected, rel=1e-5)
    changed = batch | {"term_weights": {"attribute": 3.0}}
    expected += 2.99 * values["attribute"]
    assert float(pair_loss(tuner)(prompt, clip, changed)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match=r"'atribute'.*'attribute'"):
        pair_loss(tuner, {"atribute": 1.0})
