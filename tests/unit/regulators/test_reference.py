"""Regulators with a reference gradient: against PyTorch, at the published size, on a prompt and its two losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax import objectives, regulators, tuners

try:
    import torch
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="the reference is written in PyTorch, which is not installed")

CLASSES, TOKENS, WIDTH = 3, 4, 6


def draw(seed=0):
    """Returns a gradient and its reference: the prompt of one layer, prompts of two layers, a bias."""
    rng = np.random.default_rng(seed)
    shapes = {"context": (TOKENS, WIDTH), "deep": (2, TOKENS, WIDTH), "bias": (WIDTH,)}
    return tuple({name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(2))


def blocks(array):
    """Returns the parts that are separate parameters in the published codes: the prompt of each layer."""
    return array.reshape(-1, *array.shape[-2:])


def torch_prograd(gradient, reference, strength):
    gradient, reference = torch.tensor(gradient), torch.tensor(reference)
    direction = reference / torch.linalg.norm(reference)
    unit = gradient / torch.linalg.norm(gradient)
    if torch.dot(unit.flatten(), direction.flatten()) < 0:
        return (gradient - strength * torch.dot(gradient.flatten(), direction.flatten()) * direction).numpy()
    return gradient.numpy()


def torch_prometar(gradient, reference, inner, outer, rate):
    gradient, reference = torch.tensor(gradient), torch.tensor(reference)
    network = torch.nn.Sequential(
        torch.nn.Linear(*inner.shape, bias=False), torch.nn.Linear(*outer.shape, bias=False)
    ).double()
    for layer, weights in zip(network, (inner, outer), strict=True):
        layer.weight.data = torch.tensor(weights.T, dtype=torch.float64)
    inputs = torch.cat((gradient, reference), 0).reshape(1, -1)
    gamma = torch.sigmoid(network(inputs)).repeat_interleave(rate, -1).reshape(gradient.shape)
    return (gradient + gamma * reference).detach().numpy()


@needs_torch
@pytest.mark.parametrize("strength", [1.0, 0.8])
def test_prograd_equals_the_published_rule(strength):
    grads, reference = draw()
    reference["context"] = -grads["context"] + 0.3 * reference["context"]  # a conflict
    reference["bias"] = grads["bias"] + 0.3 * reference["bias"]  # none
    regulator = regulators.prograd(strength)
    phi = regulator.init(jax.random.key(0), grads)
    assert not jax.tree.leaves(phi)
    found = jax.jit(regulator.apply)(phi, *(jax.tree.map(jnp.float32, part) for part in (grads, reference)))
    for name, leaf in found.items():
        if name == "bias":
            expected = torch_prograd(grads[name], reference[name], strength)
        else:
            pairs = zip(blocks(grads[name]), blocks(reference[name]), strict=True)
            expected = np.stack([torch_prograd(*pair, strength) for pair in pairs]).reshape(leaf.shape)
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["bias"], jnp.float32(grads["bias"]))
    assert np.abs(found["context"] - grads["context"]).max() > 0.1


@needs_torch
def test_prometar_equals_the_published_rule():
    grads, reference = draw(1)
    regulator = regulators.prometar(rate=8)  # 4 x 6 entries, 3 gates
    shapes = jax.eval_shape(regulator.init, jax.random.key(0), grads)
    rng = np.random.default_rng(2)
    phi = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)
    found = jax.jit(regulator.apply)(*(jax.tree.map(jnp.float32, part) for part in (phi, grads, reference)))
    for name in ("context", "deep"):
        parts = [blocks(part) for part in (grads[name], reference[name], phi[name]["inner"], phi[name]["outer"])]
        expected = np.stack([torch_prometar(*part, rate=8) for part in zip(*parts, strict=True)])
        np.testing.assert_allclose(blocks(found[name]), expected, rtol=1e-5, atol=1e-5)
    # 6 entries, one gate.
    inner, outer = phi["bias"]["inner"], phi["bias"]["outer"]
    gamma = 1 / (1 + np.exp(-np.concatenate([grads["bias"], reference["bias"]]) @ inner @ outer))
    np.testing.assert_allclose(found["bias"], grads["bias"] + gamma * reference["bias"], rtol=1e-5, atol=1e-5)


def test_prometar_has_the_published_number_of_parameters():
    # Of PromptSRC's prompts at ViT-B/16 size, 4 + 4 tokens over 9 layers: (2nd nd / 8 + (nd / 8)^2) for each layer.
    prompt = {
        side: {
            "tokens": jax.ShapeDtypeStruct((4, width), "float32"),
            "deep": jax.ShapeDtypeStruct((8, 4, width), "float32"),
        }
        for side, width in (("text", 512), ("visual", 768))
    }
    phi = jax.eval_shape(regulators.prometar().init, jax.random.key(0), prompt)
    expected = 9 * sum(2 * size * size // 8 + (size // 8) ** 2 for size in (4 * 512, 4 * 768))
    assert tuners.num_parameters(phi) == expected == 32_587_776


def test_prometar_starts_as_linear_layers_of_pytorch():
    phi = regulators.prometar(rate=1).init(jax.random.key(0), {"context": jnp.zeros((8, 16))})["context"]
    for weights, inputs in ((phi["inner"], 256), (phi["outer"], 128)):
        assert weights.shape == (inputs, 128)
        assert 0.99 < np.abs(weights).max() * np.sqrt(inputs) <= 1
        assert float(np.std(weights)) == pytest.approx(np.sqrt(1 / 3 / inputs), rel=0.02)  # of U(-a, a): a / sqrt(3)


def test_the_setting_names_what_the_reference_is_the_gradient_of(clip, classes):
    tuner, regulator = tuners.coop(), regulators.prograd()
    prompt = tuner.init(jax.random.key(0), clip, classes)
    features = jax.random.normal(jax.random.key(1), (3, clip.config.embed_dim))
    features = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
    # The labels are the least likely classes of the frozen clip, so the two gradients conflict.
    frozen = tuners.frozen_outputs(clip, classes, features)
    labels = jnp.argmin(frozen.logits, axis=-1)
    objective = objectives.parse(regulator.settings["reference"], tuner=tuner)

    @jax.jit
    @jax.grad
    def gradient(prompt, share):
        outputs = tuner.apply(prompt, clip, classes, features)
        knowledge, _ = objective.penalty(prompt, outputs, None, frozen)
        return share * knowledge + (1 - share) * objectives.cross_entropy(outputs, labels)

    grads, reference = gradient(prompt, 0.0), gradient(prompt, 1.0)
    assert float(jnp.vdot(grads["context"], reference["context"])) < 0
    found = regulator.apply(regulator.init(jax.random.key(2), prompt), grads, reference)["context"]
    lengths = jnp.linalg.norm(found) * jnp.linalg.norm(reference["context"])
    assert (
        abs(float(jnp.vdot(found, reference["context"]) / lengths)) < 1e-4
    )  # no step against the knowledge of the clip


@pytest.mark.parametrize("name", ["prograd", "prometar"])
def test_a_reference_that_does_not_fit_is_named(name):
    regulator = regulators.make(name)
    grads = {"context": jnp.ones((4, 6))}
    phi = regulator.init(jax.random.key(0), grads)
    with pytest.raises(ValueError, match=f"{name} .*context="):
        regulator.apply(phi, grads, None)
    for wrong in ({"tokens": jnp.ones((4, 6))}, {"context": jnp.ones((4, 5))}, jnp.ones(5)):
        with pytest.raises(ValueError, match=f"{name} got a reference gradient"):
            regulator.apply(phi, grads, wrong)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("prograd", {"strength": -1.0}, "strength=-1.0"),
        ("prograd", {"reference": ""}, "reference=''"),
        ("prometar", {"reference": 3}, "reference=3"),
        ("prometar", {"rate": 0}, "rate=0"),
        ("prometar", {"per": "token"}, "per='token'.*layer, all"),
        ("prometar", {"normalized": 1}, "normalized=1"),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        regulators.make(name, **settings)
