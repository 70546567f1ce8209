"""The regularizers of KgCoOp, PromptSRC, ProMetaR and ProGrad against PyTorch; prompt aggregation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.objectives import (
    Reference,
    distillation,
    gaussian_weights,
    kgcoop,
    prometar,
    promptsrc,
    regularized,
    textual_diversity,
)
from gram_jax.tuners import Outputs

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="the reference is written in PyTorch, which is not installed")

IMAGES, CLASSES, EMBED = 6, 4, 9
SCALE = 20.0


def unit(rng, *shape):
    vectors = rng.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def draw(seed=0):
    """Returns unnormalized features of the prompted and of the frozen clip, and labels."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(IMAGES, EMBED)), rng.normal(size=(CLASSES, EMBED))
    frozen = unit(rng, IMAGES, EMBED), unit(rng, CLASSES, EMBED)
    return own, frozen, rng.integers(0, CLASSES, IMAGES)


def outputs(features):
    images, texts = (part / jnp.linalg.norm(part, axis=-1, keepdims=True) for part in map(jnp.float32, features))
    return Outputs(SCALE * images @ texts.T, images, texts)


def torch_kgcoop(own, frozen):
    return {"kgcoop": 1.0 - torch.cosine_similarity(own[1], frozen[1], dim=1, eps=1e-7).mean()}


def torch_promptsrc(own, frozen):
    logits, teacher = (SCALE * images @ texts.T for images, texts in (own, frozen))
    kl = F.kl_div(F.log_softmax(logits, 1), F.log_softmax(teacher, 1), reduction="sum", log_target=True)
    return {
        "promptsrc_text": F.l1_loss(own[1], frozen[1]),
        "promptsrc_image": F.l1_loss(own[0], frozen[0]),
        "promptsrc_logits": kl / logits.numel(),
    }


def torch_distillation(own, frozen):
    logits, teacher = (SCALE * images @ texts.T for images, texts in (own, frozen))
    temperature = 3.0
    losses = -F.softmax(teacher / temperature, -1) * F.log_softmax(logits / temperature, -1) * temperature**2
    return {"distillation": losses.sum(1).mean()}


def torch_prometar(own, frozen):
    found = torch_promptsrc(own, frozen)
    return {"prometar_text": found["promptsrc_text"], "prometar_image": found["promptsrc_image"]}


@needs_torch
@pytest.mark.parametrize(
    ("factory", "restated", "weights"),
    [
        (kgcoop, torch_kgcoop, {"kgcoop": 8.0}),
        (lambda: distillation(temperature=3.0), torch_distillation, {"distillation": 1.0}),
        (promptsrc, torch_promptsrc, {"promptsrc_text": 25.0, "promptsrc_image": 10.0, "promptsrc_logits": 1.0}),
        (prometar, torch_prometar, {"prometar_text": 50.0, "prometar_image": 20.0}),
    ],
)
def test_loss_and_gradient_equal_pytorch(factory, restated, weights):
    own, frozen, labels = draw()
    tensors = [torch.tensor(part, requires_grad=True) for part in own]
    images, texts = (F.normalize(tensor) for tensor in tensors)
    expected = restated([images, texts], [torch.tensor(part) for part in frozen])
    total = F.cross_entropy(SCALE * images @ texts.T, torch.tensor(labels))
    total = total + sum(weights[name] * value for name, value in expected.items())
    total.backward()

    objective = regularized(factory())
    reference = outputs(frozen)

    @jax.jit
    @jax.value_and_grad
    def loss(features):
        return objective({}, outputs(features), labels, reference)[0]

    features = [jnp.float32(part) for part in own]
    value, gradient = loss(features)
    parts = objective({}, outputs(features), labels, reference)[1]
    assert float(value) == pytest.approx(total.item(), rel=1e-5)
    for found, tensor in zip(gradient, tensors, strict=True):
        wanted = tensor.grad.numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
    assert {name: float(value) for name, value in parts.items() if name in expected} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-5
    )


def test_features_that_are_held_cost_nothing():
    own, _, labels = draw()
    found = outputs(own)
    _, parts = regularized(kgcoop() | promptsrc())({}, found, labels, found)
    assert {name for name, value in parts.items() if abs(float(value)) > 1e-6} == {"cross_entropy"}


@needs_torch
def test_the_mean_over_templates_comes_before_the_norm():
    features = 10.0 ** np.array([-1, 0, 1])[:, None, None] * np.random.default_rng(1).normal(size=(3, CLASSES, EMBED))
    expected = torch.tensor(features).mean(dim=0)
    expected = (expected / expected.norm(dim=-1, keepdim=True)).numpy()
    np.testing.assert_allclose(textual_diversity(jnp.float32(features)), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"\[4, 9\]"):
        textual_diversity(jnp.ones((4, 9)))
    with pytest.raises(ValueError, match=r"\[0, 4, 9\]"):
        textual_diversity(jnp.ones((0, 4, 9)))


def test_aggregation_weights_equal_the_published_code():
    epochs, mean, std = 20, 6.0, 10.0
    bell = np.array([np.exp(-0.5 * ((e - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi)) for e in range(1, epochs + 1)])
    np.testing.assert_allclose(gaussian_weights(epochs, mean, std), bell / sum(bell), rtol=1e-12)


def test_a_bell_beyond_every_epoch_takes_the_nearest():
    np.testing.assert_allclose(gaussian_weights(5, mean=200.0, std=1.0), [0, 0, 0, 0, 1], atol=1e-12)
    assert gaussian_weights(1, 30, 30).tolist() == [1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0, 1.0, 1.0), "epochs=0"),
        ((True, 1.0, 1.0), "epochs=True"),
        ((3, float("nan"), 1.0), "mean=nan"),
        ((3, 1.0, 0.0), "std=0.0"),
    ],
)
def test_impossible_bells_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        gaussian_weights(*settings)


def test_what_a_regularizer_reads_and_does_not_get_is_named():
    own, _, labels = draw()
    with pytest.raises(ValueError, match=r"kgcoop .*reference\.text_features"):
        regularized(kgcoop())({}, outputs(own), labels)
    with pytest.raises(ValueError, match=r"text_features .*\[4, 9\].*\[3, 9\]"):
        regularized(promptsrc())({}, outputs(own), labels, Reference(text_features=jnp.ones((3, 9))))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), "hot"])
def test_impossible_temperatures_are_refused(temperature):
    with pytest.raises(ValueError, match=f"temperature={temperature!r}"):
        distillation(temperature=temperature)
