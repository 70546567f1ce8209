"""Flags of experiments.evaluate: defaults, published recipes, names of methods, and what is refused before any work."""

import dataclasses

import pytest

from experiments.evaluate import methods as _methods
from experiments.evaluate import presets as _presets
from experiments.evaluate import run as evaluate
from gram_jax import objectives, tuners
from gram_jax.errors import InputError
from gram_jax.evaluation.plans import by_part
from gram_jax.registry import parse_call

SPECIFIC = "dpt(class_specific=True)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (1, 101)}, r"--seeds and --select_seeds share \[101\]"),
        ({"protocol": ("cross",)}, "--protocol='cross'"),
        (
            {"protocol": ("base_to_new",), "domains": ("noise",)},
            "--domains needs --protocol=few_shot or domain_generalization or test_time",
        ),
        ({"learning_rate": (0.1, -1.0)}, "--learning_rate=-1.0"),
        ({"shots": ()}, "--shots"),
        ({"gram_learning_rate": (0.1,), "gram_rate_factor": (1.0,)}, "--gram_rate_factor=1.0 .*--gram_learning_rate"),
        ({"controls": ("gram=x",)}, "--controls=gram=x: give NAME=PATH"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate.Config(**changes)


def test_the_published_numbers():
    dpt = evaluate.Config(preset="dpt_fs_vitb32").settings
    tuner = _methods.choose_tuner(dpt)
    assert {name: tuner.settings[name] for name in ("num_text", "num_visual", "num_classes", "class_layers")} == {
        "num_text": 16, "num_visual": 10, "num_classes": 10, "class_layers": 1
    }  # fmt: skip
    prompt = {"text": {"context": 0}, "visual": {"tokens": 0, "deep": 0}, "class_aware": {"query": 0}, "classifier": 0}
    assert by_part("part_rates", dpt.rate_factors, 1, prompt, dpt.learning_rate[0]) == {
        "text": {"context": 0.002}, "visual": {"tokens": 0.01, "deep": 0.01}, "class_aware": {"query": 0.01},
        "classifier": 0.01,
    }  # fmt: skip
    assert by_part("part_warmup", dpt.length("coop:dtd", 1).warmup, 1, prompt) == {
        "text": {"context": 1}, "visual": {"tokens": 10, "deep": 10}, "class_aware": {"query": 10}, "classifier": 10
    }  # fmt: skip
    assert dpt.length("coop:imagenet", 1).warmup == {}
    assert [dpt.length("coop:dtd", shots).epochs for shots in (1, 2, 16)] == [60, 100, 100]
    assert dpt.plan.staged == (30, 0.3)
    assert (dpt.init_text, dpt.batch_size, dpt.protocol) == (("",), 32, ("few_shot",))
    own = evaluate.Config(preset="prometar_b2n_vitb16").settings
    assert (own.regulator, own.regulation, own.regularizers) == ("prometar", "alternating", "")
    assert (own.batch_size, own.learning_rate, own.shots) == (4, (0.0025,), (16,))
    plain = evaluate.Config().settings
    assert (plain.loss, plain.regulation, plain.plan.staged, plain.plan.alternating) == (
        "cross_entropy", "frozen", None, False
    )  # fmt: skip
    assert (plain.rate_factors, plain.length("coop:dtd", 1, steps=3).warmup) == ({}, {})
    alone = evaluate.Config(preset="prometar_b2n_vitb16", meta="meta.safetensors").settings
    assert (alone.regulator, alone.regulation) == (None, "frozen")  # the checkpoint's


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": "dpt"}, "--loss=dpt: .*'coop'"),
        ({"loss": "dpt", "tuner": "vpt"}, "--loss=dpt: .*'vpt'"),
        ({"loss": "dpt", "tuner": "dpt"}, "--loss=dpt: .*--tuner=dpt.class_specific=True.*--loss=dpt.class_weight=0"),
        ({"loss": "dpt", "tuner": SPECIFIC, "regularizers": "kgcoop"}, "--regularizers=kgcoop and --loss=dpt"),
        ({"loss": "dpt", "tuner": SPECIFIC, "regulator": "prograd"}, "regulator=prograd .*loss=dpt"),
        ({"loss": "cross_entropy(guided_epochs=3)"}, "--loss=cross_entropy.guided_epochs=3.: .*'guided_epochs'"),
        ({"loss": "dpt(guided_epoch=3)", "tuner": SPECIFIC}, r"'guided_epoch' \(did you mean 'guided_epochs'\?\)"),
        ({"loss": "dpt(guided_epochs=1.5)", "tuner": SPECIFIC}, "--loss: guided_epochs=1.5"),
        ({"loss": "dpt(class_weight=-1)", "tuner": SPECIFIC}, "--loss: class_weight=-1"),
        ({"loss": "hinge"}, "--loss='hinge'"),
        ({"part_rates": "visual:0"}, "--part_rates=visual:0"),
        ({"part_rates": "visual"}, "--part_rates=visual"),
        ({"part_warmup": "visual:3"}, "--part_warmup=visual:3: --schedule=cosine .*warmup_cosine"),
        ({"part_warmup": "visual:-3", "schedule": "warmup_cosine"}, "--part_warmup=visual:-3"),
        ({"regulation": "alternating"}, "--regulation=alternating .*--regulator=prometar"),
        ({"regulation": "alternating", "regulator": "prograd"}, "--regulation=alternating: --regulator=prograd"),
        ({"regulation": "alternating", "regulator": "structured"}, "--regulator=structured has parameters"),
        ({"regulation": "alternating", "regulator": "prometar", "meta": "a.safetensors"},
         "--regulator=prometar and --meta=a.safetensors"),
        ({"regulation": "alternating", "regulator": "prometar", "regularizers": "kgcoop"},
         "--regularizers=kgcoop and --regulation=alternating"),
        ({"regulation": "alternating", "regulator": "prometar", "optimizer": "adam"},
         "--optimizer=adam: --regulation=alternating"),
        ({"regulation": "alternating", "regulator": "prometar", "batch_size": 1},
         "--batch_size=1: --regulation=alternating"),
        ({"protocol": ("test_time",), "part_rates": "text:2"}, "--part_rates=text:2: test_time"),
        ({"protocol": ("test_time",), "loss": "dpt", "tuner": "dpt"}, "--loss=dpt: test_time"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_with_the_reason(given, message):
    with pytest.raises(InputError, match=message):
        evaluate.Config(**given)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "coop"),
        ({"regularizers": "npt:1,kgcoop:8.0"}, "coop+kgcoop+npt"),
        ({"regularizers": "kgcoop:2"}, "coop+kgcoop:2"),
        ({"regulator": "prograd", "regularizers": "kgcoop"}, "coop+kgcoop+prograd"),
        ({"preset": "kgcoop_b2n_vitb16"}, "coop+kgcoop"),
        ({"preset": "kgcoop_b2n_vitb16", "regularizers": ""}, "coop"),
        ({"preset": "promptsrc_b2n_vitb16"}, "ivlp+promptsrc+gpa"),
        ({"preset": "promptsrc_b2n_vitb16", "aggregation": ()}, "ivlp+promptsrc"),
    ],
)
def test_names_of_composed_methods(given, name):
    settings = evaluate.Config(**given).settings
    assert settings.family(_methods.choose_tuner(settings).name) == name


def test_recipes_bring_their_regularizers():
    kgcoop = evaluate.Config(preset="kgcoop_b2n_vitb16").settings
    assert (kgcoop.regularizers, kgcoop.batch_size, kgcoop.learning_rate) == ("kgcoop:8", 128, (0.002,))
    own = evaluate.Config(preset="promptsrc_fs_vitb16").settings
    assert dict(objectives.parse(own.regularizers).weights) == {
        "promptsrc_text": 25.0, "promptsrc_image": 10.0, "promptsrc_logits": 1.0
    }  # fmt: skip
    assert [own.gaussian(f"coop:{name}") for name in ("eurosat", "imagenet")] == [(45, 5), (30, 30)]
    bells = {"promptsrc_b2n_vitb16": (15, 1), "promptsrc_xd_vitb16": (6, 10), "coop_b2n_vitb16": None}
    assert {name: _presets.aggregation(name, "coop:dtd") for name in bells} == bells


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"regularizers": "kgcop:8"}, "--regularizers=kgcop:8: .*'kgcop'.*'kgcoop'"),
        ({"regularizers": "kgcoop:-1"}, "kgcoop: weight=-1.0"),
        ({"regularizers": "kgcoop:inf"}, "kgcoop: weight=inf"),
        ({"regularizers": "kgcoop:much"}, "'much' of 'kgcoop'"),
        ({"regularizers": "kgcoop:1,kgcoop:2"}, "--regularizers=kgcoop:1,kgcoop:2: .*twice"),
        ({"regularizers": "npt(centred=True)"}, r"--regularizers=npt.* 'centred' \(did you mean 'centered'"),
        ({"regularizers": "class_weights"}, "--regularizers=class_weights: .*--protocol=imbalanced"),
        ({"regulator": "affine"}, "--regulator=affine .*experiments.meta_train"),
        ({"regulator": "structured"}, "--regulator=structured .*experiments.meta_train"),
        ({"regulator": "prometar"}, "--regulator=prometar .*--regulation=alternating"),
        ({"regulator": "identity"}, "--regulator=identity"),
        ({"regulator": "prograd", "meta": "a.safetensors"}, "--regulator=prograd and --meta=a.safetensors"),
        ({"regulator": "prograd(strenth=1)"}, r"--regulator=prograd.* 'strenth' \(did you mean 'strength'"),
        ({"regulator": "prograd(reference='kgcop')"}, "--regulator=prograd.*='kgcop'.*'kgcoop'"),
        ({"aggregation": (2.0, 1.0)}, "--aggregation=2.0,1.0 .*--epochs"),
        ({"aggregation": (2.0,), "epochs": (3,)}, "--aggregation=2.0"),
        ({"aggregation": (2.0, 0.0), "epochs": (3,)}, "--aggregation: the width=0.0"),
        ({"baselines": "linear_prob"}, "--baselines=linear_prob: .*'linear_probe'"),
        ({"baselines": "tip_adapter(epoch=3)"}, "--baselines=tip_adapter.* 'epoch'.*'epochs'"),
        ({"baselines": "ensemble,ensemble"}, "--baselines=ensemble,ensemble"),
    ],
)
def test_what_cannot_be_composed_is_refused_with_the_remedy(given, message):
    with pytest.raises(ValueError, match=message):
        evaluate.Config(**given)


def test_numbers_of_recipes():
    """Read off the published configurations: learning rate, epochs on 16 shots, batch, context."""
    expected = {
        "coop_fs_vitb16": (0.002, 200, 32, ("coop", {"num_tokens": 16})),
        "coop_fs_rn50": (0.002, 200, 32, ("coop", {"num_tokens": 16})),
        "prograd_fs_rn50": (0.002, 200, 32, ("coop", {"num_tokens": 16})),
        "coop_b2n_vitb16": (0.002, 200, 32, ("coop", {"num_tokens": 4, "init_text": "a photo of a"})),
        "cocoop_b2n_vitb16": (0.002, 10, 1, ("cocoop", {"num_tokens": 4, "init_text": "a photo of a"})),
        "vpt_b2n_vitb16": (0.0025, 5, 4, ("vpt", {"num_tokens": 8, "depth": 12})),
        "maple_b2n_vitb16": (0.0035, 5, 4, ("maple", {"num_tokens": 2, "depth": 9, "init_text": "a photo of a"})),
        "maple_xd_vitb16": (0.0026, 2, 4, ("maple", {"num_tokens": 2, "depth": 3, "init_text": "a photo of a"})),
    }
    for name, (rate, epochs, batch, tuner) in expected.items():
        preset = _presets.PRESETS[name]
        assert (preset.learning_rate, _presets.epochs(name, "coop:dtd", 16), preset.batch_size) == (rate, epochs, batch)
        assert parse_call(preset.tuner) == tuner
    by_shots = [_presets.epochs("coop_fs_vitb16", "coop:dtd", shots) for shots in (1, 2, 3, 4, 8, 16, 32)]
    assert by_shots == [50, 100, 100, 100, 200, 200, 200]
    assert _presets.epochs("coop_fs_vitb16", "coop:imagenet", 16) == 50
    for name, preset in _presets.PRESETS.items():
        assert name.split("_")[-2] == preset.use
        assert evaluate.Config(preset=name).settings.protocol == _presets.USES[preset.use]["protocol"]
        assert preset.provenance
        tuners.parse(preset.tuner)


def test_recipes_without_labeled_images_and_without_a_prompt():
    """Read off the public code of TPT and Tip-Adapter."""
    tpt = evaluate.Config(preset="tpt_rn50").settings
    assert (tpt.learning_rate, tpt.steps, tpt.optimizer, tpt.weight_decay) == ((0.005,), (1,), "adamw", 0.01)
    assert (tpt.test_time_views, tpt.test_time_share) == (64, 0.1)
    assert tpt.tuner_call == ("coop", {"num_tokens": 4, "init_text": "a photo of a"})
    tip = evaluate.Config(preset="tip_adapter_fs_rn50").settings
    assert (tip.methods, tip.shots) == (("zero_shot",), (1, 2, 4, 8, 16))
    plain, tuned = (method.baseline.settings for method in tip.baseline_methods)
    assert (plain["epochs"], tuned["epochs"], tuned["learning_rate"], tuned["batch_size"]) == (0, 20, 0.001, 256)
    assert plain["recipe"] is tuned["recipe"] is True


def test_what_is_given_wins_over_a_preset():
    config = evaluate.Config(
        preset="vpt_b2n_vitb16", shots=(2,), momentum=0.0, augmentation="none", tuner="vpt(depth=2)"
    )
    found = config.settings
    assert (found.shots, found.momentum, found.augmentation) == ((2,), 0.0, "none")
    assert found.tuner_call == ("vpt", {"num_tokens": 8, "depth": 2})
    assert (found.weight_decay, found.batch_size, found.learning_rate, found.epochs) == (5e-4, 4, (0.0025,), None)
    assert (found.protocol, found.schedule) == (("base_to_new",), "warmup_cosine")
    assert dataclasses.replace(config, batch_size=8).settings.momentum == 0.0
    targets = evaluate.Config(preset="coop_xd_vitb16", targets=("glyphs:digits",)).settings
    assert targets.protocol == ("cross_dataset", "domain_generalization")
    alone = evaluate.Config(preset="coop_b2n_vitb16", meta="meta.safetensors").settings
    assert (alone.tuner, alone.tuner_call) == (None, None)  # the checkpoint's


def test_defaults_without_a_preset():
    plain = evaluate.Config().settings
    assert (plain.protocol, plain.shots, plain.seeds) == (("few_shot", "base_to_new"), (1, 4, 16), (1, 2, 3))
    assert (plain.learning_rate, plain.batch_size, plain.optimizer) == ((0.3,), 32, "sgd")
    assert (plain.momentum, plain.weight_decay, plain.schedule, plain.augmentation) == (0.0, 0.0, "cosine", "none")
    assert (plain.tuner, plain.tuner_call, plain.init_text, plain.steps) == (None, ("coop", {}), None, (300,))
    assert (plain.gram_learning_rate, plain.gram_rate_factor, plain.split) == ((0.3,), None, "test")
    assert evaluate.Config(gram_rate_factor=(2.0,)).settings.gram_learning_rate is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "tpt_rn50", "protocol": ("few_shot",)}, "--preset=tpt_rn50 .*--protocol=test_time"),
        ({"preset": "coop_fs_rn50", "protocol": ("test_time",)}, "--preset=coop_fs_rn50 learns from labeled images"),
        ({"preset": "coop"}, "--preset=coop: .*coop_fs_vitb16"),
        ({"preset": "coop_b2n_vitb16", "tuner": "vpt"}, "--tuner=vpt: --preset=coop_b2n_vitb16"),
        ({"preset": "coop_b2n_vitb16", "steps": (9,)}, r"--steps=\(9,\): .*--epochs"),
    ],
)
def test_presets_that_cannot_be_run_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate.Config(**changes)


def test_defaults_of_test_time_tuning():
    given = {"protocol": ("test_time",)}
    plain = evaluate.Config(**given).settings
    assert (plain.learning_rate, plain.gram_learning_rate, plain.steps) == ((0.005,), (0.005,), (1,))
    assert (plain.optimizer, plain.weight_decay) == ("adamw", 0.01)
    several = evaluate.Config(**given, learning_rate=(0.1, 0.2), steps=(3,)).settings
    assert (several.learning_rate, several.gram_learning_rate, several.steps) == ((0.1, 0.2), (0.1, 0.2), (3,))
    sgd = evaluate.Config(**given, optimizer="sgd").settings
    assert (sgd.weight_decay, sgd.gram_learning_rate) == (0.0, (0.005,))
    assert evaluate.Config().settings.steps == (300,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": ("few_shot", "test_time")}, "--protocol=few_shot,test_time"),
        ({"protocol": ("few_shot",), "optimizer": "adamw"}, "--optimizer=adamw .*--protocol=test_time"),
        ({"preset": "coop_b2n_vitb16"}, "--preset=coop_b2n_vitb16 .*test_time"),
        ({"regularizers": "kgcoop:8,npt"}, "--regularizers=kgcoop:8,npt: test_time"),
        ({"regulator": "prograd"}, "--regulator=prograd: test_time"),
        ({"shots": (4,)}, r"--shots=\(4,\): test_time"),
        ({"epochs": (3,)}, r"--epochs=\(3,\): test_time"),
        ({"augmentation": "fresh"}, "--augmentation=fresh: test_time"),
        ({"save_prompts": True}, "--save_prompts: test_time"),
        ({"optimizer": "adam"}, "--optimizer='adam'"),
        ({"steps": (1, 2)}, "--steps=1,2: test_time"),
        ({"test_time_views": 9}, "--test_time_share=0.1 of --test_time_views=9"),
        ({"test_time_share": 2.0}, "--test_time_share=2 of --test_time_views=64"),
        ({"test_time_batch": 0}, "--test_time_batch=0"),
        ({"targets": ("glyphs:chess",)}, "--targets needs --protocol=cross_dataset"),
    ],
)
def test_settings_that_test_time_tuning_refuses(changes, message):
    with pytest.raises(InputError, match=message):
        evaluate.Config(**{"protocol": ("test_time",), **changes})
