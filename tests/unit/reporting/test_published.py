"""Reports of every protocol, and published rows where they belong: against numbers computed by hand."""

import csv
import io
import itertools

import numpy as np
import pytest

from gram_jax import evaluation, reporting
from gram_jax.data import load_dataset
from gram_jax.evaluation import Results, Row
from gram_jax.reporting import published as published_rows
from tests.unit.data import layouts

T1 = 12.706204736432095  # the 97.5 % quantile of Student's t with one degree of freedom, from a table
ELEVEN = [
    f"coop:{name}"
    for name in ("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft",
                 "sun397", "dtd", "eurosat", "ucf101")
]  # fmt: skip
# What the sources print below their tables: averages of base, new, H, and the mean of H as recomputed by hand.
PRINTED = {
    "CLIP": (69.34, 74.22, 71.70, 71.59),
    "CoOp": (82.69, 63.22, 71.66, 70.83),
    "CoCoOp": (80.47, 71.69, 75.83, 75.43),
    "MaPLe": (82.28, 75.14, 78.55, 78.27),
    "PromptSRC": (84.26, 76.10, 79.97, 79.77),
}
CROSS = {"CLIP": 65.15, "CoOp": 63.88, "CoCoOp": 65.74, "MaPLe": 66.30, "PromptSRC": 65.81, "NPT": 67.11, "CPT": 67.78}
SHIFTED = {
    "CLIP": 57.18, "CoOp": 59.28, "CoCoOp": 59.91, "MaPLe": 60.27, "PromptSRC": 60.65, "VPT": 54.44, "DPT": 17.70,
}  # fmt: skip


def measured(protocol, values, *, datasets=ELEVEN, shots=16, domains=(None,), metric="accuracy", method="coop"):
    """Rows of two seeds, a split each; a value is that of seed 1, and 0.1 more that of seed 2."""
    return [
        Row(method, protocol, dataset, metric, value + 0.1 * (seed - 1), domain, shots, seed, split, 5)
        for dataset, domain, (split, value), seed in itertools.product(datasets, domains, values.items(), (1, 2))
    ]


def written(rows, tmp_path, config=None, **settings):
    return reporting.write_report([Results(config or {}, {}, tuple(rows))], tmp_path, **settings)


def table(text, title):
    """{row: {column: cell}} of the table under a title, the source of published rows left out of their names."""
    lines = text.split(f"## {title}\n\n")[1].split("\n\n")[0].splitlines()
    header, _, *body = ([part.strip() for part in line.strip("|").split("|")] for line in lines)
    names = [line[0].partition(":")[0] if "(published" in line[0] else line[0] for line in body]
    return {name: dict(zip(header[1:], line[1:], strict=True)) for name, line in zip(names, body, strict=True)}


def published(text, title):
    return {
        name.removesuffix(" (published"): cells for name, cells in table(text, title).items() if "(published" in name
    }


def test_numbers_average_to_what_their_sources_print():
    rows = {row.method: row.values for row in published_rows.base_to_new(ELEVEN)}
    for method, numbers in PRINTED.items():
        found = [100 * rows[method][name] for name in ("base", "new", "H of means", "mean of H")]
        assert found == pytest.approx(numbers, abs=0.0101), method
    for method, values in rows.items():  # averages alone: base, new and H must fit together
        base, new = values["base"], values["new"]
        assert 100 * values["H of means"] == pytest.approx(200 * base * new / (base + new), abs=0.0101), method
    targets = [name for name in ELEVEN if name != "coop:imagenet"]
    for protocol, others, printed in (
        ("cross_dataset", targets, CROSS),
        ("domain_generalization", ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"], SHIFTED),
    ):
        found = {
            row.method: 100 * row.values["mean"] for row in published_rows.transfer(protocol, "coop:imagenet", others)
        }
        assert found == pytest.approx(printed, abs=0.0101)


def test_single_numbers_are_those_of_their_dataset():
    (eurosat,) = (row.values for row in published_rows.base_to_new(["coop:eurosat"]) if row.method == "MaPLe")
    assert (eurosat["base"], eurosat["new"]) == pytest.approx((0.9407, 0.7323))
    rows = published_rows.transfer("cross_dataset", "coop:imagenet", ["coop:ucf101", "coop:dtd"])
    (maple,) = (row.values for row in rows if row.method == "MaPLe")
    assert maple == pytest.approx({"coop:imagenet": 0.7072, "coop:ucf101": 0.6869, "coop:dtd": 0.4649, "mean": 0.5759})
    rows = published_rows.transfer("domain_generalization", "coop:imagenet", ["imagenet_r", "imagenet_sketch"])
    assert rows[1].values == pytest.approx(
        {"coop:imagenet": 0.7151, "imagenet_r": 0.7521, "imagenet_sketch": 0.4799, "mean": 0.616}
    )
    imbalanced = {row.method: row.values["mean of H"] for row in published_rows.imbalanced(0.06, ELEVEN)}
    assert (imbalanced["MaPLe"], imbalanced["CPT"]) == pytest.approx((0.6912, 0.7247))


def test_base_to_new_beside_what_is_published(tmp_path):
    rows = measured("base_to_new", {"base": 0.6, "new": 0.4})
    text = written(rows, tmp_path)
    title = "Base-to-new, 16 shots"
    assert table(text, title)["CoOp"]["base"] == f"65.0 ±{T1 * 5:.1f}"
    beside = published(text, title)
    assert beside["CoOp"] == {
        "base": "82.7", "new": "63.2", "H of means": "71.7", "mean of H": "70.8",
    }  # fmt: skip
    assert (beside["ProMetaR"]["H of means"], beside["ProMetaR"]["mean of H"]) == ("80.5", "-")
    assert "| MaPLe (published: the tables of OnPoKD)" in text
    assert "\n- Published: CLIP ViT-B/16, as printed in the named source, not measured here" in text
    assert "published" not in text.split("## H by dataset")[1].split("\n- ")[0]
    lines = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    (line,) = (line for line in lines if (line["row"], line["column"]) == ("published:IVLP", "new"))
    assert (line["percent"], line["ci95_low"], line["n"], line["p_value"]) == ("74.07", "", "", "")
    two = written(measured("base_to_new", {"base": 0.6, "new": 0.4}, datasets=["coop:dtd", "coop:eurosat"]), tmp_path)
    beside = published(two, title)
    assert set(beside) == set(PRINTED)  # averages over eleven do not stand beside two
    assert beside["CLIP"]["base"] == f"{(53.24 + 56.48) / 2:.1f}"
    of_each = [2 * b * n / (b + n) for b, n in ((53.24, 59.90), (56.48, 64.05))]
    assert beside["CLIP"]["mean of H"] == f"{np.mean(of_each):.1f}"


BASE_NEW = {"base": 0.6, "new": 0.4}


@pytest.mark.parametrize(
    "rows",
    [
        measured("base_to_new", BASE_NEW, shots=4),
        measured("base_to_new", BASE_NEW, datasets=[*ELEVEN, "glyphs:chess"]),
        measured("base_to_new", BASE_NEW, datasets=["glyphs:chess"]),
        measured("base_to_new", BASE_NEW, datasets=["folder:eurosat"]),
        measured("few_shot", {"all": 0.6}),  # 16 shots, of which no numbers were read
        measured("few_shot", {"all": 0.6}, shots=1, datasets=ELEVEN[:10]),
        measured("few_shot", {"all": 0.6}, shots=1, domains=("noise",)),
        measured("imbalanced:0.5", BASE_NEW),
        measured("imbalanced:0.25", BASE_NEW, shots=8),
        measured("imbalanced:0.25", BASE_NEW, datasets=ELEVEN[:10]),
        measured("cross_dataset", {"all": 0.6}, datasets=["coop:dtd"], domains=("coop:eurosat",)),
        measured("cross_dataset", {"all": 0.6}, datasets=["coop:imagenet"], domains=("coop:eurosat", "glyphs:chess")),
        measured("cross_dataset", {"all": 0.6}, datasets=["coop:imagenet"], domains=("coop:eurosat",), shots=4),
        measured("domain_generalization", {"all": 0.6}, datasets=["glyphs:chess"], domains=("imagenet_a",)),
        measured("domain_generalization", {"all": 0.6}, datasets=["coop:imagenet"], domains=("noise",)),
    ],
)
def test_nothing_published_beside_anything_else(rows, tmp_path):
    assert "ublished" not in written(rows, tmp_path).replace("as in the published tables", "")


def test_few_shot_columns_are_published_one_by_one(tmp_path):
    rows = measured("few_shot", {"all": 0.6}, shots=1) + measured("few_shot", {"all": 0.6}, shots=4)
    rows += measured("few_shot", {"all": 0.6}, shots=2, datasets=ELEVEN[:10])
    beside = published(written(rows, tmp_path), "Accuracy: few-shot")
    assert {name: (cells["1 shot"], cells["2 shots"], cells["4 shots"]) for name, cells in beside.items()} == {
        "linear probe": ("45.8", "-", "-"), "CoOp": ("67.6", "-", "-"), "CoCoOp": ("66.8", "-", "-"),
    }  # fmt: skip


def test_cross_dataset_table(tmp_path):
    rows = []
    for method, gain in (("coop", 0.0), ("coop+gram", 0.02)):
        rows += measured("cross_dataset", {"all": 0.5 + gain}, datasets=["coop:imagenet"], method=method)
        for domain, value in (("coop:dtd", 0.3), ("coop:ucf101", 0.6)):
            value += gain * (1 + (domain == "coop:dtd"))
            rows += measured(
                "cross_dataset", {"all": value}, datasets=["coop:imagenet"], domains=(domain,), method=method
            )
    rows = [row if row.seed == 1 or "+" not in row.method else replaced(row, row.value + 0.01) for row in rows]
    text = written(rows, tmp_path)
    found = table(text, "Cross-dataset from coop:imagenet, 16 shots")
    assert found["CoOp"]["imagenet"] == f"55.0 ±{T1 * 5:.1f}"
    assert found["CoOp"]["dtd"] == f"35.0 ±{T1 * 5:.1f}"
    # On the targets: 34 and 62 with seed 1, 45 and 73 with seed 2.
    assert found["CoOp + GRAM"]["mean of targets"] == f"53.5 ±{T1 * 5.5:.1f}"
    difference = found["CoOp + GRAM"]["mean of targets, difference to the tuner"]
    assert difference == f"+3.5 [{3.5 - T1 * 0.5:+.1f}, {3.5 + T1 * 0.5:+.1f}]"  # 3 and 4
    name = "CoOp + GRAM against CoOp: accuracy (cross-dataset, targets, 16 shots)"
    row = table(text, "Paired differences over seeds")[name]
    assert (row["points, 95 % interval"], row["seeds"]) == (difference, "2")
    assert row["p (paired t-test)"] == f"{1 - 2 / np.pi * np.arctan(7):.3f}"  # t = 3.5 / 0.5, the Cauchy distribution
    beside = published(text, "Cross-dataset from coop:imagenet, 16 shots")
    assert (beside["CoOp"]["dtd"], beside["CoOp"]["mean of targets"]) == ("41.9", f"{(41.92 + 66.55) / 2:.1f}")
    assert "CPT" not in beside  # whose targets are known together alone
    assert "Cross-dataset, targets, 16 shots: means over 1 dataset x 2 targets x 2 seeds, after 5" in text


def replaced(row, value):
    return Row(row.method, row.protocol, row.dataset, row.metric, value, row.domain, row.shots, row.seed, row.split, 5)


def test_domain_generalization_table(tmp_path):
    rows = measured("domain_generalization", {"all": 0.5}, datasets=["coop:imagenet"])
    for domain, value in (("imagenet_a", 0.1), ("imagenet_r", 0.2)):
        rows += measured("domain_generalization", {"all": value}, datasets=["coop:imagenet"], domains=(domain,))
    text = written(rows, tmp_path)
    title = "Domain generalization from coop:imagenet, 16 shots"
    assert table(text, title)["CoOp"]["mean of shifted domains"] == f"20.0 ±{T1 * 5:.1f}"
    beside = published(text, title)["MaPLe"]
    assert beside == {
        "coop:imagenet": "70.7", "imagenet_a": "50.9", "imagenet_r": "77.0", "mean of shifted domains": "63.9",
    }  # fmt: skip
    other = written(measured("domain_generalization", {"all": 0.5}, datasets=["glyphs:chess"], domains="ab"), tmp_path)
    found = table(other, "Domain generalization from glyphs:chess, 16 shots")
    assert (found["CoOp"]["glyphs:chess"], found["CoOp"]["a"]) == ("-", f"55.0 ±{T1 * 5:.1f}")


def test_long_tail_tables(tmp_path):
    values = {"base": 0.5, "new": 0.25, "head": 0.7, "middle": 0.5, "tail": 0.3}
    rows = [row for tau in ("0.06", "1") for row in measured(f"imbalanced:{tau}", values)]
    rows += measured("imbalanced:1", values, metric="macro_f1")
    text = written(rows, tmp_path)
    assert text.index("## Imbalanced, tau 1, 16 shots") < text.index("## Imbalanced, tau 0.06, 16 shots")
    found = table(text, "Imbalanced, tau 0.06, 16 shots")["CoOp"]
    h = [100 * 2 * b * n / (b + n) for b, n in ((0.5, 0.25), (0.6, 0.35))]
    assert found["mean of H"] == f"{np.mean(h):.1f} ±{T1 * (h[1] - h[0]) / 2:.1f}"
    thirds = table(text, "Imbalanced, tau 0.06: accuracy of base classes by their number of images, 16 shots")["CoOp"]
    assert thirds == {f"{third} classes": f"{100 * values[third] + 5:.1f} ±{T1 * 5:.1f}" for third in list(values)[2:]}
    beside = {name: cells["mean of H"] for name, cells in published(text, "Imbalanced, tau 0.06, 16 shots").items()}
    assert beside == {
        "MaPLe": "69.1", "CoPrompt": "71.0", "NPT": "71.8", "DeKg": "71.5", "DPC": "71.8", "CPT": "72.5",
    }  # fmt: skip
    assert published(text, "Imbalanced, tau 1, 16 shots")["CPT"]["base"] == "-"
    assert table(text, "Other metrics: imbalanced, tau 1, 16 shots")["CoOp"]["macro f1, new"] == f"30.0 ±{T1 * 5:.1f}"
    assert "## H by dataset: imbalanced, tau 1, 16 shots" in text


def test_a_dataset_without_middle_classes_is_named_as_left_out(tmp_path):
    rows = measured("imbalanced:1", BASE_NEW | {"head": 0.5, "tail": 0.3}, datasets=["a", "b"])
    text = written(rows, tmp_path)
    title = "Imbalanced, tau 1: accuracy of base classes by their number of images, 16 shots"
    assert list(table(text, title)["CoOp"]) == ["head classes", "tail classes"]
    assert "left out" not in text
    text = written(rows + measured("imbalanced:1", {"middle": 0.9}, datasets=["a"]), tmp_path)
    assert table(text, title)["CoOp"]["middle classes"] == f"95.0 ±{T1 * 5:.1f}"
    assert (
        "Imbalanced, tau 1, head, middle, tail, 16 shots: means over 1 dataset x 2 seeds, after 5 gradient steps; 2 "
        "draws excluded, because not every method has them all (CoOp lacks 2)."
    ) in text


def test_other_metrics(tmp_path):
    rows = measured("few_shot", {"all": 0.5}, shots=4) + measured("few_shot", {"all": 0.5}, shots=8)
    rows += measured("few_shot", {"all": 0.25}, shots=4, metric="macro_f1")
    rows += measured("few_shot", {"all": 0.125}, shots=4, metric="expected_calibration_error", datasets=ELEVEN[1:])
    rows += [Row("zero_shot", "few_shot", dataset, "macro_f1", 0.5) for dataset in ELEVEN]
    rows += [Row("zero_shot", "few_shot", dataset, "accuracy", 0.5) for dataset in ELEVEN]
    text = written(rows, tmp_path, shots=8)
    found = table(text, "Other metrics: few-shot, 4 shots")  # nothing else was measured with 8
    assert found["CoOp"] == {
        "macro f1": f"30.0 ±{T1 * 5:.1f}", "expected calibration error": f"17.5 ±{T1 * 5:.1f}",
    }  # fmt: skip
    assert found["zero-shot"] == {"macro f1": "50.0", "expected calibration error": "-"}
    assert "with datasets averaged within each seed. Differences: in points" in text


def test_copies_and_parts_of_published_datasets_are_told_from_them(tmp_path):
    for name in ("dtd", "eurosat"):
        copy = layouts.write_coop(tmp_path, name)
    copy.split_file.unlink()
    told = {f"coop:{name}": dict(load_dataset(f"coop:{tmp_path}:{name}").about) for name in ("dtd", "eurosat")}
    rows = measured("base_to_new", BASE_NEW, datasets=["coop:dtd", "coop:eurosat"])
    found = published_rows.unlike(Results({"datasets": told}, {}, tuple(rows)))
    assert found["coop:dtd"].startswith("4 classes, 47 are published, and ")
    assert found["coop:eurosat"].startswith("its split was made, and ")
    text = written(rows, tmp_path, {"datasets": told})
    assert not published(text, "Base-to-new, 16 shots")
    assert "- No published rows for datasets that differ from the published ones: coop:dtd (4 classes, 47 are" in text
    real = {name: {"split": "as published, from the split file", "notes": ["two names"]} for name in told}
    assert published(written(rows, tmp_path, {"datasets": real}), "Base-to-new, 16 shots")
    text = written(rows, tmp_path, {"datasets": real, "max_test_images": 5})
    assert not published(text, "Base-to-new, 16 shots")
    assert "coop:dtd (5 test images per class), coop:eurosat (5 test images per class)." in text
    shifted = measured("domain_generalization", {"all": 0.5}, datasets=["coop:imagenet"], domains=("imagenet_a",))
    told = {"coop:imagenet_a": {"split": "as published", "notes": ["2 classes, 200 are published"]}}
    assert "(published" not in written(shifted, tmp_path, {"datasets": told})


def test_p_values_reach_the_results_file(tmp_path):
    rows = measured("imbalanced:1", BASE_NEW) + measured("imbalanced:1", BASE_NEW, method="coop+gram")
    rows = [replaced(row, row.value + 0.01 * row.seed) if "+" in row.method else row for row in rows]
    comparisons = reporting.comparisons(rows)
    evaluation.write_results(tmp_path / "results.json", Results({}, {}, tuple(rows), comparisons))
    (found,) = evaluation.read_results(tmp_path / "results.json").comparisons
    h = [2 * b * n / (b + n) for b, n in ((0.61, 0.41), (0.72, 0.52), (0.6, 0.4), (0.7, 0.5))]
    first, second = h[0] - h[2], h[1] - h[3]
    t = (first + second) / abs(first - second)
    assert (found.a, found.metric) == ("coop+gram", "mean of H (imbalanced, tau 1, 16 shots)")
    assert found.p_value == pytest.approx(1 - 2 / np.pi * np.arctan(t))
