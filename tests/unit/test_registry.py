"""Registries of factories, and the text form of a call."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gram_jax.errors import InputError
from gram_jax.registry import Call, Registry, parse_call, split_calls


def coop(num_tokens=4, init_text=None):
    return ("coop", num_tokens, init_text)


def needs(size):
    return ("needs", size)


def bare():
    return ("bare",)


@pytest.fixture
def registry():
    return Registry("tuner", needs, coop, bare)


def test_members_are_made_by_name_and_by_text(registry):
    assert registry.names == tuple(registry) == ("bare", "coop", "needs")
    assert "coop" in registry
    assert "ivlp" not in registry
    assert registry.make("coop", init_text="a") == ("coop", 4, "a")
    assert registry.parse(" coop( num_tokens = 2 ) ") == ("coop", 2, None)
    assert registry.parse("bare") == registry.parse("bare()") == ("bare",)
    assert list(registry.settings("coop")) == ["num_tokens", "init_text"]


def test_a_registered_factory_is_known_by_its_name(registry):
    @registry.register
    def mine(depth=1):
        return ("mine", depth)

    assert mine(3) == registry.parse("mine(depth=3)") == ("mine", 3)
    assert registry.names == ("bare", "coop", "mine", "needs")
    with pytest.raises(InputError, match="tuner 'mine'"):
        registry.register(mine)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cop", "tuner 'cop'.*'coop'.*bare, coop, needs"),
        ("zzz", "tuner 'zzz'; .*bare, coop, needs"),
        ("coop(num_token=3)", "'coop'.*'num_token'.*'num_tokens'.*num_tokens, init_text"),
        ("bare(x=1)", "'bare'.*'x'"),
        ("needs", "'needs'.*'size'"),
    ],
)
def test_unknown_names_and_settings_are_named_with_the_closest(registry, text, message):
    with pytest.raises(InputError, match=message):
        registry.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "3", "a b", "coop(", "coop(4)", "coop(x=1, x=2)", "coop(**{'x': 1})", "coop(x=y)", "a.b", "coop(x=1)(y=2)",
        "coop(x=__import__('os'))", "coop(x=" + "(" * 300, "coop\0",
    ],
)  # fmt: skip
def test_other_texts_are_refused_and_nothing_is_evaluated(text):
    with pytest.raises(InputError, match="NAME"):
        parse_call(text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
NAMES = st.from_regex(r"[a-z]{2,8}_", fullmatch=True)
CALLS = st.builds(Call, NAMES, st.dictionaries(NAMES, VALUES, max_size=3))


def test_the_flag_is_named():
    with pytest.raises(InputError, match=r"^--tuner=coop\(1 is not NAME"):
        parse_call("coop(1", "tuner")


@given(st.lists(CALLS, max_size=3))
def test_calls_survive_their_text_form(calls):
    texts = split_calls(", ".join(map(str, calls)))
    assert [parse_call(text) for text in texts] == calls


def test_commas_inside_brackets_and_quotes_do_not_split():
    assert split_calls("a(x=(1, 2), y='b, c'):3 , d") == ["a(x=(1, 2), y='b, c'):3", "d"]
    assert split_calls("a,,b,") == ["a", "", "b", ""]
    assert split_calls("  ") == []
