"""Objectives from flags: what is read, what is refused and with which words."""

from __future__ import annotations

import pytest

from gram_jax import objectives, tuners


def test_weights_are_read_and_default_to_the_published_ones():
    found = objectives.make(" promptsrc , kgcoop:2.5 ", promptsrc={"image": 0.0})
    assert dict(found.weights) == {"promptsrc_text": 25.0, "promptsrc_logits": 1.0, "kgcoop": 2.5}
    assert found.reads == {"text_features", "logits"}
    assert dict(objectives.make("kgcoop").weights) == {"kgcoop": 8.0}
    assert dict(objectives.make("").weights) == {}


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        ("kgcop:8", {}, r"no objective 'kgcop' \(did you mean 'kgcoop'\?\); known: "),
        ("kgcoop:8,", {}, "has an empty entry"),
        ("kgcoop:eight", {}, "weight of 'kgcoop' is 'eight'; give a number, as in kgcoop:1.0"),
        ("kgcoop:", {}, "weight of 'kgcoop' is ''"),
        ("kgcoop:nan", {}, "weight of regularizer 'kgcoop' must be a finite number, found nan"),
        ("kgcoop:1,kgcoop:2", {}, "names 'kgcoop' twice"),
        ("kgcoop", {"kgcoop": {"text": 1.0}}, "kgcoop has no setting 'text'; it has none besides its number"),
        ("promptsrc", {"promptsrc": {"images": 1.0}}, r"no setting 'images' \(did you mean 'image'\?\)"),
        ("class_weights", {"class_weights": {"beta": 1.0}}, "class_weights has no setting 'beta'; it has none besides"),
        ("logit_adjustment:-1", {}, "adjustment is -1.0; give a number of at least 0"),
        ("kgcoop", {"promptsrc": {}}, "settings for 'promptsrc' are given, but 'kgcoop' does not name it"),
    ],
)
def test_what_cannot_be_read_is_named(spec, settings, message):
    with pytest.raises(ValueError, match=message):
        objectives.make(spec, **settings)


def test_what_cannot_reach_the_prompt_is_refused_with_the_reason():
    message = "kgcoop acts on text features, which no prompt of the tuner 'vpt' changes: its gradient is 0"
    with pytest.raises(ValueError, match=message):
        objectives.make("kgcoop:8", tuner=tuners.vpt())
    # One of several parts that reaches the prompt is enough.
    objectives.make("promptsrc", tuner=tuners.vpt())
    objectives.make("kgcoop:8,promptsrc", tuner=tuners.coop())
