"""Templates of published recipes: the teacher of ProGrad, and the class prompts of DPT."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import gram_jax as gram
from gram_jax import evaluation, tuners
from gram_jax.data import coop, load_dataset
from gram_jax.evaluation import Encoder
from gram_jax.evaluation.references import templates_of
from gram_jax.testing import tiny_clip


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(seed=3, text_layers=1, vision_layers=2, text_context_length=40)


# Read off the public code of ProGrad (trainers/prograd.py) and DPT (trainers/DPT.py).
TEACHERS = {
    "oxford_pets": "a type of pet, a photo of a {}.", "oxford_flowers": "a type of flower, a photo of a {}.",
    "fgvc_aircraft": "a type of aircraft, a photo of a {}.", "dtd": "a texture of {}.",
    "eurosat": "a centered satellite photo of {}.", "stanford_cars": "a photo of a {}.",
    "food101": "a type of food, a photo of {}.", "sun397": "a photo of a {}.", "caltech101": "a photo of a {}.",
    "ucf101": "a photo of a person doing {}.", "imagenet": "a photo of a {}.",
}  # fmt: skip


@pytest.mark.parametrize("name", TEACHERS)
def test_the_teacher_of_prograd_reads_the_published_texts(name):
    dataset = dataclasses.replace(
        load_dataset("glyphs:chess"), name=f"coop:{name}", template=coop.facts(f"coop:{name}").template
    )
    assert templates_of("distillation", dataset) == (TEACHERS[name],)


def test_class_prompts_of_dpt_are_chosen_under_the_template_of_the_dataset(clip):
    encoder, names, template = Encoder(clip), ("cat", "dog"), "a type of pet, a {}."
    own, _ = encoder.classes(tuners.dpt(class_layers=1), names, template)
    expected = clip.class_tokens(list(names), template)
    width = expected.token_ids.shape[1]
    np.testing.assert_array_equal(own.token_ids[:2, :width], expected.token_ids)
    np.testing.assert_array_equal(own.eot[:2], expected.eot)
    np.testing.assert_array_equal(own.tail_ids[:2, : expected.tail_ids.shape[1]], expected.tail_ids)
    common, _ = encoder.classes(tuners.coop(), names, template)
    photo = clip.class_tokens(list(names), "a photo of a {}.")
    np.testing.assert_array_equal(common.token_ids[:2, : photo.token_ids.shape[1]], photo.token_ids)


def test_a_saved_prompt_of_dpt_reads_the_same_template(clip, tmp_path):
    chess = dataclasses.replace(load_dataset("glyphs:chess"), template="a chess piece, the {}, in print.")
    tuner = tuners.dpt(num_text=4, num_visual=2, num_classes=3, class_layers=1)
    rows = evaluation.evaluate(clip, tuner, chess, shots=1, seeds=(1,), steps=1, learning_rate=1e-6)
    prompt = tuner.init(jax.random.key(1), clip, None)
    gram.save_prompt(tmp_path / "p.safetensors", prompt, tuner, clip, template=chess.template)
    template = gram.artifacts.describe(tmp_path / "p.safetensors").template
    test = chess.take(chess.select("test"))
    scorer = evaluation.make_scorer(tuner, prompt, clip, chess.class_names, template=template)
    predicted = np.asarray(scorer(clip.preprocess(test.images(range(len(test)))))).argmax(-1)
    assert np.mean(predicted == test.labels) == pytest.approx(rows[0].value, abs=0.02)
    other = evaluation.make_scorer(tuner, prompt, clip, chess.class_names)
    pixels = clip.preprocess(test.images(range(8)))
    assert np.abs(np.asarray(other(pixels)) - np.asarray(scorer(pixels))).max() > 0
