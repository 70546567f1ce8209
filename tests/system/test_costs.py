"""experiments.benchmark.costs at a tiny size: a row for every tuner, compared with counts from definitions."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.benchmark import costs, inputs
from experiments.benchmark.sides import matmul_flops
from gram_jax import evaluation, tuners
from gram_jax.clip import Clip, ClipConfig
from gram_jax.clip.config import VisionConfig
from gram_jax.clip.model import init_params
from gram_jax.testing import tiny_clip, tiny_config, tiny_tokenizer

LAYERS, CLASSES, BATCH = 1, 6, 3
COMPOSED = ("coop+kgcoop:2+prograd", "ivlp+cpt+npt+promptsrc")
QUICK = ("coop", "vpt", "ivlp", "adaptive")
TINY = tiny_config(text_layers=LAYERS, vision_layers=LAYERS)


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(inputs.CLIPS, "mini", lambda: TINY)
        yield


@pytest.fixture(scope="module")
def config():
    return costs.Config(clip_size="mini", methods=(*QUICK, *COMPOSED), classes=CLASSES, batch_size=BATCH, repeats=1)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("costs")
    return workdir, costs.run(config, workdir)


def by_method(results):
    measured = {}
    for row in results.rows:
        assert (row.protocol, row.dataset) == ("tuning_step", "random:mini")
        measured.setdefault(row.method, {})[row.metric] = row.value
    return measured


@pytest.mark.slow
def test_every_other_tuner_has_its_costs(config, tmp_path):
    others = tuple(name for name in tuners.NAMES if name not in QUICK)
    measured = by_method(costs.run(dataclasses.replace(config, methods=others), tmp_path))
    assert tuple(measured) == others
    assert all(min(values.values()) > 0 for values in measured.values())


def test_tuners_and_compositions_have_their_costs(finished, config):
    workdir, results = finished
    measured = by_method(results)
    assert list(measured) == list(config.methods)
    for values in measured.values():
        assert values.keys() == {
            "parameters", "batch_size", "compile_seconds", "matmul_flops", "argument_bytes", "temp_bytes", "step_bytes",
            "step_seconds",
        }  # fmt: skip
        assert min(values.values()) > 0
        assert values["batch_size"] == BATCH
    table = (workdir / "table.md").read_text()
    assert f"{CLASSES} classes" in table
    assert all(f"| {method} " in table for method in config.methods)
    text, vision = TINY.text.width, TINY.vision.width
    assert measured["coop"]["parameters"] == measured["coop+kgcoop:2+prograd"]["parameters"] == 4 * text
    assert measured["vpt"]["parameters"] == 8 * LAYERS * vision
    assert measured["ivlp"]["parameters"] == 4 * LAYERS * (text + vision)
    assert measured["adaptive"]["parameters"] == 4 * TINY.embed_dim**2
    evaluation.write_results(workdir / "results.json", results)


def test_arguments_are_the_parts_that_a_step_reads(finished):
    """Textual prompts do not read the vision transformer, visual prompts not the text transformer."""
    measured = by_method(finished[1])
    clip = tiny_clip(text_layers=LAYERS, vision_layers=LAYERS)
    sizes = {name: sum(leaf.nbytes for leaf in jax.tree.leaves(clip.params[name])) for name in ("text", "vision")}
    shared = {name: 8 * measured[name]["parameters"] + 1024 for name in ("coop", "vpt", "ivlp")}  # prompt and momentum
    pixels = BATCH * 12 * 12 * 3 * 4
    assert sizes["text"] / 2 < measured["coop"]["argument_bytes"] < sizes["text"] + shared["coop"]
    assert sizes["vision"] / 2 < measured["vpt"]["argument_bytes"] - pixels < sizes["vision"] + shared["vpt"]
    assert measured["ivlp"]["argument_bytes"] > 0.9 * sum(sizes.values())


def test_operations_are_proportional_to_the_images(finished, config):
    """Doubles the images and expects twice the products, except the one cosine of raw and regulated gradient."""
    step = costs.build(dataclasses.replace(config, batch_size=2 * BATCH), costs.make_clip(config), "vpt")
    traced = jax.jit(step.function).trace(*step.arguments)
    once = by_method(finished[1])["vpt"]
    measured, cosine = once["matmul_flops"], 2 * once["parameters"]
    assert matmul_flops(traced.jaxpr.jaxpr) - cosine == 2 * (measured - cosine)
    tokens, width = 1 + TINY.vision.num_patches + 8, TINY.vision.width
    assert measured > 2 * BATCH * tokens * 2 * width**2  # at least the keys and values of all tokens


def test_parameters_at_published_size():
    config = ClipConfig(vision=VisionConfig(patch_size=16))
    params = jax.eval_shape(lambda key: init_params(key, config), jax.random.key(0))
    clip = Clip(params, config, tiny_tokenizer(77))

    def count(name):
        tuner = costs.make_tuner(name, clip)
        shapes = jax.eval_shape(lambda key, clip: tuner.init(key, clip, None), jax.random.key(0), clip)
        return tuners.num_parameters(shapes)

    measured = {name: count(name) for name in ("coop", "cocoop", "vpt", "text_deep", "ivlp", "maple")}
    assert measured["coop"] == 4 * 512
    assert measured["cocoop"] == 33_312 + 4 * 512
    assert measured["vpt"] == 12 * 8 * 768
    assert measured["text_deep"] == 12 * 4 * 512
    assert measured["ivlp"] == 46_080
    assert measured["maple"] == pytest.approx(3.555e6, rel=1e-3)


def test_a_method_beyond_the_memory_limit_is_compiled_and_not_run(config, tmp_path):
    config = dataclasses.replace(config, methods=("coop",), memory_limit=1e-6, batch_size=None)
    results = costs.run(config, tmp_path)
    (measured,) = by_method(results).values()
    assert "step_seconds" not in measured
    assert measured["temp_bytes"] > 0
    assert measured["batch_size"] == 32
    assert "GiB" in (tmp_path / "table.md").read_text().splitlines()[-1]


def test_batch_is_the_published_one_of_cocoop(config):
    config = dataclasses.replace(config, batch_size=None)
    clip = costs.make_clip(config)
    assert [costs.build(config, clip, name).batch_size for name in ("cocoop", "cocoop+npt", "coop")] == [1, 1, 32]


def test_finished_methods_are_kept(finished, config, monkeypatch):
    workdir, results = finished
    monkeypatch.setattr(costs, "measure", None)
    assert costs.run(config, workdir).rows == results.rows


def test_timed_steps_end_after_max_seconds(config, monkeypatch):
    config = dataclasses.replace(config, repeats=5, max_seconds=0.0)
    step = costs.build(config, costs.make_clip(config), "coop")
    calls = []
    monkeypatch.setattr(costs.jax, "block_until_ready", calls.append)
    costs.measure(config, step)
    assert len(calls) == 2  # the warm-up step and one timed step


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("copo",)}, "--methods=copo: .*'copo'.* adaptive"),
        ({"methods": ("coop+kgcop",)}, "--methods=coop.kgcop: .*'kgcop' .*'kgcoop'.* prograd"),
        ({"methods": ("coop+prograd+affine",)}, "prograd and affine"),
        ({"methods": ()}, "--methods="),
        ({"methods": ("coop", "coop")}, "--methods=coop,coop"),
        ({"classes": 1}, "--classes=1"),
        ({"class_chunk": -1}, "--class_chunk=-1"),
        ({"batch_size": 0}, "--batch_size=0"),
        ({"memory_limit": 0.0}, "--memory_limit=0.0"),
        ({"max_seconds": -1.0}, "--max_seconds=-1.0"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        costs.Config(**changes)


def test_incompatible_parts_are_refused_before_compilation(config, tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "measure", None)
    with pytest.raises(ValueError, match="'vpt'"):
        costs.run(dataclasses.replace(config, methods=("coop", "vpt+kgcoop")), tmp_path)


@pytest.mark.parametrize(("count", "words"), [(121, 2), (122, 3), (1331, 3), (1332, 4)])
def test_class_names_are_distinct(count, words):
    names = costs.class_names(count)
    assert len(set(names)) == count
    assert {len(name.split()) for name in names} == {words}


def test_random_features_have_length_1():
    drawn = np.asarray(costs._unit(np.random.default_rng(0), 2, 5, 7))
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=-1), 1.0, rtol=1e-6)


def test_spread_classes_are_checked_before_anything_is_compiled(config):
    spread = dataclasses.replace(config, shard_classes=True)
    clip = costs.make_clip(spread)
    (state, *_) = jax.eval_shape(lambda: costs.build(spread, clip, "coop").arguments[:4])
    assert jax.tree.leaves(state.prompts)[0].shape[0] == 1
