"""Meta-gradients of a quadratic problem, in closed form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax import regulators
from gram_jax.meta import adapt

SIZE = 6  # one token of six channels
RATE = 0.3


class Quadratic:
    """L(theta) = (theta - best)^t A (theta - best) / 2, whose regulated steps are linear: R scales by 1 + s."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(SIZE, SIZE))
        self.matrix = root @ root.T / SIZE
        self.best, self.initial, self.target = rng.normal(size=(3, SIZE))
        self.scale = 0.3 * rng.normal(size=SIZE)
        self.contraction = np.eye(SIZE) - RATE * np.diag(1 + self.scale) @ self.matrix

    def power(self, k):
        return np.linalg.matrix_power(self.contraction, k)

    def at(self, k):
        return self.best + self.power(k) @ (self.initial - self.best)

    def raw_gradient(self, k):
        return self.matrix @ (self.at(k) - self.best)

    def meta_gradients(self, steps, last, first_order):
        """Returns the gradients of |theta_K - target|^2 / 2 by theta_0, s and the rate, through the last steps only."""
        residual = self.at(steps) - self.target
        initial = residual if first_order else self.power(last).T @ residual
        scale, rate = np.zeros(SIZE), 0.0
        for k in range(steps - last, steps):
            # What a change of step k becomes by the end.
            pulled = residual if first_order else self.power(steps - 1 - k).T @ residual
            scale -= RATE * pulled * self.raw_gradient(k)
            rate -= pulled @ ((1 + self.scale) * self.raw_gradient(k))
        return initial, scale, rate


@pytest.mark.parametrize("steps", [1, 3, 8])
@pytest.mark.parametrize("gradient", ["exact", "first_order", 1, 3, 8])
def test_meta_gradients_equal_the_closed_form(steps, gradient):
    if isinstance(gradient, int) and gradient > steps:
        with pytest.raises(ValueError, match=f"gradient={gradient} .*steps={steps}"):
            adapt(None, {}, {}, None, regulator=None, steps=steps, learning_rate=0.1, gradient=gradient)
        return
    problem = Quadratic()
    with jax.enable_x64(True):

        @jax.jit
        def meta_loss(initial, scale, rate):
            def loss(prompt, batch):
                offset = prompt["x"][0] - batch["best"]
                return offset @ batch["matrix"] @ offset / 2

            support = {"best": jnp.asarray(problem.best), "matrix": jnp.asarray(problem.matrix)}
            phi = {"x": {"scale": scale, "shift": jnp.zeros(SIZE)}}
            end, losses = adapt(
                loss,
                {"x": initial[None]},
                phi,
                support,
                regulator=regulators.affine(),
                steps=steps,
                learning_rate={"x": rate},
                gradient=gradient,
                trajectory=True,
            )
            return jnp.sum((end["x"] - problem.target) ** 2) / 2, (end["x"][0], losses)

        arguments = jnp.asarray(problem.initial), jnp.asarray(problem.scale), jnp.asarray(RATE)
        found, (end, losses) = jax.jit(jax.grad(meta_loss, argnums=(0, 1, 2), has_aux=True))(*arguments)
    np.testing.assert_allclose(end, problem.at(steps), rtol=1e-12)
    offsets = [problem.at(k) - problem.best for k in range(steps)]
    np.testing.assert_allclose(losses, [offset @ problem.matrix @ offset / 2 for offset in offsets], rtol=1e-12)
    last = gradient if isinstance(gradient, int) else steps
    expected = problem.meta_gradients(steps, last, gradient == "first_order")
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


def test_no_step_is_the_start_itself():
    prompt = {"x": jnp.arange(3.0)}

    def loss(prompt, batch):
        return jnp.sum(prompt["x"] ** 2)

    settings = {"regulator": regulators.identity(), "steps": 0, "learning_rate": 0.1}
    adapted, losses = adapt(loss, prompt, {"x": {}}, None, trajectory=True, **settings)
    np.testing.assert_array_equal(adapted["x"], prompt["x"])
    assert losses.shape == (0,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, "steps=-1"),
        ({"steps": 1.5}, r"steps=1\.5"),
        ({"gradient": "second"}, "gradient='second'"),
        ({"gradient": 0}, "gradient=0"),
        ({"learning_rate": {"y": 0.1}}, "learning_rate .*structure"),
        ({"learning_rate": jnp.ones(3)}, "learning_rate .*structure"),
    ],
)
def test_bad_settings_are_named(changes, message):
    settings = {"regulator": regulators.identity(), "steps": 2, "learning_rate": 0.1, **changes}
    with pytest.raises(ValueError, match=message):
        adapt(lambda prompt, batch: jnp.sum(prompt["x"]), {"x": jnp.ones(3)}, {"x": {}}, None, **settings)
