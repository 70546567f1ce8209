"""Short texts of large values, and values that survive pickle."""

from __future__ import annotations

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gram_jax as gram
from gram_jax import artifacts, meta, regulators, tuners, tuning
from gram_jax.evaluation import Predictions, Results, Row, baselines
from gram_jax.summary import short
from gram_jax.testing import tiny_clip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.zeros((3, 2), np.int32), "int32[3, 2]"),
        (jnp.zeros(()), "float32[]"),
        (jax.ShapeDtypeStruct((4,), jnp.bfloat16), "bfloat16[4]"),
        (None, "None"),
        ("x" * 100, "'" + "x" * 56 + "..."),
        ({}, "{}"),
        ((), "()"),
        ([1, 2], "(1, 2)"),
        (list(range(1000)), "(0, 1, 2, 3, ... 1000 in all)"),
        ({"a": {"b": {"c": {"d": 1}}}}, "{'a': {'b': {'c': {... 1 in all}}}}"),
        (max, "<max>"),
        (
            Predictions(np.zeros((2, 9)), np.zeros((2, 9))),
            "Predictions(labels=float64[2, 9], confidence=float64[2, 9])",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_short_texts(value, text):
    assert short(value) == text


@pytest.fixture(scope="module")
def things():
    """Things that hold thousands of numbers."""
    clip, tuner, regulator = tiny_clip(), tuners.coop(num_tokens=4), regulators.gated_low_rank(rank=2)
    prompt = tuner.init(jax.random.key(0), clip, None)
    learned = meta.init_meta(prompt, regulator.init(jax.random.key(1), prompt), 0.1)
    state = tuning.make_tuning(tuner, regulator).init(jax.tree.map(lambda leaf: leaf[None], prompt))
    rows = tuple(Row("coop", "few_shot", "toy", "accuracy", seed / 999, seed=seed) for seed in range(999))
    features = jnp.ones((5, clip.config.embed_dim))
    return [
        clip,
        gram.data.load_dataset("glyphs:chess"),
        gram.data.load_corpus("glyphs", pairs=500),
        learned,
        artifacts.LoadedMeta(learned, tuner, regulator, {"steps": list(range(999))}),
        artifacts.LoadedPrompt(prompt, tuner),
        tuning.Tuned({5: prompt}, {"loss": np.zeros((50, 3))}),
        state,
        Results({"seeds": list(range(999))}, {}, rows),
        tuner.apply(prompt, clip, clip.class_tokens(["a", "b"]), features),
    ]


def test_what_a_notebook_shows_is_short_and_names_the_class(things):
    for thing in things:
        text = repr(thing)
        assert text.startswith(f"{type(thing).__name__.lstrip('_')}("), text
        assert len(text) <= 1000, text


def test_a_clip_is_shown_by_its_sizes_even_while_it_is_traced(things):
    clip, shown = things[0], []
    count = sum(np.asarray(leaf).size for leaf in jax.tree.leaves(clip.params))
    assert f"parameters={count:,}, dtype=float32" in repr(clip)
    jax.jit(lambda clip: shown.append(repr(clip)) or clip.params["logit_scale"])(clip)
    assert shown == [repr(clip)]


MEMBERS = [tuners.make(name) for name in tuners.NAMES] + [
    tuners.parse("ivlp(depth=2, num_visual=3)"),
    regulators.identity(),
    regulators.prometar(),
    regulators.prograd(strength=0.5),
    regulators.structured(prototypes=3),
    regulators.gated_low_rank(rank=2, context_dim=8),
    *map(baselines.make, baselines.NAMES),
    baselines.make("tip_adapter", epochs=3, alpha=1.5),
]


@pytest.mark.parametrize("member", MEMBERS, ids=repr)
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_methods_pickle_by_name_and_settings(member, protocol):
    kept = pickle.dumps(member, protocol)
    assert len(kept) < 1000
    for again in (pickle.loads(kept), copy.copy(member), copy.deepcopy(member)):
        assert type(again) is type(member)
        assert (again.name, dict(again.settings)) == (member.name, dict(member.settings))
        assert again[4:] == member[4:]  # what it needs and changes
    assert repr(member).startswith(f"{member.name}(") or repr(member) == member.name


def test_a_method_that_is_not_registered_is_copied_and_not_pickled():
    own = tuners.coop()._replace(name="mine")
    assert copy.deepcopy(own) == own
    with pytest.raises((AttributeError, pickle.PicklingError), match="local"):
        pickle.dumps(own)


def test_a_restored_tuner_computes_the_same():
    clip, tuner = tiny_clip(), tuners.coop(num_tokens=3)
    again = pickle.loads(pickle.dumps(tuner))
    prompts = [each.init(jax.random.key(0), clip, None)["context"] for each in (tuner, again)]
    np.testing.assert_array_equal(*prompts)
