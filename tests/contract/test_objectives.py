"""The contract of every objective: a new one enters by adding a row."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax import objectives
from gram_jax.objectives import Reference
from gram_jax.tuners import Outputs

IMAGES, CLASSES, EMBED = 6, 5, 8
ROWS = [
    "",
    "npt:2,kgcoop:8,logit_adjustment:0.5,class_weights",
    "npt(centered=True)",
    "promptsrc,prometar,distillation(temperature=2.0)",
    "cpt",
]
LABELS = np.array([0, 1, 1, 3, 3, 4])


@pytest.fixture(params=range(len(ROWS)), ids=[spec or "cross_entropy" for spec in ROWS])
def row(request):
    return request.param


def unit(rng, *shape):
    vectors = rng.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@functools.cache
def made(row):
    return objectives.parse(ROWS[row])


def outputs_of(prompt):
    """Returns the outputs of a substitute for a prompted clip: normalized, smooth functions of a prompt."""
    features = {}
    for name, leaf in prompt.items():
        features[name] = leaf / jnp.linalg.norm(leaf, axis=-1, keepdims=True)
    product = "bd,kd->bk" if features["text"].ndim == 2 else "bd,bkd->bk"
    return Outputs(10 * jnp.einsum(product, features["image"], features["text"]), features["image"], features["text"])


def setup(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    prompt = {
        "image": jnp.asarray(rng.normal(size=(IMAGES, EMBED)), dtype),
        "text": jnp.asarray(rng.normal(size=(CLASSES, EMBED)), dtype),
    }
    frozen = outputs_of({"image": unit(rng, IMAGES, EMBED), "text": unit(rng, CLASSES, EMBED)})
    reference = Reference(
        *(jnp.asarray(part, dtype) for part in frozen),
        counts=jnp.array([16, 8, 4, 2, 1]),
        clusters=jnp.array([0, 0, 1, 0, 1]),
    )
    return prompt, reference


@functools.cache
def compiled(row):
    """(prompt, reference, labels) -> the loss and its gradient."""

    def loss(prompt, reference, labels):
        return made(row).loss(prompt, outputs_of(prompt), labels, reference)[0]

    return jax.jit(jax.value_and_grad(loss))


def evaluate(row, outputs, reference):
    return jax.jit(made(row).loss)({}, outputs, LABELS, reference)


def test_loss_is_a_float32_scalar_and_the_parts_add_up(row):
    prompt, reference = setup()
    loss, parts = evaluate(row, outputs_of(prompt), reference)
    penalty, own = jax.jit(made(row).penalty)(prompt, outputs_of(prompt), LABELS, reference)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    assert set(parts) == {"cross_entropy", *made(row).weights} == {"cross_entropy", *own}
    total = sum(weight * float(parts[name]) for name, weight in made(row).weights.items())
    assert float(penalty) == pytest.approx(total, rel=1e-5)
    assert float(loss) == pytest.approx(float(parts["cross_entropy"]) + total, rel=1e-5)


def test_half_precision_outputs_give_a_float32_loss(row):
    prompt, reference = setup()
    outputs = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), outputs_of(prompt))
    loss, _ = evaluate(row, outputs, reference)
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(float(compiled(row)(prompt, reference, LABELS)[0]), rel=0.05)


def test_jit_and_vmap_equal_a_loop(row):
    both = [setup(seed) for seed in (1, 2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *both)
    batched, _ = jax.vmap(compiled(row), in_axes=(0, 0, None))(*stacked, LABELS)
    for found, (prompt, reference) in zip(batched, both, strict=True):
        loss, _ = compiled(row)(prompt, reference, LABELS)
        assert float(found) == pytest.approx(float(loss), rel=1e-4)


def test_derivatives_equal_finite_differences_and_second_ones_are_finite(row):
    with jax.enable_x64(True):
        prompt, reference = setup(dtype=np.float64)
        rng = np.random.default_rng(3)
        direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), prompt)

        def along(step):
            moved = jax.tree.map(lambda x, d: x + step * d, prompt, direction)
            return made(row).loss(moved, outputs_of(moved), LABELS, reference)[0]

        @jax.jit
        @jax.vmap
        def derivatives(step):
            first, second = jax.jvp(jax.grad(along), (step,), (1.0,))
            return along(step), first, second

        values, first, second = derivatives(jnp.array([-1e-6, 0.0, 1e-6]))
        np.testing.assert_allclose(first[1], (values[2] - values[0]) / 2e-6, rtol=1e-5)
        assert np.isfinite(second).all()


def test_padded_classes_and_images_change_nothing(row):
    prompt, reference = setup()
    expected = compiled(row)(prompt, reference, LABELS)
    rng = np.random.default_rng(4)

    def fill(array, *counts):
        extra = [(0, count) for count in counts] + [(0, 0)] * (array.ndim - len(counts))
        return jnp.pad(array, extra, constant_values=rng.integers(1, 5))

    filled = {"image": fill(prompt["image"], 3), "text": fill(prompt["text"], 2)}
    reference = Reference(
        logits=fill(reference.logits, 3, 2),
        image_features=fill(reference.image_features, 3),
        text_features=fill(reference.text_features, 2),
        valid=jnp.arange(CLASSES + 2) < CLASSES,
        weights=(jnp.arange(IMAGES + 3) < IMAGES).astype(jnp.float32),
        counts=fill(reference.counts, 2),
        clusters=fill(reference.clusters, 2),
    )
    labels = np.concatenate([LABELS, [-1, 1, 6]])
    value, gradient = compiled(row)(filled, reference, labels)
    assert float(value) == pytest.approx(float(expected[0]), rel=1e-5)
    for name, rows in (("image", IMAGES), ("text", CLASSES)):
        np.testing.assert_allclose(gradient[name][:rows], expected[1][name], rtol=1e-4, atol=1e-6)
        assert not np.any(gradient[name][rows:])


def test_equal_text_features_per_image_equal_shared_ones(row):
    prompt, reference = setup()
    repeated = prompt | {"text": jnp.broadcast_to(prompt["text"], (IMAGES, CLASSES, EMBED))}
    value, gradient = compiled(row)(prompt, reference, LABELS)
    other, by_image = compiled(row)(repeated, reference, LABELS)
    assert float(other) == pytest.approx(float(value), rel=1e-5)
    np.testing.assert_allclose(by_image["text"].sum(axis=0), gradient["text"], rtol=1e-4, atol=1e-6)


def test_reads_lists_the_fields_that_are_read(row):
    prompt, reference = setup()
    needed = made(row).reads
    only = Reference(**{field: getattr(reference, field) for field in needed})
    expected = float(compiled(row)(prompt, reference, LABELS)[0])
    assert float(compiled(row)(prompt, only, LABELS)[0]) == pytest.approx(expected, rel=1e-6)
    for field in needed:
        with pytest.raises(ValueError, match=rf"reads reference\.{field}, which is None"):
            evaluate(row, outputs_of(prompt), only._replace(**{field: None}))


def test_every_name_has_a_row():
    named = {term.name for spec in ROWS for term in objectives.terms(spec)}
    assert named == set(objectives.NAMES)
