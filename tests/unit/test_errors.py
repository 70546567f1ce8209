"""Shared argument checks: accepted values, and messages that name the argument, the value and the remedy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gram_jax.errors import (
    InputError,
    differences,
    examples,
    nearest,
    require_bool,
    require_int,
    require_known,
    require_number,
)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: require_known("optimizer", "adm", ["adam", "sgd"]), "optimizer='adm'.*'adam'.*adam, sgd"),
        (lambda: require_known("part", "x", []), "part='x'.*none"),
        (lambda: require_known("optimizer", 3, ["adam"]), "optimizer=3"),
        (lambda: require_int("n", 0), "n=0: .*at least 1"),
        (lambda: require_int("n", 1.0), "n=1.0"),
        (lambda: require_int("n", "1"), "n='1'"),
        (lambda: require_int("n", True), "n=True"),
        (lambda: require_int("n", None), "n=None"),
        (lambda: require_int("n", 9, least=2, most=8), "n=9: .*from 2 to 8"),
        (lambda: require_bool("centered", 1), "centered=1: .*True or False"),
        (lambda: require_number("rate", 0, above=0), "rate=0: .*above 0"),
        (lambda: require_number("rate", -0.5, least=0), "rate=-0.5: .*at least 0"),
        (lambda: require_number("rate", 1, least=0, below=1), "rate=1: .*at least 0 and less than 1"),
        (lambda: require_number("rate", math.nan), "rate=nan"),
        (lambda: require_number("rate", -math.inf), "rate=-inf"),
        (lambda: require_number("rate", True), "rate=True"),
        (lambda: require_number("rate", "0.1"), "rate='0.1'"),
    ],
)
def test_bad_values_are_named_in_one_line(check, message):
    with pytest.raises(InputError, match=message) as caught:
        check()
    assert "\n" not in str(caught.value)


def test_good_values_pass():
    require_known("optimizer", "sgd", ["adam", "sgd"])
    require_int("n", 0, least=0)
    require_int("n", 8, most=8)
    require_bool("centered", False)
    require_number("rate", 10**400, above=0)  # an integer of any size is a finite number
    require_number("rate", np.float64(0.5), least=0.5, below=1)


def test_only_close_words_are_suggested():
    assert nearest("kgcop", ["kgcoop", "npt"]) == " (did you mean 'kgcoop'?)"
    assert nearest("zzz", ["kgcoop", "npt"]) == nearest("npt", []) == ""


def test_examples_and_differences():
    assert examples(["a", "b"]) == "'a', 'b'"
    assert examples(range(5), shown=2).endswith("3 more")
    assert differences({"a": 1, "b": 2}, {"a": 1, "c": None}) == ["b was 2 and is None"]
