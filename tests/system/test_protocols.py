"""The five protocols on small copies of the field's datasets: what is tuned on, what is tested on, what is written."""

import dataclasses
import json

import numpy as np
import pytest
from etils import epath

import gram_jax as gram
from experiments.evaluate import run as evaluate
from experiments.evaluate.datasets import shifted
from gram_jax import evaluation
from gram_jax.array_file import read_arrays
from gram_jax.clip import TextPrompt
from gram_jax.data import coop, load_dataset
from gram_jax.evaluation import measures as _measures
from gram_jax.evaluation import protocols as _protocols
from gram_jax.evaluation.prediction import summarize_logits
from gram_jax.evaluation.tuned import TunedMethod
from gram_jax.testing import tiny_clip
from tests.system.watching import watch
from tests.unit.data import layouts

SEEDS, STEPS = (1, 2), 2
NAMES = ("imagenet", "dtd", "ucf101", *coop.VARIANTS)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data with spaces:and colons")
    for name in NAMES:
        layouts.write_coop(root, name, (6, 2, 4))
    gram.save_clip(tiny_clip(seed=1, text_layers=1, vision_layers=1, text_context_length=40), root / "clip")
    return root


@pytest.fixture(scope="module")
def config(root):
    return evaluate.Config(
        clip=str(root / "clip"),
        dataset=tuple(f"coop:{root}:{name}" for name in ("imagenet", "dtd", "ucf101")),
        source=(f"coop:{root}:imagenet",),
        protocol=_protocols.LABELED,
        shots=(2,),
        largest=4,
        tau=(1.0, 0.25),
        seeds=SEEDS,
        steps=(STEPS,),
        learning_rate=(50.0,),
        report_steps=(),
        save_prompts=True,
        save_confusion=True,
        save_features=True,
        metrics=("all",),
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("evaluate"))
    return workdir, evaluate.run(config, workdir)


def rows_of(results, **fields):
    return [row for row in results.rows if all(getattr(row, name) == value for name, value in fields.items())]


def restated(root, prompt, spec, classes=None):
    """The accuracy of a saved CoOp prompt on the test images of some classes, one image at a time."""
    clip, dataset = gram.load_clip(str(root / "clip")), load_dataset(spec)
    classes = list(range(len(dataset.class_names))) if classes is None else classes
    names = clip.class_tokens([dataset.class_names[label] for label in classes], allow_duplicates=True)
    texts = np.asarray(gram.encode_classes(clip, names, TextPrompt(prompt)))
    found = {}
    for position in dataset.select("test"):
        if (label := int(dataset.labels[position])) in classes:
            feature = np.asarray(gram.encode_image(clip, clip.preprocess(dataset.images([position]))))[0]
            found.setdefault(label, []).append(classes[int(np.argmax(texts @ feature))] == label)
    return found


def saved(workdir, name, protocol, shots):
    path = workdir / "prompts" / f"coop_{name}-{protocol.replace(':', '_')}-{shots}-coop.safetensors"
    return read_arrays(path)[0]["context"]


def mean(found, classes=None):
    return np.mean([right for label, each in found.items() if classes is None or label in classes for right in each])


def test_every_protocol_is_measured_where_it_belongs(finished):
    _, results = finished
    found = {(row.protocol, row.dataset, row.domain, row.split) for row in rows_of(results, method="coop")}
    three = ("coop:imagenet", "coop:dtd", "coop:ucf101")
    expected = {("few_shot", name, None, "all") for name in three}
    expected |= {("cross_dataset", three[0], target, "all") for target in (None, *three[1:])}
    variants = (None, *coop.VARIANTS)
    expected |= {("domain_generalization", three[0], domain, "all") for domain in variants}
    expected |= {("base_to_new", name, None, split) for name in three for split in ("base", "new")}
    for protocol in ("imbalanced:1", "imbalanced:0.25"):
        expected |= {(protocol, name, None, split) for name in three for split in ("base", "new", "head", "tail")}
    # Three base classes of five have a middle; two of four have none.
    expected |= {(protocol, three[0], None, "middle") for protocol in ("imbalanced:1", "imbalanced:0.25")}
    assert found == expected
    assert {row.shots for row in rows_of(results, method="coop", protocol="imbalanced:0.25")} == {4}


def test_targets_and_variants_are_tested_on_all_their_own_classes(finished, root):
    workdir, results = finished
    for protocol, others in (
        ("cross_dataset", {None: "imagenet", "coop:dtd": "dtd", "coop:ucf101": "ucf101"}),
        ("domain_generalization", {None: "imagenet", **{name: name for name in coop.VARIANTS}}),
    ):
        prompt = saved(workdir, "imagenet", protocol, 2)
        for domain, name in others.items():
            rows = rows_of(results, method="coop", protocol=protocol, domain=domain, metric="accuracy")
            assert [row.seed for row in rows] == list(SEEDS)
            spec = f"coop:{root}:{name}"
            assert rows[0].value == pytest.approx(mean(restated(root, prompt, spec)))
            own = rows_of(results, method="zero_shot:own", protocol=protocol, domain=domain)
            assert [row.metric for row in own] == list(_measures.METRICS)
    subset = load_dataset(f"coop:{root}:imagenet_a")
    assert len(subset.class_names) == 2  # so that its accuracy is among two names, not five


def test_own_templates_are_those_of_each_target(finished, root):
    _, results = finished
    clip, dataset = gram.load_clip(str(root / "clip")), load_dataset(f"coop:{root}:dtd")
    assert dataset.template == "{} texture."
    texts = np.asarray(gram.encode_text(clip, clip.tokenize([f"{name} texture." for name in dataset.class_names])))
    test = dataset.select("test")
    images = np.asarray(gram.encode_image(clip, clip.preprocess(dataset.images(test))))
    found = {"method": "zero_shot:own", "protocol": "cross_dataset", "domain": "coop:dtd", "metric": "accuracy"}
    (row,) = rows_of(results, **found)
    assert row.value == pytest.approx(np.mean(np.argmax(images @ texts.T, 1) == dataset.labels[test]))


def test_thirds_of_a_long_tail_are_parts_of_its_base_classes(finished, root):
    workdir, results = finished
    prompt = saved(workdir, "imagenet", "imbalanced:0.25", 4)
    right = restated(root, prompt, f"coop:{root}:imagenet", [0, 1, 2])
    for split, classes in (("base", [0, 1, 2]), ("head", [0]), ("middle", [1]), ("tail", [2])):
        rows = rows_of(results, method="coop", protocol="imbalanced:0.25", dataset="coop:imagenet", split=split)
        assert rows[0].value == pytest.approx(mean(right, classes))
    new = restated(root, prompt, f"coop:{root}:imagenet", [3, 4])
    rows = rows_of(results, method="coop", protocol="imbalanced:0.25", dataset="coop:imagenet", split="new")
    assert rows[0].value == pytest.approx(mean(new))


def test_confusion_matrices_and_features_are_written(finished, root):
    workdir, results = finished
    name = "coop_imagenet-domain_generalization-2-coop.npz"
    with np.load(workdir / "confusion" / name) as file:
        confusion = dict(file)
    with np.load(workdir / "features" / name) as file:
        features = dict(file)
    prompt = saved(workdir, "imagenet", "domain_generalization", 2)
    for part, spec in (("all", "imagenet"), ("all@imagenet_a", "imagenet_a")):
        dataset = load_dataset(f"coop:{root}:{spec}")
        test = dataset.select("test")
        counts = confusion[f"{part}/counts"]
        assert counts.shape == (len(SEEDS), *2 * [len(dataset.class_names)])
        right = restated(root, prompt, f"coop:{root}:{spec}")
        assert np.diagonal(counts[0]).tolist() == [sum(right[label]) for label in range(len(dataset.class_names))]
        assert counts[1].sum(1).tolist() == np.bincount(dataset.labels[test]).tolist()
        np.testing.assert_array_equal(confusion[f"{part}/class_names"], dataset.class_names)
        np.testing.assert_array_equal(features[f"{part}/labels"], dataset.labels[test])
        predicted = (features[f"{part}/image_features"] @ features[f"{part}/text_features"].T).argmax(1)
        assert np.mean(predicted == dataset.labels[test]) == pytest.approx(mean(right))
        wanted = {"domain": None if spec == "imagenet" else spec, "seed": 1, "protocol": "domain_generalization"}
        (worst,) = rows_of(results, metric="worst_class_accuracy", **wanted)
        assert worst.value == pytest.approx(min(np.mean(each) for each in right.values()))
    clip = gram.load_clip(str(root / "clip"))
    with np.load(workdir / "features" / "coop_dtd-few_shot-zero_shot.npz") as file:
        dataset = load_dataset(f"coop:{root}:dtd")
        images = clip.preprocess(dataset.images(dataset.select("test")))
        np.testing.assert_allclose(file["all/image_features"], gram.encode_image(clip, images), atol=1e-5)


def test_protocols_that_tune_on_the_same_images_share_prompts(config, root, tmp_path, monkeypatch):
    tuned = watch(monkeypatch)
    config = dataclasses.replace(config, dataset=config.source, targets=(f"coop:{root}:dtd",), methods=("tuner",))
    config = dataclasses.replace(
        config, shots=(4,), save_prompts=False, save_features=False, save_confusion=False, metrics=()
    )
    results = evaluate.run(config, epath.Path(tmp_path))
    assert [each.task.protocol.name for each in tuned] == ["few_shot", "base_to_new", "imbalanced:0.25"]
    for first, second in (("few_shot", "cross_dataset"), ("base_to_new", "imbalanced:1")):
        pairs = [
            [(row.value, row.split) for row in rows_of(results, protocol=protocol, domain=None) if row.split in kept]
            for protocol, kept in ((first, ("all", "base", "new")), (second, ("all", "base", "new")))
        ]
        assert pairs[0] == pairs[1] != []


def test_results_say_what_was_read_and_drawn(finished, config, root):
    workdir, results = finished
    names = {f"coop:{name}" for name in NAMES}
    assert set(results.environment["splits"]) == set(results.config["datasets"]) == names
    assert results.config["datasets"]["coop:dtd"]["split"].startswith("as published")
    assert "sunglasses" in str(results.config["datasets"]["coop:imagenet"]["notes"])
    assert str(root) not in json.dumps([dataclasses.asdict(row) for row in results.rows])
    drawn = dict(results.environment["draws"])
    assert drawn.pop("rule").startswith("random.Random(seed)")
    kinds = ("all classes, 2 shots", "base classes, 2 shots", "base classes, 4 shots",
             "base classes, 4 shots imbalanced:0.25")  # fmt: skip
    three = ("coop:imagenet", "coop:dtd", "coop:ucf101")
    assert set(drawn) == {f"{name}, {kind}, seed {seed}" for name in three for kind in kinds for seed in SEEDS}
    assert len(set(drawn.values())) == len(drawn)
    evaluation.write_results(workdir / "results.json", results)


def test_a_run_that_is_stopped_goes_on(finished, config, tmp_path, monkeypatch):
    workdir, results = finished
    lines = (workdir / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(lines[:-5]) + "\n")
    again = evaluate.run(config, epath.Path(tmp_path)).rows
    assert without_costs(again) == without_costs(results.rows)
    monkeypatch.setattr(TunedMethod, "learn", None)
    assert evaluate.run(config, epath.Path(tmp_path)).rows == again


def test_costs_of_every_tuned_unit(finished, config):
    _, results = finished
    of = {(row.method, row.dataset, row.protocol, row.shots) for row in results.rows if row.step is not None}
    of = {unit for unit in of if unit[2] != "regulation"}
    for metric, least, most in (("tuning_seconds", 0, 600), ("step_bytes", 1e4, 1e10)):
        found = {
            (row.method, row.dataset, row.protocol, row.shots): row.value
            for row in results.rows
            if row.metric == metric
        }
        assert found.keys() == of
        assert all(least < value < most for value in found.values())


def without_costs(rows):
    """What two runs have in common: times differ."""
    return [row for row in rows if row.metric not in _measures.COSTS]


@pytest.mark.parametrize(
    ("count", "sizes"), [(2, (1, 0, 1)), (3, (1, 1, 1)), (4, (1, 2, 1)), (5, (2, 1, 2)), (7, (2, 3, 2)), (50, None)]
)
def test_thirds(count, sizes):
    found = _protocols.thirds(count)
    assert np.concatenate(list(found.values())).tolist() == list(range(count))
    assert tuple(len(found.get(name, ())) for name in _protocols.THIRDS) == (sizes or (17, 16, 17))


@pytest.mark.parametrize("tau", [1.0, 0.25, 0.06])
def test_long_tails_are_tuned_on_base_classes_alone(tau):
    chess = load_dataset("glyphs:chess")
    drawn = _protocols.parse(f"imbalanced:{tau:g}").support(chess, 16, 3)
    counts = [max(1, round(16 * tau ** (k / 5))) for k in range(6)]
    assert np.bincount(drawn.labels).tolist() == counts
    assert drawn.class_names == chess.class_names[:6]
    whole = _protocols.base_to_new.support(chess, 16, 3)
    assert set(drawn.references) <= set(whole.references)
    assert (drawn.references == whole.references) == (tau == 1.0)


def test_metrics_against_a_loop():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(1, 40, 5)).astype(np.float32) * 3, rng.integers(0, 4, 40)  # class 4 has no image
    found = summarize_logits(logits)
    probabilities = np.exp(logits[0].astype(np.float64))
    probabilities /= probabilities.sum(1, keepdims=True)
    np.testing.assert_allclose(found.confidence[0], probabilities.max(1), rtol=1e-5)
    predicted = probabilities.argmax(1)
    recalls, f1 = [], []
    for label in range(4):
        right = sum((predicted == label) & (labels == label))
        recalls.append(right / sum(labels == label))
        f1.append(2 * right / (sum(labels == label) + sum(predicted == label)))
    error = 0.0
    for b in range(15):
        inside = (probabilities.max(1) > b / 15) & (probabilities.max(1) <= (b + 1) / 15)
        if inside.any():
            error += inside.mean() * abs((predicted == labels)[inside].mean() - probabilities.max(1)[inside].mean())
    expected = {
        "accuracy": np.mean(predicted == labels),
        "per_class_accuracy": np.mean(recalls),
        "worst_class_accuracy": min(recalls),
        "macro_f1": np.mean(f1),
        "expected_calibration_error": error,
    }
    assert expected.keys() == _measures.METRICS.keys()
    for name, metric in _measures.METRICS.items():
        assert metric(found.labels[0], found.confidence[0], labels, 5) == pytest.approx(expected[name], abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": ("cross_dataset",)}, "'glyphs:chess'.* --targets"),
        ({"dataset": ("coop:ROOT:dtd",), "protocol": ("domain_generalization",)}, "domain_generalization.*dtd"),
        ({"dataset": ("coop:ROOT:imagenet",), "domains": ("noise",)}, "'noise'.*imagenet"),
        ({"dataset": ("coop:ROOT:dtd",), "domains": ("noise",)}, "dtd.* 'noise'"),
        ({"dataset": ("coop:ROOT:dtd", "coop:ROOT/:dtd")}, "'coop:dtd'"),
        ({"dataset": ("coop:ROOT:imagenet",), "learning_rate": (0.1, 0.2)}, "'coop:imagenet' .*--learning_rate"),
        ({"protocol": ("imbalanced",), "largest": 40}, "shots=40: .* has 32"),
        ({"protocol": ("imbalanced",), "tau": (0.0,)}, "--tau=0.0"),
        ({"targets": ("glyphs:digits",)}, "--targets needs --protocol=cross_dataset"),
        ({"source": ("glyphs:digits",)}, "--source needs --protocol=cross_dataset or domain_generalization"),
        ({"protocol": ("cross_dataset",), "targets": ("glyphs:klingon",)}, "klingon"),
        (
            {"protocol": ("domain_generalization",), "tuner": "coop(class_specific=True)"},
            "class-specific prompt of coop .* domain_generalization",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_found_first(root, tmp_path, changes, message):
    base = {"clip": str(root / "clip"), "dataset": ("glyphs:chess",), "learning_rate": (0.1,)}
    changes = json.loads(json.dumps(base | changes).replace("ROOT", str(root)))
    with pytest.raises(ValueError, match=message):
        evaluate.run(
            evaluate.Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}),
            epath.Path(tmp_path),
        )
    assert not (tmp_path / "rows.jsonl").exists()


def test_glyph_datasets_have_their_unseen_domains_as_shifted_versions():
    found = shifted("glyphs:chess/noise", "unseen")
    assert found == [f"glyphs:chess/{name}" for name in gram.data.glyphs.unseen_domains(
        gram.data.glyphs.catalog("chess")) if name != "noise"]  # fmt: skip
    assert shifted("glyphs:chess//fonts/a.ttf", "noise") == ["glyphs:chess/noise"]
    assert shifted("folder:/photos", "folder:/photos in the rain") == ["folder:/photos in the rain"]
    assert shifted("folder:/photos", "unseen") == []
