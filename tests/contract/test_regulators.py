"""The contract of every regulator: a new one enters by adding a row."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gram_jax import artifacts, regulators, tuners
from gram_jax.meta import init_meta, with_structure
from gram_jax.regulators.base import rms
from gram_jax.testing import tiny_clip

CONTEXT = 5
ROWS = [
    ("identity", {}),
    ("affine", {}),
    ("kronecker", {"rank": 2}),
    ("mask", {"context_dim": CONTEXT}),
    ("gated_low_rank", {"rank": 3, "context_dim": CONTEXT}),
    ("prograd", {}),
    ("prometar", {"rate": 5, "per": "all", "normalized": True}),
    ("structured", {"prototypes": CONTEXT, "rank": 2}),
]
LEARNED = [row for row in ROWS if row[0] not in ("identity", "prograd")]


def ids(row):
    return "-".join([row[0], *(f"{name}={value}" for name, value in row[1].items())])


@pytest.fixture(params=ROWS, ids=ids)
def row(request):
    return request.param


@pytest.fixture(scope="module")
def small_clip():
    return tiny_clip(text_layers=1, vision_layers=1)


@pytest.fixture(params=LEARNED, ids=ids)
def learned_row(request):
    return request.param


def prompt(num_classes=3, dtype=np.float32, seed=0):
    """Returns leaves of all forms that a tuner may have, with values of very different magnitude."""
    rng = np.random.default_rng(seed)
    shapes = {
        "context": (4, 6),
        "per_class": (num_classes, 4, 6),
        "network": {"bias": (6,)},
        "scale": (),
    }
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    arrays = [rng.normal(size=shape) * 10.0 ** rng.uniform(-6, 3) for shape in leaves]
    return structure.unflatten([jnp.asarray(array, dtype) for array in arrays])


def context(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=CONTEXT), jnp.float32)


def moved(phi, seed=1):
    """Returns parameters away from the identity."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf + 0.5 * rng.normal(size=leaf.shape), leaf.dtype), phi)


def make(name, settings):
    """Makes a regulator; its reference gradient, if it reads one, is a linear function of the context."""
    regulator = regulators.make(name, **settings)
    if "reference" not in regulator.settings:
        return regulator

    def reference(leaf, vector):
        rng = np.random.default_rng(sum(leaf.shape[-2:]))
        turn = jnp.asarray(rng.normal(size=(*leaf.shape[-2:], CONTEXT)), vector.dtype)
        return (turn @ vector * rms(leaf, 2) * jnp.ones_like(leaf)).reshape(leaf.shape).astype(leaf.dtype)

    def apply(phi, grads, vector):
        return regulator.apply(phi, grads, jax.tree.map(lambda leaf: reference(leaf, vector), grads))

    return regulator._replace(apply=apply)


@functools.cache
def made(name, settings):
    regulator = make(name, dict(settings))
    phi = jax.jit(regulator.init)(jax.random.key(0), prompt())
    return regulator._replace(apply=jax.jit(regulator.apply)), phi


def setup(row):
    return *made(row[0], tuple(row[1].items())), prompt(seed=2)


def weighted_sum(tree, seed=3):
    rng = np.random.default_rng(seed)
    leaves = [jnp.sum(leaf * jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)) for leaf in jax.tree.leaves(tree)]
    return sum(leaves)


def assert_finite(tree):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def test_is_the_identity_at_initialization_to_the_last_bit(row):
    regulator, phi, grads = setup(row)
    # With a reference gradient, it is the identity if that gradient is 0.
    vector = 0 * context() if "reference" in regulator.settings else context()
    jax.tree.map(np.testing.assert_array_equal, regulator.apply(phi, grads, vector), grads)
    with jax.disable_jit():
        jax.tree.map(np.testing.assert_array_equal, regulator.apply(phi, grads, vector), grads)


def test_is_not_the_identity_elsewhere(learned_row):
    regulator, phi, grads = setup(learned_row)
    regulated = regulator.apply(moved(phi), grads, context())
    for leaf, raw in zip(jax.tree.leaves(regulated), jax.tree.leaves(grads), strict=True):
        if leaf.ndim or regulator.name != "gated_low_rank":  # a single number can only be turned by 0 or 180 degrees
            assert not np.allclose(leaf, raw, rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_structure_shapes_and_dtypes_stay_and_phi_is_float32(row, dtype):
    regulator, _, _ = setup(row)
    grads = prompt(dtype=dtype)
    phi = jax.jit(regulator.init)(jax.random.key(0), grads)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(phi)} <= {"float32"}
    regulated = regulator.apply(phi, grads, context())
    assert jax.tree.structure(regulated) == jax.tree.structure(grads)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), regulated, grads))


def test_jit_and_vmap_equal_a_loop(row):
    regulator, phi, _ = setup(row)
    phi = moved(phi)
    grads = [prompt(seed=seed) for seed in (4, 5)]
    contexts = [context(seed) for seed in (4, 5)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads)
    batched = jax.jit(jax.vmap(regulator.apply, in_axes=(None, 0, 0)))(phi, stacked, jnp.stack(contexts))
    for task in range(2):
        alone = regulator.apply(phi, grads[task], contexts[task])
        for leaf, expected in zip(jax.tree.leaves(batched), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(leaf[task], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_meta_gradient_reaches_phi_at_initialization(learned_row):
    regulator, phi, grads = setup(learned_row)

    @jax.jit
    def meta_gradient(phi):
        return jax.grad(meta_loss)(phi)

    def meta_loss(phi):  # one step from prompt(), judged by its distance from a target
        regulated = regulator.apply(phi, grads, context())
        return sum(jnp.sum((leaf - 1.0) ** 2) for leaf in jax.tree.leaves(regulated))

    gradient = meta_gradient(phi)
    assert_finite(gradient)
    for leaf in ("context", "per_class"):
        assert any(np.abs(part).max() > 0 for part in jax.tree.leaves(gradient[leaf]))


def test_derivatives_are_finite_also_at_a_zero_gradient(row):
    regulator, phi, grads = setup(row)
    phi = moved(phi)

    def value(phi, grads):
        return weighted_sum(regulator.apply(phi, grads, context()))

    @jax.jit
    def derivatives(phi, grads):
        direction = jax.tree.map(jnp.ones_like, (phi, grads))
        return jax.jvp(jax.grad(value, argnums=(0, 1)), (phi, grads), direction)

    tiny = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e-30), grads)
    one_row = jax.tree.map(lambda leaf: leaf.at[..., :1, :].set(0) if leaf.ndim > 1 else leaf, grads)
    for at in (grads, jax.tree.map(jnp.zeros_like, grads), tiny, one_row):
        assert_finite(derivatives(phi, at))
    zero = regulator.apply(phi, jax.tree.map(jnp.zeros_like, grads), context())
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(zero))


def test_derivatives_equal_finite_differences(row):
    regulator = make(*row)
    with jax.enable_x64(True):
        grads = jax.tree.map(lambda leaf: jnp.asarray(leaf / np.abs(leaf).max()), prompt(dtype=np.float64, seed=6))
        phi = moved(jax.jit(regulator.init)(jax.random.key(0), grads))
        vector = context().astype(jnp.float64)
        rng = np.random.default_rng(7)
        point = (phi, grads, vector)
        direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), point)

        @jax.jit
        def value(point):
            return weighted_sum(regulator.apply(*point))

        at = [value(jax.tree.map(lambda x, d, step=step: x + step * d, point, direction)) for step in (1e-5, -1e-5)]
        exact = jax.jvp(value, (point,), (direction,))[1]
        np.testing.assert_allclose(exact, (at[0] - at[1]) / 2e-5, rtol=1e-6)


def test_phi_does_not_depend_on_the_number_of_classes(row):
    regulator, few, _ = setup(row)
    many = jax.jit(regulator.init)(jax.random.key(0), prompt(7))
    jax.tree.map(np.testing.assert_array_equal, few, many)
    grads = prompt(7)
    regulated = regulator.apply(moved(few), grads, context())
    # Each class is regulated separately.
    first = regulator.apply(moved(few), grads | {"per_class": grads["per_class"][:3]}, context())
    first = first["per_class"]
    np.testing.assert_allclose(regulated["per_class"][:3], first, rtol=1e-5, atol=1e-7 * np.abs(first).max())


def test_regulators_are_positively_homogeneous(row):
    # 2 is a power of two: exact in floating point.
    regulator, phi, grads = setup(row)
    phi = moved(phi)
    double = regulator.apply(phi, jax.tree.map(lambda leaf: 2 * leaf, grads), context())
    once = regulator.apply(phi, grads, context())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 2 * b, rtol=1e-6), double, once)


def test_settings_make_the_same_regulator(row):
    regulator, phi, grads = setup(row)
    again = make(regulator.name, json.loads(json.dumps(dict(regulator.settings))))
    assert (again.name, again.settings) == (regulator.name, regulator.settings)
    same = jax.jit(again.apply)(moved(phi), grads, context())
    jax.tree.map(np.testing.assert_array_equal, same, regulator.apply(moved(phi), grads, context()))


def test_every_regulator_has_a_row():
    assert {name for name, _ in ROWS} == set(regulators.NAMES)


def test_as_optax_regulates_before_the_optimizer(row):
    regulator, phi, grads = setup(row)
    phi = moved(phi)
    optimizer = optax.chain(regulators.as_optax(regulator, phi, context()), optax.sgd(0.5))
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(grads), grads)
    expected = jax.tree.map(lambda leaf: -0.5 * leaf, regulator.apply(phi, grads, context()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, expected)


def test_saving_and_loading_is_exact(row, small_clip, tmp_path):
    regulator, tuner = regulators.make(row[0], **row[1]), tuners.coop()
    prompt = tuner.init(jax.random.key(0), small_clip, None)
    learned = init_meta(prompt, moved(regulator.init(jax.random.key(1), prompt)), learning_rate=0.1)
    if "prototypes" in regulator.settings:
        learned = with_structure(learned, np.random.default_rng(0).normal(size=(CONTEXT, 32)))
    artifacts.save_meta(tmp_path / "meta.safetensors", learned, tuner, regulator, small_clip)
    loaded = artifacts.load_meta(tmp_path / "meta.safetensors", small_clip)
    assert (loaded.regulator.name, loaded.regulator.settings) == (regulator.name, regulator.settings)
    jax.tree.map(np.testing.assert_array_equal, loaded.meta, learned)


def test_another_prompt_is_refused(learned_row):
    regulator, phi, grads = setup(learned_row)
    with pytest.raises(ValueError, match="phi of"):
        regulator.apply(phi, {"context": grads["context"]}, context())
    with pytest.raises(ValueError, match=r"\['context'\].*shapes"):
        regulator.apply(phi, grads | {"context": jnp.ones((4, 9))}, context())


def test_prompts_that_cannot_be_regulated_are_refused(row):
    regulator = regulators.make(row[0], **row[1])
    with pytest.raises(ValueError, match=row[0]):
        regulator.init(jax.random.key(0), {})
    with pytest.raises(ValueError, match=r"\['ids'\] is int32"):
        regulator.init(jax.random.key(0), {"ids": jnp.zeros(3, jnp.int32)})
