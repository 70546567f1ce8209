"""Objectives from text: what is parsed, and what is refused by name."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from gram_jax import objectives, tuners
from gram_jax.errors import InputError
from gram_jax.objectives import Regularizer, Term
from gram_jax.objectives.compose import REGISTRY
from gram_jax.registry import Registry
from gram_jax.tuners import Outputs


def test_weights_default_to_the_published_ones():
    found = objectives.parse(" promptsrc(image=0.0) , kgcoop:2.5 ")
    assert dict(found.weights) == {"promptsrc_text": 25.0, "promptsrc_logits": 1.0, "kgcoop": 2.5}
    assert found.reads == {"text_features", "logits"}
    assert dict(objectives.parse("kgcoop").weights) == {"kgcoop": 8.0}
    assert dict(objectives.parse("").weights) == {}


def test_terms_are_the_programmatic_form():
    terms = objectives.terms("npt(centered=True, text=2.0):0.5,kgcoop,logit_adjustment:2")
    assert terms == (
        Term("npt", 0.5, {"centered": True, "text": 2.0}),
        Term("kgcoop", 8.0, {}),
        Term("logit_adjustment", 2.0, {}),
    )
    assert objectives.terms(",".join(map(str, terms))) == objectives.terms(terms) == terms
    assert objectives.parse(terms).weights == objectives.parse("npt(centered=True, text=2.0):0.5,kgcoop").weights
    by_functions = objectives.make("npt", weight=0.5, centered=True, text=2.0) | objectives.kgcoop()
    assert {name: part.weight for name, part in by_functions.items()} == dict(objectives.parse(terms).weights)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("kgcop:8", r"'kgcop' .*'kgcoop'.* npt"),
        ("kgcoop:8,", "''"),
        ("kgcoop:eight", "'eight' of 'kgcoop'"),
        ("kgcoop:", "'' of 'kgcoop'"),
        ("kgcoop:nan", "'kgcoop': weight=nan"),
        ("kgcoop:1,kgcoop:2", "'kgcoop' twice"),
        ("kgcoop(text=1.0)", "'kgcoop'.*'text'"),
        ("kgcoop(weight=1.0)", "kgcoop:1.0"),
        ("kgcoop(8)", r"'kgcoop\(8\)'"),
        ("promptsrc(images=1.0):2", "'promptsrc'.*'images'.*'image'"),
        ("class_weights(beta=1.0)", "'class_weights'.*'beta'"),
        ("logit_adjustment:-1", "adjustment=-1.0"),
        ("distillation(temperature=0)", "temperature=0"),
        ([Term("nptt", 1.0)], "'nptt'.*'npt'"),
        ([Term("npt", 1.0, {"center": True})], "'npt'.*'center'.*'centered'"),
    ],
)
def test_what_cannot_be_parsed_is_named(spec, message):
    with pytest.raises(InputError, match=message):
        objectives.parse(spec)


def test_regularizers_that_cannot_change_the_prompt_are_refused():
    with pytest.raises(InputError, match=r"kgcoop .*text.*'vpt'"):
        objectives.parse("kgcoop:8", tuner=tuners.vpt())
    # One of several parts that changes the prompt is enough.
    objectives.parse("promptsrc", tuner=tuners.vpt())
    objectives.parse("kgcoop:8,promptsrc", tuner=tuners.coop())


def test_a_reference_must_name_a_regularizer():
    for reference, message in (("distilation", "'distillation'"), ("class_weights", "'class_weights'")):
        with pytest.raises(InputError, match=message):
            objectives.batch_loss(tuners.coop(), reference=reference)


def small_text(weight: float = 0.5, *, power: int = 2):
    """A regularizer of a user's own."""

    def function(prompt, outputs, labels, reference):
        return jnp.mean(jnp.abs(outputs.text_features) ** power)

    return {"small_text": Regularizer(weight, function, sides=("text",))}


def test_a_registered_regularizer_is_known_by_its_name(monkeypatch):
    registry = Registry("objective", *(REGISTRY.factory(name) for name in REGISTRY))
    registry.register(small_text)
    monkeypatch.setattr("gram_jax.objectives.compose.REGISTRY", registry)
    objective = objectives.parse("small_text(power=1),kgcoop:2")
    assert dict(objective.weights) == {"small_text": 0.5, "kgcoop": 2.0}
    outputs = Outputs(jnp.zeros((1, 2)), jnp.ones((1, 1)), jnp.array([[3.0], [-1.0]]))
    penalty, parts = objectives.parse("small_text(power=1):4").penalty({}, outputs, None)
    assert (float(parts["small_text"]), float(penalty)) == (2.0, 8.0)
    with pytest.raises(InputError, match=r"small_text .*'vpt'"):
        objectives.parse("small_text", tuner=tuners.vpt())
