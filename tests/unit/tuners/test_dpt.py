"""DPT against NumPy: the selected classes of an image, their prompts, and the loss in its two stages."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax import artifacts, objectives, tuners
from gram_jax.tuners.dpt import dpt_outputs
from gram_jax.tuning import pad_classes
from tests.unit.clip import reference
from tests.unit.tuners.restated import image_features, plain_features, raw_class_features

KEY = jax.random.key(0)


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def cross_entropy(scores, label):
    return np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[label]


class Restated:
    """Runs the forward pass of the formula, one image, layer and class at a time."""

    def __init__(self, clip, classes, images, prompt, likely, class_layers):
        drawn = reference.to_numpy(prompt)
        self.scale = np.exp(np.float64(clip.params["logit_scale"]))
        self.frozen_texts, self.frozen_images = plain_features(clip, classes), image_features(clip, images)
        contexts = [drawn["text"]["context"]] * len(classes.tail_ids)
        raw = raw_class_features(clip, classes, contexts, "end")
        self.texts = reference.unit(raw)
        layers, size = clip.config.vision.layers, clip.config.vision
        upper = list(range(layers - class_layers, layers))
        visual = drawn.get("visual", {})
        deep = dict(enumerate(visual.get("deep", ()), start=1))
        self.selected, self.seen, features = [], [], []
        for image, feature in zip(images, self.frozen_images, strict=True):
            chosen = sorted(range(len(raw)), key=lambda c: -(feature @ self.frozen_texts[c]))[:likely]
            seen = {}

            def make(body, layer, chosen=chosen, seen=seen):
                own = jax.tree.map(lambda leaf: leaf[layer - upper[0]], drawn["class_aware"])
                tokens, prompts = np.concatenate([body, own["tokens"]]), []
                keys = tokens @ own["attention"]["key"]
                for c in chosen:
                    asked = raw[c] @ own["query"]["kernel"] + own["query"]["bias"]
                    weights = softmax(keys @ (asked @ own["attention"]["query"]) / np.sqrt(32))
                    attended = (weights @ tokens) @ own["attention"]["value"]
                    seen.setdefault(layer, []).append(attended)
                    prompts.append(reference.norm(attended + asked, own["norm"], 1e-5))
                return np.stack(prompts)

            made = {layer: lambda body, layer=layer, make=make: make(body, layer) for layer in upper}
            params = reference.to_numpy(clip.params["vision"])
            given = {"tokens": visual.get("tokens"), "placement": "after_norm", "deep": deep, "made": made}
            features.append(reference.image_feature(params, size, np.float64(image), **given))
            self.selected.append(chosen)
            self.seen.append([seen[layer] for layer in upper])  # [layers][classes][width]
        self.images = reference.unit(np.stack(features))
        self.classifier = drawn.get("classifier")

    def logits(self, images, texts):
        return self.scale * images @ texts.T

    def loss(self, labels, guided, weight):
        def mean(scores):
            return np.mean([cross_entropy(row, label) for row, label in zip(scores, labels, strict=True)])

        total = mean(self.logits(self.images, self.texts))
        if guided:
            total = 0.1 * total + mean(self.logits(self.frozen_images, self.texts))
            total += mean(self.logits(self.images, self.frozen_texts))
        own = []
        for label, chosen, layers in zip(labels, self.selected, self.seen, strict=True):
            for layer, attended in enumerate(layers):
                if label in chosen:
                    part = {name: leaf[layer] for name, leaf in self.classifier["norm"].items()}
                    normed = reference.norm(attended[chosen.index(label)], part, 1e-5)
                    own.append(cross_entropy(normed @ self.classifier["kernel"][layer], label))
        return total + (weight * np.mean(own) if own else 0)


def make(clip, classes, **settings):
    tuner = tuners.dpt(num_text=2, num_visual=2, **settings)
    rng = np.random.default_rng(0)
    prompt = tuner.init(KEY, clip, classes)
    return tuner, jax.tree.map(lambda leaf: 3 * leaf + jnp.float32(0.2 * rng.normal(size=leaf.shape)), prompt)


@pytest.mark.parametrize(("likely", "class_layers"), [(3, 1), (10, 2), (2, 4)])
def test_dpt_equals_numpy(clip, classes, images, likely, class_layers):
    tuner, prompt = make(clip, classes, num_classes=likely, class_layers=class_layers)
    assert ("visual" in prompt) == (class_layers < 4)
    outputs = tuner.apply(prompt, clip, classes, images)
    expected = Restated(clip, classes, images, prompt, likely, class_layers)
    np.testing.assert_allclose(outputs.text_features, expected.texts, atol=3e-6)
    np.testing.assert_allclose(outputs.image_features, expected.images, atol=5e-6)
    np.testing.assert_allclose(outputs.logits, expected.logits(expected.images, expected.texts), atol=2e-4)


def test_without_class_aware_layers_it_is_deep_vpt_beside_coop(clip, classes, images):
    tuner, prompt = make(clip, classes, class_layers=0)
    outputs = tuner.apply(prompt, clip, classes, images)
    vpt, coop = tuners.vpt(num_tokens=2, depth=4, placement="after_norm"), tuners.coop(num_tokens=2)
    chex.assert_trees_all_equal_shapes(prompt["visual"], vpt.init(KEY, clip, None))
    seen = vpt.apply(prompt["visual"], clip, classes, images).image_features
    np.testing.assert_allclose(outputs.image_features, seen, atol=1e-6)
    texts = coop.apply(prompt["text"], clip, classes, seen).text_features
    np.testing.assert_allclose(outputs.text_features, texts, atol=1e-6)


def test_the_loss_equals_numpy_in_both_stages(clip, classes, images):
    tuner, prompt = make(clip, classes, num_classes=2, class_layers=2, class_specific=True)
    assert prompt["classifier"]["kernel"].shape == (2, 30, 4)
    expected = Restated(clip, classes, images, prompt, 2, 2)
    # The first image selects its own class, the second one does not.
    labels = np.array([expected.selected[0][1], min({0, 1, 2, 3} - set(expected.selected[1]))])
    loss = jax.jit(objectives.dpt_loss(tuner, class_weight=0.5))
    for guided in (True, False):
        batch = {"classes": classes, "images": images, "labels": jnp.array(labels), "guided": guided}
        assert float(loss(prompt, clip, batch)) == pytest.approx(expected.loss(labels, guided, 0.5), rel=2e-5)
    # Classes that only pad the list do not count.
    filled, valid = pad_classes(clip, classes)
    rest = 12 * [prompt["classifier"]["kernel"][..., -1:]]
    wide = prompt["classifier"] | {"kernel": jnp.concatenate([prompt["classifier"]["kernel"], *rest], axis=-1)}
    batch |= {"classes": filled, "valid": valid}
    assert float(loss(prompt | {"classifier": wide}, clip, batch)) == pytest.approx(
        expected.loss(labels, False, 0.5), rel=2e-5
    )
    with pytest.raises(ValueError, match=r"4 classes.*16"):
        loss(prompt, clip, batch)


def test_a_filled_up_class_list_changes_nothing(clip, images):
    classes = clip.class_tokens(["cat", "dog", "fish"])
    tuner, prompt = make(clip, classes, num_classes=5)
    filled, valid = pad_classes(clip, classes)
    assert (len(filled.tail_ids), valid.sum()) == (16, 3)
    plain, padded = (tuner.apply(prompt, clip, names, images) for names in (classes, filled))
    np.testing.assert_allclose(padded.logits[:, :3], plain.logits, atol=3e-5)
    np.testing.assert_allclose(padded.image_features, plain.image_features, atol=1e-6)


def test_no_gradient_flows_into_the_tokens_that_class_prompts_see(clip, classes, images):
    # The attention of one layer depends on the visual prompts through these tokens alone.
    tuner, prompt = make(clip, classes, num_classes=2)

    @jax.jit
    def through_what_is_seen(visual):
        found = dpt_outputs(tuner.settings, prompt | {"visual": visual}, clip, classes, images)
        return jnp.sum(found.attended**2)

    value, gradient = jax.value_and_grad(through_what_is_seen)(prompt["visual"])
    assert value > 1e-3
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_a_prompt_with_a_classifier_is_per_class_and_serves_other_lists(clip, classes, images, tmp_path):
    tuner, prompt = make(clip, classes, class_specific=True)
    artifacts.save_prompt(tmp_path / "x.safetensors", prompt, tuner, clip)
    chex.assert_trees_all_equal(artifacts.load_prompt(tmp_path / "x.safetensors", clip).prompt, prompt)
    others = clip.class_tokens(["horse", "a small blue bird"])
    assert tuner.apply(prompt, clip, others, images).logits.shape == (2, 2)


def test_misfits_are_refused(clip, classes):
    for settings, message in (
        ({"class_layers": -1}, "class_layers=-1"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"class_specific": 1}, "class_specific=1"),
        ({"class_specific": True, "class_layers": 0}, "class_specific=True.*class_layers"),
    ):
        with pytest.raises(ValueError, match=message):
            tuners.dpt(**settings)
    with pytest.raises(ValueError, match=r"class_layers=5.*4 vision"):
        tuners.dpt(class_layers=5).init(KEY, clip, classes)
    with pytest.raises(ValueError, match="NoneType"):
        tuners.dpt(class_specific=True).init(KEY, clip, None)
    with pytest.raises(ValueError, match=r"dpt_loss .*'coop'"):
        objectives.dpt_loss(tuners.coop())
    with pytest.raises(ValueError, match="class_specific=True"):
        objectives.dpt_loss(tuners.dpt())
    with pytest.raises(ValueError, match="class_weight=nan"):
        objectives.dpt_loss(tuners.dpt(class_specific=True), class_weight=float("nan"))
